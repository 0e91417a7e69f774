"""Each branch of the conclusions that cells print from their numbers: the cell runs again with numbers made up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def said(capsys, lab: str, first_line: str, **names) -> str:
    """What the cell that begins with ``first_line`` prints, run alone with these names."""
    path = next((ROOT / "notebooks").glob(f"{lab}_*.ipynb"))
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    (source,) = [source for source in sources if source.startswith(first_line)]
    exec(compile(source, path.name, "exec"), names)
    return capsys.readouterr().out


def race(median: float, iqr: float = 0.05, name: str = "torch"):
    return SimpleNamespace(median=median, iqr=iqr, before=SimpleNamespace(name=name, median_ms=median))


@pytest.mark.parametrize(
    "one, many, words",
    [(2.0, 2.02, "no trend beyond the noise"), (2.0, 1.2, "fixed cost of a call"), (1.2, 2.0, "runs better")],
)
def test_where_the_gain_comes_from(capsys, one, many, words):
    assert words in said(capsys, "00", "one, many =", races={1: race(one), 256: race(many)})


@pytest.mark.parametrize(
    "ms, words",
    [
        ([1, 1, 1.1, 1.1], ("up to batch 8", "still rises at batch 8")),
        ([1, 1, 3, 9], ("up to batch 2", "highest at batch 2, and 44%")),
        ([1, 2, 4, 8], ("rises from the second item on", "highest at batch 1, and 100%")),
    ],
)
def test_what_the_curves_over_the_batch_do(capsys, ms, words):
    points = [
        SimpleNamespace(batch=batch, median_ms=each, items_per_s=batch / each) for batch, each in zip((1, 2, 4, 8), ms)
    ]
    best = max(points, key=lambda point: point.items_per_s)
    text = said(capsys, "01", "rising =", points=points, best=best, first=points[0], last=points[-1])
    assert all(word in text for word in words), text


@pytest.mark.parametrize("after_two, words", [(1.5, "a new shape costs by itself"), (1.02, "costs nothing that can")])
def test_what_a_new_shape_costs(capsys, after_two, words):
    turns = np.array([[1.0, after_two * noise] for noise in (0.95, 1.0, 1.05)])
    assert words in said(capsys, "01", "low, price, high =", turns=turns, np=np)


@pytest.mark.parametrize("median, words", [(1.28, "wins against the strongest"), (1.01, "does not beat")])
def test_the_race_quotes_the_strongest_opponent(capsys, median, words):
    races = {"eager": race(9.5, name="eager"), "compiled": race(median, name="compiled")}
    assert words in said(capsys, "02", "weakest =", races=races, strongest=races["compiled"])


@pytest.mark.parametrize(
    "part, whole, words",
    [(1.01, 1.4, "nodes are not time"), (1.1, 1.4, "the other rung brings more"), (1.35, 1.4, "is most of it")],
)
def test_what_fusion_alone_bought(capsys, part, whole, words):
    assert words in said(capsys, "03", "share = (by_fusion", by_fusion=race(part), together=race(whole))


@pytest.mark.parametrize(
    "counts, median, on_gpu, words",
    [
        ((5, 5), 1.2, True, "the price of more outputs"),
        ((5, 5), 1.2, False, "fuses next to nothing"),
        ((9, 1), 5.5, True, "fusion pays"),
        ((5, 2), 0.85, True, "costs time here"),
        ((5, 2), 1.04, True, "no difference beyond the noise"),
        ((0, 0), 1.5, True, "? → ? kernels"),
    ],
)
def test_a_gain_counts_only_with_fewer_kernels(capsys, counts, median, on_gpu, words):
    ran, recorded = {"block": [["k"] * count for count in counts]}, []
    book = SimpleNamespace(record=lambda name, value: recorded.append(name))
    text = said(
        capsys, "03", "for name, ratio in ratios", ratios={"block": race(median)}, ran=ran, on_gpu=on_gpu, book=book
    )
    assert words in text
    assert bool(recorded) == (on_gpu and "price" not in words)


@pytest.mark.parametrize("iqr, words", [(0.1, "0.90 of the reduction"), (2.0, "cannot tell")])
def test_a_share_of_noise_is_not_told(capsys, iqr, words):
    others = ("runtimes", "export", "book", "comparing", "slim_tuned", "as_dense", "few", "dense_right", "slim_right")
    names = {name: MagicMock() for name in others}
    names["benchmarking"] = SimpleNamespace(
        paired=lambda *_: SimpleNamespace(median=1.8, iqr=iqr, before="dense", after="slim")
    )
    text = said(capsys, "07", "as_slim =", slim=SimpleNamespace(mac_reduction=2.0), turns={}, **names)
    assert words in text


@pytest.mark.parametrize("scratch, words", [((4, 4), "more room buys nothing"), ((1, 4), "product: gained")])
def test_equal_scratch_is_no_difference(capsys, scratch, words):
    rows = [{"latency": "measured", "scratch MiB": each} for each in scratch]
    names = {
        "limited": {"product": rows, "attention": rows[:1]},
        "comparing": SimpleNamespace(speedup=lambda *_: "gained"),
        "book": SimpleNamespace(record=lambda *_: None),
        "environment": SimpleNamespace(has=lambda *_: True),
    }
    text = said(capsys, "04", "for name, rows in limited", **names)
    assert words in text and "attention: fewer than two limits" in text


@pytest.mark.parametrize(
    "took, words",
    [([1, 1, 1, 2], ("up to 1 MiB", "no cache is seen")), ([1, 2, 4, 20], ("shows memory", "2.5 times as fast"))],
)
def test_where_a_cache_ends(capsys, took, words):
    sizes = [0.25, 0.5, 1, 2]
    rates = [size / ms for size, ms in zip(sizes, took)]
    book = SimpleNamespace(record=lambda *_: None)
    text = said(
        capsys, "04", 'book.record("cache', sizes_mib=sizes, took_ms=took, best=max(rates), last=rates[-1], book=book
    )
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "median, words", [(1.01, "buys no time"), (1.5, "1.50 times as fast"), (0.8, "1.25 times as long")]
)
def test_what_fp16_buys_a_processor(capsys, median, words):
    assert words in said(capsys, "05", "for level, ratio in raced", raced={"all": race(median)})


def test_an_accuracy_that_cannot_tell_says_so(capsys):
    same, apart = ([{"accuracy": 0.9}, {"accuracy": second}] for second in (0.9, 0.88))
    assert "cannot tell" in said(capsys, "05", "rights =", rows=same)
    assert "at most 0.020" in said(capsys, "05", "rights =", rows=apart)


@pytest.mark.parametrize(
    "rates, words",
    [
        ((60.0,), "one cut is the choice for both"),
        ((60.0, 90.0), "is right: 1.50 times as many answers"),
        ((60.0, 45.0), "chose wrongly for this stream: its cut gives 0.75 times"),
        ((60.0, 62.0), "either will do"),
    ],
)
def test_which_cut_a_stream_wants(capsys, rates, words):
    flows = {f"cut {place}": SimpleNamespace(items_per_s=rate) for place, rate in enumerate(rates)}
    choices = {"latency": "cut 0", "interval": f"cut {len(rates) - 1}"}
    assert words in said(capsys, "09c", 'gain = flows[choices["interval"]]', flows=flows, choices=choices)


@pytest.mark.parametrize(
    "gains, products, words",
    [
        ((0.7, 1.2, 1.1), (250, 0, 0), ("steps that pay:\n  encoder 1\n  encoder 2\n", "no step with", "lose against")),
        ((1.2, 1.2, 1.3), (250, 0, 0), ("  encoder 0\n", "INT8 pays although FP32 products are left")),
        ((0.7, 0.8, 0.9), (250, 0, 0), ("steps that pay:\n  none\n",)),
    ],
)
def test_which_steps_to_int8_pay(capsys, gains, products, words):
    rows = [
        {"recorded": f"encoder {place}", "times as fast": gain, "FP32 products, µs": us}
        for place, (gain, us) in enumerate(zip(gains, products))
    ]
    rows.append({"recorded": "ResNet-18", "times as fast": 9.0, "FP32 products, µs": "–"})
    text = said(capsys, "06", "steps = [row", rows=sorted(rows, key=lambda row: row["recorded"]))
    assert all(word in text for word in words) and "ResNet" not in text, text
