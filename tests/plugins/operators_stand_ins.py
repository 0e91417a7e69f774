"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import pytest

from labsupport import environment

needs_rtx = pytest.mark.skipif(environment.generation() != "rtx", reason="TensorRT-RTX is not installed")
