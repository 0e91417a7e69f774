"""A network over several processes: an encoder's layers split by columns and rows, or handed on in stages.

Processes of this machine, through gloo on the processor and NCCL where each has a GPU. The parent writes the network
to a file, starts ``python -m labsupport.language.parallel`` once a rank, and watches: where one dies, all are ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError, at_least, one_of

WAYS = ("tensor", "pipeline", "generate")
ROOT = Path(__file__).resolve().parents[2]


def run(way: str, network, inputs, *, world: int = 2, options: dict | None = None, timeout_s: float = 120) -> dict:
    """Run a network over ``world`` processes; what rank 0 reports: outputs, the bytes it sent, seconds.

    ``way``: "tensor" or "pipeline" for an encoder and (tokens, lengths); "generate" for a decoder in stages and a
    prompt, ``options["most"]`` tokens. Raises BadInput for a network that cannot be split so,
    LabError for a dead worker.
    """
    import torch

    one_of(WAYS, way=way)
    check_split(way, network.shape, world)
    with files.scratch() as folder:
        job = {"way": way, "world": world, "kind": type(network).__name__, **(options or {})}
        torch.save(
            {"network": network.state_dict(), "shape": network.shape.__dict__, "inputs": inputs}, f"{folder}/whole.pt"
        )
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # never ask which network this machine is in
        command = [sys.executable, "-W", "ignore", "-m", "labsupport.language.parallel", str(folder)]
        logs = [Path(folder, f"rank{rank}.log").open("w+b") for rank in range(world)]
        workers = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        try:
            _watch(workers, logs, timeout_s)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            for log in logs:
                log.close()
        return torch.load(f"{folder}/result.pt", weights_only=True)


def check_split(way: str, shape, world: int) -> None:
    """Raise BadInput where a network of this shape cannot be split over ``world`` processes."""
    at_least(world=world)
    counts = (
        {"heads": shape.heads, "key-value heads": shape.kv_heads, "inner values": shape.inner}
        if way == "tensor"
        else {}
    )
    for what, count in counts.items():
        if count % world:
            raise BadInput(f"{count} {what} cannot be split over {world} processes; take a number that divides {count}")
    if way != "tensor" and world > shape.layers:
        raise BadInput(
            f"{shape.layers} layers make at most {shape.layers} stages, and {world} processes were asked for"
        )


def stages(layers: int, world: int) -> list[range]:
    """Which layers each stage has; the first ones get the odd layer."""
    ends = [0]
    for rank in range(world):
        ends.append(ends[-1] + layers // world + (rank < layers % world))
    return [range(start, end) for start, end in zip(ends, ends[1:])]


def bubble(stages: int, micro_batches: int) -> float:
    """Share of the time that a stage of a GPipe schedule waits (Huang et al. 2018)."""
    return (stages - 1) / (micro_batches + stages - 1)


def _watch(workers, logs, timeout_s: float) -> None:
    """Wait until all are done; raise LabError as soon as one failed, or after ``timeout_s``."""
    until = time.monotonic() + timeout_s
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() not in (None, 0) for worker in workers):
            break
        if time.monotonic() > until:
            raise LabError(
                f"the processes were not done after {timeout_s:g} s and were ended; does one wait for another?"
            )
        time.sleep(0.02)
    for rank, (worker, log) in enumerate(zip(workers, logs)):
        if worker.poll() not in (None, 0):
            log.seek(0)
            last = (log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            how = (
                f"killed by signal {-worker.returncode}" if worker.returncode < 0 else f"exit code {worker.returncode}"
            )
            raise LabError(f"rank {rank} of {len(workers)} died ({how}): {last}. The others were ended; run it again")


# --- what a worker does -----------------------------------------------------------------------------------------


def work(folder: str, rank: int) -> None:
    """One rank: read the network, do its part, and as rank 0 write the result."""
    import torch
    import torch.distributed as dist

    from labsupport.language import networks

    job = json.loads(Path(folder, "job.json").read_text(encoding="utf-8"))
    kept = torch.load(f"{folder}/whole.pt", weights_only=True)
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= job["world"]
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", job["world"])
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=job["world"])
    network = getattr(networks, job["kind"])(networks.Shape(**kept["shape"]))
    network.load_state_dict(kept["network"])
    network = network.eval().requires_grad_(False).to(device)
    inputs = [torch.as_tensor(x).to(device) for x in kept["inputs"]]
    start = time.perf_counter()
    with torch.inference_mode() if job["way"] == "generate" else torch.no_grad():
        result = {"tensor": _tensor, "pipeline": _pipeline, "generate": _generate}[job["way"]](
            network, inputs, job, rank
        )
    result["seconds"] = time.perf_counter() - start
    if rank == 0:
        torch.save(result, f"{folder}/result.part")
        os.replace(f"{folder}/result.part", f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()


def _tensor(network, inputs, job: dict, rank: int) -> dict:
    """Each rank holds some heads and some inner values; two sums a layer put them together."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh(inputs[0].device.type, (job["world"],))
    split = {
        **{name: ColwiseParallel() for name in ("query", "key", "value", "up")},
        "out": RowwiseParallel(),
        "down": RowwiseParallel(),
    }
    for layer in network.layers:
        parallelize_module(layer, mesh, split)
    output = network(*inputs)
    held = sum(
        parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()
        for parameter in network.parameters()
    )
    tokens, shape = inputs[0].numel(), network.shape
    return {
        "output": output.cpu(),
        "bytes_over_link": 2 * shape.layers * tokens * shape.hidden * 4,
        "weights_held": held,
    }


