"""Record lab 11b's served throughput on a GPU: `python3 tools/record_lab11.py`, about 4 minutes on an H200.

A wide student reads road signs of 64×64 pixels with TensorRT in FP16. Offline is the bare engine at batch 256, copies
from and to the host included. Served are requests of 64 pictures that arrive as a Poisson process, at rates that rise
until the p99 leaves 50 ms, behind the lab's own scheduler and behind Ray Serve (bytes travel, the replica prepares them
on the device: prepared on the host, 0.30 of the offline rate had a p99 of 197 ms). With LABSUPPORT_METRICS set to a
folder the metrics are left there; without, they go into data/recordings/. `--rehearse` runs the same steps with a small
network in ONNX Runtime on a processor, and records nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.elapsed import Rehearsal, say

LAB = "11b_data_center"
LIMIT_MS, PICTURES, LARGEST = 50.0, 64, 256
CLIENTS, REPLICAS = 4, (3, 5)  # processes that send; numbers of replicas that are tried
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the offline throughput, offered in turn


def trained(rehearse: bool):
    """(network, signs): a student that is wide enough to keep a GPU busy, or a small one."""
    from labsupport import data, distillation, training

    size, width, depth = (24, 20, 1) if rehearse else (64, 256, 4)
    signs = data.road_signs(size, per_class=40)
    start = distillation.staged_cnn(width=width, depth=depth, size=size)
    fit = training.fit(start, signs.train, epochs=2 if rehearse else 8, learning_rate=2e-3, device=device(rehearse))
    say(fit)
    return fit.model.cpu(), signs


def device(rehearse: bool) -> str:
    return "cpu" if rehearse else "cuda"


def opened(path: str):
    """A runtime for an engine's or a graph's file; each replica opens its own."""
    from labsupport import runtimes

    return runtimes.TensorRt(path) if path.endswith(".plan") else runtimes.OnnxRuntime(path)


def prepared(pixels):
    """uint8 (n, H, W, 3) as `data.preprocess` makes it: floats (n, 3, H, W), -1 to 1; on the GPU where there is one."""
    import torch

    from labsupport import data, environment

    if not environment.has("gpu"):
        return data.preprocess(pixels)
    planes = torch.from_numpy(pixels).cuda().permute(0, 3, 1, 2).float()
    return planes.mul_(2 / 255).sub_(1).contiguous()


def sustained(name: str, offered, most: int, offline_per_s: float):
    """(pictures per second, Load) of the highest share at which the limit held and nobody was refused or lost.

    ``offered(rate, count, name)`` sends requests and returns their Load; ``most`` is the largest count.
    """
    best = (0.0, None)
    for share in SHARES:
        rate = share * offline_per_s / PICTURES
        load = offered(rate, min(most, max(300, int(rate * 4))), f"{name} at {share:.0%}")
        say(load, "-", dict(load.faults) or "no faults")
        if load.p99_ms > LIMIT_MS or load.refused or load.lost:
            break
        best = (load.answered_per_s * PICTURES, load)
    return best


def metered(offered, counter, spent: dict):
    """``offered`` that also notes the joules a picture of each run in ``spent``; idle power is in them."""

    def run(rate, count, name):
        before = counter()
        load = offered(rate, count, name)
        used_j = counter() - before
        spent[name] = used_j / (PICTURES * count)
        say(f"{name}: {spent[name]:.3g} J a picture, {used_j / load.seconds:.0f} W")
        return load

    return run if counter else offered


def through_scheduler(path: str, feeds, expected, offline_per_s: float, counter=None, spent=None):
    """The lab's own scheduler, three replicas; floats are submitted."""
    from labsupport import data, serving

    runs = [opened(path) for _ in range(3)]
    ready = [data.preprocess(feed) for feed in feeds[:64]]
    feeds = [ready[n % 64] for n in range(len(feeds))]
    replicas = [lambda images, run=run: run(images)["logits"] for run in runs]
    with serving.Batcher(replicas, shape=ready[0].shape[1:], max_batch=LARGEST, delay_ms=5, max_waiting=2000) as server:
        for _ in range(20):
            judge(server.submit(ready[0]).result(), expected[0])

        def offered(rate, count, name):
            return serving.offer(server.submit, feeds[:count], serving.poisson(rate, count), name=name)

        return sustained("scheduler", metered(offered, counter, spent), len(feeds), offline_per_s)


