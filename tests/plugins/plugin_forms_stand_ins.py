"""Stand-ins that more than one file of these tests uses."""

from __future__ import annotations

import types

import pytest

from labsupport import environment

needs_rtx = pytest.mark.skipif(environment.generation() != "rtx", reason="TensorRT-RTX is not installed")


class Registry:
    def __init__(self, takes=True):
        self.takes, self.loaded, self.creators, self.removed = takes, [], [], []
        self.all_creators = [types.SimpleNamespace(name="B"), types.SimpleNamespace(name="A")]

    def load_library(self, path):
        self.loaded.append(path)
        return object() if self.takes else None

    def deregister_creator(self, creator):
        self.removed.append(creator)
        return self.takes

    def register_creator(self, creator, namespace):
        self.creators.append((creator, namespace))
        return self.takes
