"""The builder's sums, read from its log as two generations write it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labsupport import footprint
from labsupport.errors import BadInput

OLD = [
    "Total Host Persistent Memory: 330960",
    "Total Device Persistent Memory: 0",
    "Total Scratch Memory: 4194304",
    "[BlockAssignment] Algorithm ShiftNTopDown took 0.01ms to assign 3 blocks to 9 nodes requiring 12582912 bytes.",
    "Total Activation Memory: 12582912",
]
NEW = [
    "Max Scratch Memory: 8388608 bytes",
    "Total Activation Memory: 8388608 bytes",
    "Total Weights Memory: 54525952 bytes",
]


def engine(tmp_path, texts=(), kept=None):
    path = tmp_path / "net.plan"
    if kept is not None:
        path.with_suffix(".log").write_text("\n".join(f"{'INFO':8} {text}" for text in kept), encoding="utf-8")
    return SimpleNamespace(name="net", path=path, log=tuple(("INFO", text) for text in texts))


@pytest.mark.parametrize(
    ("texts", "sums", "said"),
    [
        (OLD, (None, 12, 4), "Bill(net: activations 12.0 MiB, scratch 4.0 MiB)"),
        (NEW, (52, 8, 8), "Bill(net: weights 52.0 MiB, activations 8.0 MiB, scratch 8.0 MiB)"),
    ],
)
def test_the_sums_of_two_generations(tmp_path, texts, sums, said):
    for made in (
        engine(tmp_path, texts),
        engine(tmp_path, kept=texts),
    ):  # fresh, and found again with its log beside it
        bill = footprint.bill(made)
        assert (bill.weights_mib, bill.activations_mib, bill.scratch_mib) == sums
        assert repr(bill) == said


def test_a_log_that_is_gone_or_tells_nothing_is_named(tmp_path):
    with pytest.raises(
        BadInput, match="net: the builder's log, net.log, is gone; build the engine again with rebuild=True"
    ):
        footprint.bill(engine(tmp_path))
    with pytest.raises(
        BadInput, match="net: net.log has none of the builder's sums, such as 'Total Activation Memory'; build"
    ):
        footprint.bill(engine(tmp_path, kept=["Engine generation completed in 0.6 seconds."]))
