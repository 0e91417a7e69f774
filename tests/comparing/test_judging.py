"""The judge on answers and latencies whose true distance is known."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from faces import stand_in

from labsupport import comparing, environment
from labsupport.benchmarking.measurements import Latency, Ratio, Throughput
from labsupport.errors import BadInput

LOGITS = np.array([[1.0, 2.0, 3.0], [9.0, 1.0, 0.0]], np.float32)


def seen(name="eager", ms=4.0, clock="host", batch=8, machine="NVIDIA H100", n=100):
    samples = [ms * (1 + 0.01 * (index % 5 - 2)) for index in range(n)]  # ±2 % round ms
    return Latency(name, clock, samples, batch, machine)


class OnGpu:
    """A CUDA tensor as far as comparing can tell: NumPy alone cannot read it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def detach(self):
        return self

    def cpu(self):
        import torch

        return torch.as_tensor(self.values)


# errors


def test_max_error_is_the_largest_difference_of_all_outputs():
    reference = {"logits": LOGITS, "boxes": np.zeros(4)}
    outputs = {"boxes": np.array([0, 0, -0.25, 0]), "logits": LOGITS + 0.125}
    assert comparing.max_error(reference, outputs) == 0.25
    assert comparing.max_error(LOGITS, LOGITS) == 0


def test_relative_error_is_the_ratio_of_norms():
    assert comparing.relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert comparing.relative_error({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [1.5]}) == 0.5
    assert comparing.relative_error(np.zeros(3), np.zeros(3)) == 0
    assert comparing.relative_error(np.zeros(3), np.ones(3)) == math.inf
    assert comparing.relative_error(np.array([np.inf, 1]), np.array([np.inf, 2])) == math.inf


@pytest.mark.parametrize("judge", [comparing.max_error, comparing.relative_error])
def test_nan_never_passes(judge):
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    for error in (judge(LOGITS, broken), judge(broken, LOGITS), judge(broken, broken)):
        assert error == math.inf and not error < 1e9


def test_equal_infinities_of_masked_scores_differ_by_nothing():
    masked = np.array([[-np.inf, 1.0]])
    assert comparing.max_error(masked, masked) == 0
    assert comparing.max_error(masked, -masked) == math.inf


def test_small_integers_and_halves_do_not_wrap():
    assert comparing.max_error(np.array([200], np.uint8), np.array([10], np.uint8)) == 190
    assert comparing.max_error(np.array([6e4], np.float16), np.array([-6e4], np.float16)) == 2 * float(np.float16(6e4))


def test_tensors_of_any_precision_and_device_are_read():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True)
    assert comparing.max_error({"logits": LOGITS}, {"logits": tensor}) == 0
    assert comparing.max_error(tensor, {"logits": LOGITS}) == 0  # a bare output is the other side's only one
    assert comparing.max_error(OnGpu(LOGITS), OnGpu(LOGITS + 1)) == 1


def test_top1_agreement_counts_rows():
    outputs = np.array([[1.0, 2.0, 3.5], [1.0, 9.0, 0.0]])
    assert comparing.top1_agreement(LOGITS, outputs) == 0.5
    assert comparing.top1_agreement({"logits": LOGITS}, {"logits": LOGITS * 2}) == 1.0
    broken = LOGITS.copy()
    broken[1, 0] = np.nan  # argmax would point at the NaN on both sides
    assert comparing.top1_agreement(broken, broken) == 0.5
    with pytest.raises(BadInput, match=r"top-1 agreement needs scores of shape \(N, classes\), got \(2,\)"):
        comparing.top1_agreement(np.array([1, 2]), np.array([1, 2]))


@pytest.mark.parametrize(
    "reference, outputs, message",
    [
        (
            LOGITS,
            LOGITS[:1],
            r"'output' has shape \(2, 3\) in the reference and \(1, 3\) in the other; feed both the same",
        ),
        ({"a": LOGITS}, {"b": LOGITS}, r"the reference has the outputs \['a'\], the other \['b'\]"),
        ({}, {}, r"the reference has the outputs \[\]"),
        ({"a": LOGITS, 1: LOGITS}, {"b": LOGITS}, r"the reference has the outputs \[1, 'a'\], the other \['b'\]"),
        ([[1.0, 2.0], [3.0]], LOGITS, r"'output' is a list that makes no array .*lists of equal length"),
        ({"a": LOGITS, "b": LOGITS}, LOGITS, r"the other has the outputs \['a', 'b'\]; pick one of them by name"),
        (LOGITS[:0], LOGITS[:0], r"'output' is empty, shape \(0, 3\)"),
        ("words", "words", r"'output' holds .* of type str; expected numbers"),
        (None, LOGITS, r"'output' holds object of type NoneType; expected numbers"),
    ],
)
def test_answers_that_cannot_be_compared(reference, outputs, message):
    with pytest.raises(BadInput, match=message):
        comparing.max_error(reference, outputs)