def through_ray(path: str, feeds, expected, offline_per_s: float, replicas: int, clients: int = CLIENTS):
    """Ray Serve, processes that share the GPU; bytes travel, the replica prepares them.

    The requests come from several processes, as in service: one alone was the bottleneck, since a handle's router is
    Python. Poisson processes that know nothing of each other add up to one.
    """
    import numpy as np
    import ray

    from labsupport import serving

    class Signs:
        def __init__(self, path):
            self.run, self.alone = opened(path), threading.Lock()

        async def answer(self, requests):
            return await asyncio.to_thread(self.answered, requests)  # the replica goes on accepting requests meanwhile

        def answered(self, requests):
            with self.alone:  # an engine's context works for one at a time
                logits = self.run(prepared(np.concatenate(requests)))["logits"]
                logits = logits if isinstance(logits, np.ndarray) else logits.cpu().numpy()
            return np.split(logits, np.cumsum([len(request) for request in requests])[:-1])

    class Client:
        def __init__(self, handle, feeds, expected):
            self.handle, self.feeds, self.threads = handle, feeds, ThreadPoolExecutor(64)
            for feed in feeds[:20]:
                answer = self.ask(feed).result()
                if feed is feeds[0]:
                    judge(answer, expected[0])

        def ready(self):
            return True

        def ask(self, feed):
            return self.threads.submit(lambda: self.handle.answer.remote(feed).result(timeout_s=60))

        def offer(self, rate, count, seed, begin):
            feeds = [self.feeds[n % len(self.feeds)] for n in range(count)]
            time.sleep(max(0.0, begin - time.time()))
            load = serving.offer(self.ask, feeds, serving.poisson(rate, count, seed=seed))
            return dataclasses.replace(load, answers=())

    with serving.ray_cluster(cpus=replicas, object_store_mib=2000) as serve:

        class Batched(Signs):
            answer = serve.batch(Signs.answer, max_batch_size=LARGEST // PICTURES, batch_wait_timeout_s=0.005)

        options = {"num_replicas": replicas, "max_ongoing_requests": 128, "ray_actor_options": {"num_cpus": 1}}
        handle = serve.run(serve.deployment(**options)(Batched).bind(path), route_prefix=None)
        ours, wanted = ray.put(feeds[:64]), ray.put(expected)
        senders = [ray.remote(num_cpus=0)(Client).remote(handle, ours, wanted) for _ in range(clients)]
        ray.get([sender.ready.remote() for sender in senders])

        def offered(rate, count, name):
            each, begin = max(count // clients, 1), time.time() + 0.5
            parts = ray.get([sender.offer.remote(rate / clients, each, n, begin) for n, sender in enumerate(senders)])
            return together(name, parts)

        offered(0.3 * offline_per_s / PICTURES, 200, "warm-up")
        return sustained(f"Ray Serve, {replicas} replicas", offered, len(feeds), offline_per_s)


def together(name: str, parts):
    """One Load of what several clients sent at the same time."""
    from labsupport.serving import Load

    return Load(
        name,
        tuple(ms for part in parts for ms in part.latencies_ms),
        (),
        sum(part.refused for part in parts),
        sum((part.faults for part in parts), Counter()),
        max(part.seconds for part in parts),
        sum(part.offered_per_s for part in parts),
    )


def judge(answer, wanted) -> None:
    """Stop where a served answer is not the network's."""
    from labsupport import comparing

    error = comparing.relative_error(wanted, answer)
    if error > 0.05:
        raise SystemExit(f"a served answer is off by {error:.2g}")


def measure(book, rehearse: bool) -> None:
    """Offline, then behind both servers."""
    import numpy as np
    import torch

    from labsupport import benchmarking, build, data, environment, export
    from labsupport.benchmarking import joules

    model, signs = trained(rehearse)
    graph = export.to_onnx(model, model.example_input(1))
    path = str(graph.path)
    if not rehearse:
        engine = build.engine(
            graph,
            precision="fp16",
            strict=True,
            batch=(1, LARGEST, LARGEST),
            optimization_level=2,
            name="signs_wide",
            progress=False,
        )
        say(engine)
        path = str(engine.path)
    pixels = np.resize(signs.train.images, (64 * PICTURES, *signs.train.images.shape[1:]))
    feeds = [pixels[n * PICTURES : (n + 1) * PICTURES] for n in range(64)] * 80
    with torch.inference_mode():
        expected = [model(torch.from_numpy(data.preprocess(feeds[0]))).numpy()]
    with opened(path) as run:
        batch = data.preprocess(pixels[:LARGEST])
        offline = benchmarking.throughput(run, batch, seconds=3)
        say(offline)
    book.record("serving.offline_per_s", offline)
    offline_per_s = offline.as_metric()["value"]
    (counter, why_not), spent = joules.energy_counter(device(rehearse)), {}
    say(why_not or "the GPU counts its joules")
    served, load = through_scheduler(path, feeds, expected, offline_per_s, counter, spent)
    if load:
        book.record("serving.scheduler_over_offline", served / offline_per_s, "fraction")
    if load and counter:
        book.record("serving.joules_per_picture_at_30_percent", spent["scheduler at 30%"], "J")
        book.record("serving.joules_per_picture_at_limit", spent[load.name], "J")
    if not environment.has("ray serve"):
        say(environment.why_not("ray serve"))
        return
    found = [through_ray(path, feeds, expected, offline_per_s, replicas) for replicas in REPLICAS]
    served, load = max(found, key=lambda each: each[0])
    if load:
        book.record("serving.served_over_offline", served / offline_per_s, "fraction")
        book.record("serving.ray_p99_ms", load.p99_ms, "ms", samples=len(load.latencies_ms))
    say("done")


def main() -> None:
    """Measure, and store what there is even if the end was not reached."""
    from labsupport import environment, recordings

    if "--rehearse" in sys.argv[1:]:
        measure(Rehearsal(), rehearse=True)
        return
    environment.require("engine execution")
    with recordings.session(LAB, command="python3 tools/record_lab11.py") as book:
        measure(book, rehearse=False)


if __name__ == "__main__":
    main()