def _pipeline(network, inputs, job: dict, rank: int) -> dict:
    """Each rank holds some layers; micro-batches follow each other (GPipe)."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    tokens, lengths = inputs
    parts, own = job.get("micro_batches", 4), stages(network.shape.layers, job["world"])[rank]
    if len(tokens) % parts:
        raise BadInput(f"a batch of {len(tokens)} cannot be cut into {parts} micro-batches")
    real = (
        torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    ).float()  # (B, L), known to every rank

    class Stage(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(network.layers[i] for i in own)

        def forward(self, x, real):
            x = network.embed(x) if rank == 0 else x
            for layer in self.layers:
                x = layer(x, ((1 - real) * -1e4)[:, None, None])
            return network.pool(x, real) if rank == job["world"] - 1 else x

    stage = PipelineStage(Stage(), rank, job["world"], tokens.device)
    schedule = ScheduleGPipe(stage, parts)
    output = schedule.step(*([tokens] if rank == 0 else []), real=real)
    shape = (len(tokens), network.shape.hidden)
    if job["world"] > 1:
        output = output if output is not None else torch.empty(shape, device=tokens.device)
        dist.broadcast(output, src=job["world"] - 1)
    held = sum(parameter.numel() for parameter in stage.submod.parameters())
    links = job["world"] - 1
    return {
        "output": output.cpu(),
        "bytes_over_link": links * tokens.numel() * network.shape.hidden * 4,
        "weights_held": held,
    }


def _generate(network, inputs, job: dict, rank: int) -> dict:
    """A decoder in stages, greedy: hidden states go forward, and the token that the last stage chose comes back."""
    import torch
    import torch.distributed as dist

    shape, world = network.shape, job["world"]
    own, device = stages(shape.layers, world)[rank], inputs[0].device
    tokens, most = inputs[0].int()[None], job.get("most", 8)
    past = [torch.zeros(1, 0, shape.kv_heads, shape.head_width, device=device) for _ in range(2 * len(own))]
    answer, length, sent = [], torch.zeros(1, dtype=torch.int32, device=device), 0
    for number in range(most):
        if [rank, number] == job.get("dies"):
            os._exit(9)  # the machine of this stage is gone, without a word
        steps = torch.arange(tokens.shape[1], device=device, dtype=torch.int32)
        places = length[:, None] + steps
        turn = network.cos[places][:, :, None], network.sin[places][:, :, None]
        mask = network.mask(steps, length, int(length))
        x = network.token(tokens) if rank == 0 else torch.empty(*tokens.shape, shape.hidden, device=device)
        if rank:
            dist.recv(x, rank - 1)
        for i, index in enumerate(own):
            x, key, value = network.layers[index](x, turn, mask, past[2 * i : 2 * i + 2])
            past[2 * i : 2 * i + 2] = [torch.cat([past[2 * i], key], 1), torch.cat([past[2 * i + 1], value], 1)]
        length = length + tokens.shape[1]
        chosen = torch.zeros(1, 1, dtype=torch.int32, device=device)
        if rank < world - 1:
            dist.send(x, rank + 1)
            sent += x.numel() * x.element_size()
        else:
            logits = torch.nn.functional.linear(network.norm(x[:, -1:]), network.token.weight)
            chosen = logits.argmax(-1).int()
        dist.broadcast(chosen, src=world - 1)
        tokens = chosen
        answer.append(int(chosen))
    return {
        "output": answer,
        "bytes_over_link": sent,
        "weights_held": sum(p.numel() for i in own for p in network.layers[i].parameters()),
    }


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
