"""What the progress bar of a build counts, and how a build hears that it is to stop."""

from __future__ import annotations

from types import SimpleNamespace

from labsupport.build import builder_thread


def test_the_monitor_counts_what_the_builder_did_and_tells_it_to_stop():
    watch = builder_thread._Watch()
    monitor = watch.monitor(SimpleNamespace(IProgressMonitor=object))
    assert (watch.phase, watch.done, watch.total) == ("", 0, 0)
    monitor.phase_start("tactics", None, 3)
    going = [monitor.step_complete("tactics", step) for step in range(2)]
    monitor.phase_start("inner", "tactics", 4)
    assert (watch.phase, watch.done, watch.total) == ("inner", 2, 7) and going == [True, True]
    monitor.phase_finish("inner")
    watch.cancelled = True
    assert monitor.step_complete("tactics", 2) is False and (watch.phase, watch.done) == ("", 3)
