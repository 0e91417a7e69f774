"""Record lab 08's means over seeds: `python3 tools/record_lab08.py`, about a minute on a GPU.

The duel of the lab with more seeds, beside label smoothing, with wrong labels, for several numbers of labeled images (the number
of steps stays), and with hints. With
LABSUPPORT_METRICS set to a folder the metrics are left there; without, they go into data/recordings/.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LAB = "08_distillation"
LABELS = {120: 90, 960: 11}  # labeled images → epochs, about as many steps as 45 epochs of 240


def main() -> None:
    from labsupport import recordings

    with recordings.session(LAB, command="python3 tools/record_lab08.py") as book:
        measure(book)


def measure(book) -> None:
    """Duels of five and three seeds; each is recorded as soon as it is over."""
    import torch

    from labsupport import data, distillation, environment, training
    from labsupport.distillation import Hint

    started = time.perf_counter()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(environment.describe(), flush=True)
    signs, test = data.road_signs(24, per_class=250), data.road_signs(24, per_class=1000, seed=1).test
    large = distillation.staged_cnn(width=32, depth=2)
    history = training.fit(large, signs.train, epochs=12, learning_rate=5e-3, device=device)
    teacher = distillation.freeze(history.model)
    print(history, f"{training.accuracy(teacher, test):.1%}", flush=True)
    budget = dict(batch_size=50, learning_rate=2e-2, device=device, progress=False)

    def even(model, images, labels):
        logits = model(images)
        return logits, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.85)

    def images(count: int, wrong: bool):
        some = signs.train.take(count)
        labels = some.labels.copy()
        if wrong:  # every fourth label, as in the notebook
            other = torch.randint(1, 15, (len(labels[::4]),), generator=torch.Generator().manual_seed(0)).numpy()
            labels[::4] = (labels[::4] + other) % 15
        return data.Split(some.images, labels, some.classes)

    def alone(count: int, epochs: int, seed: int, wrong: bool = False, objective=None) -> float:
        done = training.fit(distillation.staged_cnn(seed=seed), images(count, wrong), epochs=epochs, seed=seed, objective=objective,
                            **budget)
        return training.accuracy(done.model, test)

    def taught(count: int, epochs: int, seed: int, wrong: bool = False, **options) -> float:
        done = distillation.distill(distillation.staged_cnn(seed=seed), teacher, images(count, wrong), epochs=epochs, seed=seed,
                                    **budget, **options)
        return training.accuracy(done.model, test)

    def note(metric: str, before: list[float], after: list[float]) -> None:
        points = [100 * (b - a) for a, b in zip(before, after, strict=True)]
        mean = statistics.mean(points)
        spread = statistics.stdev(points) / abs(mean) if mean else None
        print(metric, book.record(metric, mean, "points", samples=len(points), spread=spread), [round(p, 1) for p in points],
              f"{time.perf_counter() - started:.0f} s", flush=True)

    by_label, by_teacher = ([side(240, 45, seed) for seed in range(5)] for side in (alone, taught))
    note("labels240.gain_points", by_label, by_teacher)
    note("labels240.smoothing_gain_points", by_label, [alone(240, 45, seed, objective=even) for seed in range(5)])
    wrong = [[alone(240, 45, seed, True) for seed in range(3)], [alone(240, 45, seed, True, even) for seed in range(3)],
             [taught(240, 45, seed, True) for seed in range(3)]]
    note("wrong_labels240.gain_points", wrong[0], wrong[2])
    note("wrong_labels240.gain_over_smoothing_points", wrong[1], wrong[2])
    for kind in ("features", "attention"):
        hint = Hint("stages.2", "stages.2", kind, weight=0.1)
        note(f"hints_{kind}.gain_over_soft_labels", by_teacher[:3], [taught(240, 45, seed, hints=hint) for seed in range(3)])
        note(f"hints_{kind}_without_soft_labels.gain_points", by_label[:3],
             [taught(240, 45, seed, hints=hint, alpha=0.0) for seed in range(3)])
    for count, epochs in LABELS.items():
        note(f"labels{count}.gain_points", *([side(count, epochs, seed) for seed in range(3)] for side in (alone, taught)))


if __name__ == "__main__":
    main()
