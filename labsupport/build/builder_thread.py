"""The builder at work: on a thread, so that Ctrl-C answers at once, with its progress shown and its log kept."""

from __future__ import annotations

import contextlib
import threading

from labsupport import environment, errors
from labsupport.errors import BadInput, BuildError


def logger(minimum: str = "INFO"):
    """A TensorRT logger that keeps its messages in ``.messages`` as (severity, text) instead of printing natively.

    TensorRT's own logger writes to the process's stderr, which JupyterLab shows and a test runner loses.
    """
    trt = environment.tensorrt()
    order = ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
    if minimum not in order:
        raise BadInput(f"minimum={minimum!r:.60} is no severity; choose one of {order}")

    class KeepingLogger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            self.messages: list[tuple[str, str]] = []

        def log(self, severity, text):
            level = severity.name
            if order.index(level) <= order.index(minimum):
                self.messages.append((level, text))

        def errors(self) -> list[str]:
            return [text for level, text in self.messages if level in order[:2]]

        def last_error(self) -> str:
            return (self.errors() or ["no reason given"])[-1]

    return KeepingLogger()


def build(trt, builder, network, config, stem: str, progress: bool):
    """Build on a thread so that Ctrl-C answers at once; from TensorRT 10 on it also stops the builder."""
    watch = _Watch()
    monitored = environment.generation() != "8.6"
    if monitored:
        config.progress_monitor = watch.monitor(trt)
    result: dict = {}
    begun, done = threading.Event(), threading.Event()

    def work():
        begun.set()
        try:
            result["plan"] = builder.build_serialized_network(network, config)
        except BaseException as error:  # handed to the caller's thread below
            result["error"] = error
        finally:
            done.set()

    bar = environment.bar(label=f"building {stem}", shown=progress)
    try:
        # Not a daemon: Python would end it inside TensorRT, and that ends the process with an abort.
        threading.Thread(target=work, name=f"build {stem}").start()
        while not done.wait(0.1):
            bar.total, bar.n = watch.total or None, watch.done
            bar.set_postfix_str(watch.phase, refresh=True)
        if result.get("plan") is not None:
            bar.finish()
    except KeyboardInterrupt:
        watch.cancelled = True
        if begun.wait(1):  # or the interrupt came before the thread did
            _leave(done, stem, monitored)
        raise
    finally:
        bar.close()
    if "error" in result:
        raise BuildError(f"{stem}: the builder stopped: {result['error']}") from result["error"]
    return result["plan"]


def _leave(done: threading.Event, stem: str, monitored: bool) -> None:
    """After Ctrl-C: wait until the builder has stopped, or say that it goes on."""
    if not monitored:
        errors.warn(f"TensorRT 8.6 cannot stop a build: {stem} goes on, and this process ends after it")
        return
    if not done.wait(1):
        errors.warn(f"interrupted; the builder of {stem} stops at its next step")
    while not done.is_set():
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: nothing may leave before the builder has
            done.wait(0.2)


class _Watch:
    """What the builder is doing, as TensorRT's IProgressMonitor reports it; and the wish to stop."""

    def __init__(self):
        self.phase, self.done, self.total, self.cancelled = "", 0, 0, False

    def monitor(self, trt):
        watch = self

        class Monitor(trt.IProgressMonitor if environment.generation() != "8.6" else object):
            def __init__(self):
                super().__init__()

            def phase_start(self, phase_name, parent_phase, num_steps):
                watch.phase, watch.total = phase_name, watch.total + num_steps

            def step_complete(self, phase_name, step):
                watch.done += 1
                return not watch.cancelled

            def phase_finish(self, phase_name):
                watch.phase = ""

        return Monitor()