# speed-ups


def test_speedup_carries_its_direction():
    eager, engine = seen("eager", 4.6), seen("engine", 2.0)
    faster, slower = comparing.speedup(eager, engine), comparing.speedup(engine, eager)
    assert repr(faster) == "2.30× faster (eager → engine)"
    assert repr(slower) == "2.30× slower (engine → eager)"
    assert float(faster) == pytest.approx(2.3) and float(slower) == pytest.approx(1 / 2.3)
    assert repr(comparing.speedup(eager, seen("again", 4.55))).startswith("no difference beyond the noise: 1.01×")
    metric = faster.as_metric()
    assert metric["unit"] == "×" and metric["samples"] == 100 and 0.02 < metric["spread"] < 0.04


def test_the_spreads_of_a_speedup_add_up_as_independent_ones():
    before = Latency("a", "host", [7, 10, 10, 13, 13], 8, "here")  # IQR over median: 0.3
    after = Latency("b", "host", [3, 3, 5, 5, 6], 8, "here")  # 0.4
    assert comparing.speedup(before, after).as_metric() == {
        "value": 2, "unit": "×", "samples": 5, "spread": pytest.approx(0.5)
    }  # fmt: skip


def test_a_noisy_side_is_said():
    noisy = Latency("engine", "host", [1, 1.5, 2, 3, 9], 8, "NVIDIA H100")
    assert repr(comparing.speedup(seen(), noisy)).endswith("NOISY")


@pytest.mark.parametrize(
    "after, message",
    [
        (
            seen(machine="Test CPU, 2 cores"),
            "before ran on NVIDIA H100, after on Test CPU, 2 cores; re-run one of them",
        ),
        (seen(clock="device"), r"before was read on the host clock, after on the device clock; measure both"),
        (seen(batch=1), "before ran batch 8, after batch 1; measure both at one batch"),
        (Latency("idle", "host", [0.0], 8, "NVIDIA H100"), "a median of 0 ms cannot be compared"),
        (2.5, r"after is a float; speedup\(\) takes two results of benchmarking.latency\(\)"),
    ],
)
def test_speedup_refuses(after, message):
    with pytest.raises(BadInput, match=message):
        comparing.speedup(seen(), after)


def test_speedup_refuses_a_recording_by_its_machine():
    class Recorded:
        machine = "NVIDIA H100, recorded"

    with pytest.raises(BadInput, match="before ran on Test CPU, after on NVIDIA H100, recorded; re-run one of them"):
        comparing.speedup(seen(machine="Test CPU"), Recorded())


# tables


def test_table_expands_latencies_and_stays_numeric():
    table = comparing.table(
        [
            {"latency": seen("eager", 4.0), "max error": 0.0, "top-1 agreement": 1.0},
            {"latency": seen("engine", 0.5, n=20), "max error": 3.4567e-3, "top-1 agreement": 0.9988},
        ]
    )
    assert list(table.index) == ["eager", "engine"]
    assert table.loc["eager", "median ms"] == 4.0 and table["median ms"].min() == 0.5
    assert table.loc["eager", "p99 ms"] == pytest.approx(4.08, rel=0.01)
    text = repr(table)
    assert "3.5e-03" in text and "0.999" in text and "e+0" not in text
    assert "n too small" in text.splitlines()[-1]  # 20 calls carry no p99
    assert text.splitlines()[2].split()[:7] == ["eager", "host", "8", "4", "4.08", "4.08", "0.02"]
    assert "3.5e-03" in table._repr_html_()


def test_two_clocks_in_one_row_keep_apart():
    table = comparing.table([{"host": seen("engine", 4.0), "device": seen("engine", 1.0, "device"), "max error": 0.0}])
    assert table.loc["engine", "host median ms"] == 4.0 and table.loc["engine", "device median ms"] == 1.0


def test_other_measurements_become_columns():
    ratio = Ratio((2.30, 2.31, 2.32, 2.33), seen(), seen())
    rate = Throughput("engine", 100, 1.0, 8, 2, (800.0, 800.0), "NVIDIA H100")
    row = comparing.table([{"speed-up": ratio, "throughput": rate, "max error": 1e-3}]).loc["engine"]
    assert (row["speed-up"], row["items/s"]) == (2.31, 800)


