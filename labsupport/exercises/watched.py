"""A runtime that is watched while a learner measures it: what was fed, how often, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from labsupport.exercises.answers import Wrong, described

ABOUT = 3.0  # a reported median may differ by this factor from what was watched


class Watched:
    """Answers as ``run`` does, under its name and on its device, and keeps account of its calls."""

    def __init__(self, run: Any, name: str = ""):
        self._run, self.calls = run, []
        self.name = name or str(getattr(run, "name", "the network"))

    def __call__(self, feed: Any) -> Any:
        begun = time.perf_counter()
        answer = self._run(feed)
        self.calls.append((feed, (time.perf_counter() - begun) * 1e3))
        return answer

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_run":
            raise AttributeError(attribute)
        return getattr(self._run, attribute)

    def judge(self, measured: Any, *, items: int, least: int, what: str = "run") -> None:
        """Wrong unless ``measured`` is a Latency of this runtime, of ``items`` different items, by ``least`` calls."""
        from labsupport.benchmarking.measurements import Latency

        if not isinstance(measured, Latency):
            raise Wrong(
                f"that gave {described(measured)}; wanted is the whole Latency. A bare number has forgotten its "
                "clock, its batch and its spread."
            )
        count = len(measured.samples_ms)
        if not self.calls:
            raise Wrong(f"`{what}` was never called: what was measured is something else.")
        if len(self.calls) < count:
            raise Wrong(
                f"the Latency holds {count} samples, and `{what}` was called {len(self.calls)} times: was it measured?"
            )
        whole = [(feed, ms) for feed, ms in self.calls if _items(feed) == items]
        if len(whole) < count or measured.batch != items:
            others = {_items(feed) for feed, _ in self.calls} - {items}
            seen = ", ".join(map(str, sorted(others))) or str(measured.batch)
            raise Wrong(f"a call had {seen} item{'s' * (seen != '1')} in it; feed {items} at once.")
        if _different(whole[0][0]) < 0.8 * items:
            raise Wrong(f"the {items} items of a call are the same few again and again; feed the real ones.")
        if count < least:
            raise Wrong(
                f"{count} calls are few; measure at least {least}, since one busy moment of the machine would pass "
                "for the network's speed."
            )
        seen_ms = sorted(ms for _, ms in whole)[len(whole) // 2]
        if measured.clock == "host" and not seen_ms / ABOUT - 0.05 < measured.median_ms < seen_ms * ABOUT + 0.5:
            raise Wrong(
                f"the median is {measured.median_ms:.3g} ms, and its calls were seen to take {seen_ms:.3g} ms: that is "
                f"not the time of `{what}` alone."
            )


def _arrays(feed: Any) -> list:
    return list(feed.values()) if isinstance(feed, Mapping) else [feed]


def _items(feed: Any) -> int:
    shape: tuple = getattr(_arrays(feed)[0], "shape", ())
    return int(shape[0]) if len(shape) else 1


def _different(feed: Any) -> int:
    """How many different items a feed holds."""
    import numpy as np

    first = _arrays(feed)[0]
    array = first.detach().cpu().numpy() if hasattr(first, "detach") else np.asarray(first)
    return len({row.tobytes() for row in array})
