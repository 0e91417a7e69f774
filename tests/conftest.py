"""Every test gets a cache, a key, a progress file and torch's dice of its own and one thread: none depends on another.

All of it is set per test, never at import: nbval runs the notebooks in the same process, and their kernels inherit
what it holds (LABSUPPORT_METRICS among it).
"""

from __future__ import annotations

import re
import sys

import pytest

# What took two seconds or more by itself, in the longest durations of a whole run: `test --fast` leaves it out.
SLOW = re.compile(
    r"tests/quantization/test_(modelopt_road|qat|qdq\w*)\.py|tests/tools/|tests/fusion/test_backend_corpus"
    r"|dynamo\]|test_raw_pixels_goes_wrong|test_autocast_keeps|test_modelopt_computes|articles_network_reads"
    r"|test_road_signs_can_be_learned|test_a_frozen_network_is_pruned|tests/command_line/test_running"
    r"|tests/placement/test_(dispatch|transfers)|tests/house/test_(types|style|examples)|tests/serving/|tests/faults/|tests/phone/|tests/language/test_language_parallel"
    r"|tests/browser/"
)


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW.search(item.nodeid):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LABSUPPORT_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("LABSUPPORT_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if sys.version_info < (
        3,
        12,
    ):  # as environment.packages.settle_distutils, for tests that import modelopt themselves
        monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    for variable in ("LABSUPPORT_READY", "LABSUPPORT_METRICS"):  # the command that runs these tests sets them
        monkeypatch.delenv(variable, raising=False)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        sys.modules["torch"].manual_seed(0)