@pytest.mark.parametrize(
    "row",
    [
        {"runtime": "engine", "median ms": 0.5},
        {"runtime": "engine", "images/s": 6400},
        {"runtime": "engine", "speed-up": 2.3},
        {"runtime": "engine", "median_ms": 0.5},
        {"runtime": "engine", "how long": seen()},
        {"runtime": "engine", "gain": comparing.speedup(seen("a"), seen("b", 1.0))},
        seen("engine"),
        Throughput("engine", 100, 1.0, 8, 2, (800.0,), "NVIDIA H100"),
    ],
)
def test_table_refuses_a_speed_without_an_error(row):
    good = {"runtime": "eager", "median ms": 4.0, "max error": 0.0}
    message = (
        r"row 1 \(e\w+\) shows a speed but has no error or accuracy: add 'max error': "
        r"comparing.max_error\(reference\(feed\), run\(feed\)\), or 'accuracy': training.accuracy\(run, split\)"
    )
    with pytest.raises(BadInput, match=message):
        comparing.table([good, row])


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_an_empty_error_is_no_error(empty):
    with pytest.raises(BadInput, match="shows a speed but has only an empty 'accuracy'"):
        comparing.table([{"runtime": "engine", "median ms": 0.5, "accuracy": empty}])


@pytest.mark.parametrize(
    "column",
    [
        "fps",
        "qps",
        "FPS (mean)",
        "images per second",
        "per sec",
        "ms",
        "s",
        "µs",
        "Median (ms)",
        "median, ms",
        "median_s",
        "seconds",
        "wall seconds",
        "load latency ms",
        "building ms",
        "compile and run s",
        "items/sec",
        "floor ms",
        "error bars ms",
    ],
)
def test_every_spelling_of_a_speed_needs_an_error(column):
    with pytest.raises(BadInput, match=r"row 0 \(engine\) shows a speed but has no error or accuracy"):
        comparing.table([{"runtime": "engine", column: 1.0}])
    assert len(comparing.table([{"runtime": "engine", column: 1.0, "max error": 1e-3}])) == 1


@pytest.mark.parametrize(
    "column",
    [
        "build s",
        "load ms",
        "first call ms",
        "compile s",
        "export_s",
        "build (s)",
        "load, ms",
        "build time s",
        "compile seconds",
        "build",
        "first call",
        "spread",
        "file, MiB",
        "context, MiB",
        "second run, MiB",
        "the network's",
        "GPUs",
        "steps",
        "kernels",
        "most that fusion can gain",
        "error bars",
    ],
)
def test_what_is_paid_once_and_what_is_no_time_needs_no_error(column):
    assert len(comparing.table([{"runtime": "engine", column: 1.0}])) == 1


@pytest.mark.parametrize("text", ["unknown", "", "n/a", "nan", True, np.True_, [0.1, 0.2]])
def test_an_error_is_a_number(text):
    with pytest.raises(
        BadInput, match=r"row 0 \(engine\) shows a speed but has only .* in 'max error', where a number is wanted"
    ):
        comparing.table([{"runtime": "engine", "median ms": 0.5, "max error": text}])


@pytest.mark.parametrize("number", [0, 1e-3, math.inf, np.float32(0.1), "1e-3", "inf", "99.8 %", " 99.8% "])
def test_an_error_may_be_infinite_or_written_out(number):
    assert len(comparing.table([{"runtime": "engine", "median ms": 0.5, "max error": number}])) == 1


def test_error_bars_are_no_error():
    with pytest.raises(BadInput, match="shows a speed but has no error or accuracy"):
        comparing.table([{"runtime": "engine", "median ms": 0.5, "error bars": 0.1}])


@pytest.mark.parametrize(
    "row",
    [
        {"runtime": "engine", "nodes": 5},
        {"stage": "cold", "build s": 31.0},
        {"stage": "cold", "load ms": 18.0},
        {"runtime": "engine", "median ms": 0.5, "accuracy": 0.99},
        {"runtime": "x", "median ms": 1, "max error": math.inf},
    ],
)
def test_table_takes_rows_without_a_speed_and_judged_ones(row):
    assert len(comparing.table([row])) == 1


def test_table_refuses_to_mix_machines():
    rows = [{"latency": seen(), "max error": 0.0}, {"latency": seen(machine="Test CPU, 2 cores"), "max error": 0.0}]
    with pytest.raises(BadInput, match="row 0 ran on NVIDIA H100, row 1 on Test CPU, 2 cores; re-run one of them"):
        comparing.table(rows)


def test_table_refuses_to_mix_machines_that_rows_name():
    rows = [
        {"median ms": ms, "max error": 0.0, "machine": machine} for ms, machine in ((1, "NVIDIA H100"), (2, "Test CPU"))
    ]
    with pytest.raises(BadInput, match="row 0 ran on NVIDIA H100, row 1 on Test CPU; re-run one of them"):
        comparing.table(rows)
    assert len(comparing.table([rows[0], rows[0]])) == 2
    assert len(comparing.table([{"latency": seen(), "max error": 0.0, "machine": "the H100 box"}])) == 1


@pytest.mark.parametrize(
    "rows, message",
    [
        (None, r"rows is a NoneType; pass a list of mappings or measurements"),
        (seen(), "rows is a Latency; pass a list"),
        ({"max error": 0.0}, "rows is a dict; pass a list"),
        ("rows", "rows is a str; pass a list"),
        ([], "no rows to show; pass at least one"),
        ([3.0], "row 0 is a float; a row is a mapping of columns"),
    ],
)
def test_table_refuses_what_is_no_row(rows, message):
    with pytest.raises(BadInput, match=message):
        comparing.table(rows)
    with pytest.raises(BadInput, match=message):
        comparing.bars(rows)


# pictures


JUDGED = [{"latency": seen("eager", 4.0), "max error": 0.0}, {"latency": seen("engine", 0.5), "max error": 1e-3}]


def test_bars_show_values_errors_and_words():
    drawing = comparing.bars(JUDGED, title="ResNet-18")
    axes = drawing.figure.axes[0]
    assert drawing.text == "ResNet-18: bars of median ms: eager 4.0 (max error 0); engine 0.5 (max error 1.0e-03)."
    assert axes.get_xlim()[0] == 0 and axes.get_xlabel() == "median ms"
    assert [bar.get_width() for bar in axes.patches] == [4.0, 0.5]
    assert len({bar.get_hatch() for bar in axes.patches}) == 2  # legible without colour
    assert len(axes.containers) == 4  # two bars, two error bars


def test_bars_draw_other_columns_and_name_what_differs():
    rows = [{"latency": seen(batch=batch), "max error": 0.0} for batch in (1, 8)]
    assert "eager, batch 1 250" in comparing.bars(rows, column="items/s").text
    with pytest.raises(BadInput, match=r"row 0 has None in column 'watts'; draw a column .* 'median ms'"):
        comparing.bars(rows, column="watts")


def test_a_measured_bar_of_one_does_not_end_the_sentence_as_a_cut_off_number():
    rows = [{"name": "gemm", "gain": 1.18}, {"name": "n4096", "gain": round(0.998, 2)}]
    drawing = comparing.bars(rows, column="gain", same_answer=True)
    assert drawing.text == "bars of gain: gemm 1.18; n4096 1.0."
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == ["1.18", "1.0"]
    for value, written in ((3, "3"), (0.0, "0"), (36.0, "36"), (np.float64(2), "2.0"), (-1.0, "-1.0"), (0.5, "0.5")):
        drawing = comparing.bars([{"name": "a", "gain": value}], column="gain", same_answer=True)
        assert drawing.text.endswith(f"a {written}.")


def test_bars_need_an_error_too_unless_the_answer_is_one():
    clocks = [seen("engine", 1.0), seen("engine", 0.5, "device")]
    with pytest.raises(BadInput, match=r"row 0 \(engine\) shows a speed but has no error"):
        comparing.bars(clocks)
    assert "engine, device clock 0.5" in comparing.bars(clocks, same_answer=True).text


def test_pictures_are_small_and_carry_their_words(tmp_path):
    from PIL import Image

    for drawing in (comparing.bars(JUDGED), comparing.bars(JUDGED, title="again")):
        png = drawing._repr_png_()
        assert len(png) < 95_000
        (tmp_path / "picture.png").write_bytes(png)
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.text["Description"] == drawing.text and picture.width <= 1440
            assert picture.width == 2 * int(re.search(r'width="(\d+)"', drawing._repr_html_())[1])
        assert repr(drawing) == drawing.text and f">{drawing.text}</figcaption>" in drawing._repr_html_()
        assert f'<img alt="{drawing.text}"' in drawing._repr_html_()


def test_a_notebook_shows_the_picture_and_the_sentence(monkeypatch):
    IPython = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(IPython, "display", lambda data, metadata=None, raw=False: shown.append((data, metadata)))
    drawing = comparing.bars(JUDGED)
    drawing._ipython_display_()
    (picture, metadata), (words, _) = shown
    assert picture["image/png"].startswith("iVBOR") and metadata["image/png"]["alt"] == drawing.text
    assert metadata["image/png"]["width"] == 720
    assert words == {"text/plain": drawing.text}


def test_a_live_notebook_has_the_words_in_its_page(monkeypatch):
    """JupyterLab drops a picture's metadata, alternative text included."""
    IPython = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(IPython, "display", lambda data, raw=False: shown.append(data))
    stand_in(monkeypatch, environment, "headless", lambda: False)
    drawing = comparing.bars(JUDGED)
    drawing._ipython_display_()
    assert shown == [{"text/html": drawing._repr_html_(), "text/plain": drawing.text}]
