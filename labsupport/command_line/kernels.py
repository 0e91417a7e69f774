"""Kernels that crash, loop or flood: seen within seconds, in bounded memory; for `run`, and as a plugin for nbval."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from queue import Empty

from labsupport.errors import LabError

MOST_TEXT = 1_000_000  # characters that are kept of what one cell prints
MOST_OUTPUTS = 2_000
MOST_DATA = 20_000_000  # characters of tables and pictures that are kept of one cell
MOST_ERROR = 20_000  # and of its error
LOOK_S = 2.0  # how often a silent kernel is asked whether it lives
DRAIN_S = 60.0  # for the rest of a cell's output, when the cell has ended or was interrupted


def left_out(most: int) -> str:
    """What stands in the place of what is beyond a limit."""
    return f"\n… more than {most:,} characters: the rest was left out\n"


LEFT_OUT = left_out(MOST_TEXT)


class Quota:
    """How much one cell has printed; what is beyond the limit is dropped."""

    def __init__(self):
        self.text, self.data, self.outputs = 0, 0, 0

    def admit(self, message: dict) -> bool:
        """Whether the message is kept; its text may be cut."""
        self.outputs += 1
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            room = MOST_TEXT - self.text
            self.text += len(content["text"])
            if self.text > MOST_TEXT:
                content["text"] = content["text"][: max(0, room)] + LEFT_OUT * (room >= 0)
            return room >= 0
        if kind == "error":
            content["evalue"] = _cut(content["evalue"])
            content["traceback"] = _cut("\n".join(content["traceback"])).split("\n")
        elif isinstance(content.get("data"), dict):
            self.data += sum(len(str(value)) for value in content["data"].values())
            if self.data > MOST_DATA:
                content["data"] = {"text/plain": left_out(MOST_DATA)}
        return self.outputs <= MOST_OUTPUTS or kind in ("error", "status")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_ERROR else text[:MOST_ERROR] + left_out(MOST_ERROR)


def merged(outputs: list) -> list:
    """Outputs with one stream of each name, as nbclient merges them, in time that grows with the length only."""
    kept: list = []
    streams: dict[str, tuple] = {}
    for output in outputs:
        if output["output_type"] != "stream":
            kept.append(output)
        elif output["name"] in streams:
            streams[output["name"]][1].append(output["text"])
        else:
            kept.append(output)
            streams[output["name"]] = (output, [output["text"]])
    for output, texts in streams.values():
        output["text"] = "\n".join(_overwritten(line) for line in "".join(texts).split("\n"))
    for place, (first, second) in enumerate(zip(kept, kept[1:])):
        if (first.get("name"), second.get("name")) == ("stderr", "stdout"):
            kept[place : place + 2] = second, first
    return kept


def _overwritten(line: str) -> str:
    """What a terminal shows of a line in which carriage returns go back to its start."""
    body = line.rstrip("\r")
    return body.rpartition("\r")[2] + line[len(body) :]


def client_class():
    """An nbclient that drops floods, and that a signal ends."""
    from nbclient import NotebookClient

    class Client(NotebookClient):
        """`stopped` is the signal that ended the run, or None."""

        stopped = None

        async def async_start_new_kernel(self, **kwargs) -> None:
            self._hear_signals()  # in place of nbclient's own answer, which ends in an AssertionError
            await super().async_start_new_kernel(**kwargs)

        def _hear_signals(self) -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            loop.set_exception_handler(lambda *_: None)  # who still waits for a kernel that was ended says nothing new

            def stop(number):
                if self.stopped is None and task is not None:
                    self.stopped, self.shutdown_kernel = number, "immediate"
                    task.cancel()

            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, stop, number)

        async def async_execute_cell(self, cell, cell_index, **options):
            self._quota = Quota()
            return await super().async_execute_cell(cell, cell_index, **options)

        def output(self, outs, msg, display_id, cell_index):
            return super().output(outs, msg, display_id, cell_index) if self._quota.admit(msg) else None

    return Client


def raise_if_stopped(client) -> None:
    """KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM, as the shell expects them."""
    if client.stopped == signal.SIGINT:
        raise KeyboardInterrupt
    if client.stopped is not None:
        raise SystemExit(128 + client.stopped)


def pytest_configure(config) -> None:
    """As a plugin of pytest (`-p labsupport.command_line.kernels`): nbval's kernels are watched in the same way."""
    import nbval.kernel
    import nbval.plugin

    def get_message(self, stream, timeout=None):  # nbval's own writes each message out for a log that nobody reads
        if stream == "shell":
            self.quota, self.drained_until = Quota(), None
            return _reply(self, timeout)
        if self.held:
            return self.held.popleft()
        self.drained_until = self.drained_until or time.monotonic() + DRAIN_S
        if time.monotonic() > self.drained_until:
            self.km.shutdown_kernel(now=True)
            raise LabError(f"the cell went on printing for {DRAIN_S:.0f} s after its end; its kernel was ended")
        message = _message(self, self.kc.get_iopub_msg, timeout)
        if not self.quota.admit(message):
            message["content"] = {"name": "stdout", "text": ""}
            message["msg_type"] = "stream"
        return message

    original = nbval.kernel.RunningKernel.__init__

    def begin(self, *args, **options):
        self.quota, self.drained_until, self.held = Quota(), None, deque()
        original(self, *args, **options)

    nbval.kernel.RunningKernel.__init__ = begin
    nbval.kernel.RunningKernel.get_message = get_message
    nbval.plugin.coalesce_streams = merged


def _reply(kernel, timeout: float | None):
    """The kernel's answer; what the cell prints meanwhile is taken off its hands, or it would pile up unread."""
    end = time.monotonic() + (timeout if timeout is not None else float("inf"))
    while True:
        until = time.monotonic() + LOOK_S
        with contextlib.suppress(Empty):
            while time.monotonic() < until:
                message = kernel.kc.get_iopub_msg(timeout=0)
                if kernel.quota.admit(message):
                    kernel.held.append(message)
        with contextlib.suppress(Empty):
            return kernel.kc.get_shell_msg(timeout=max(0.0, min(0.1, end - time.monotonic())))
        if time.monotonic() >= end:
            raise Empty
        _demand_life(kernel)


def _message(kernel, read, timeout: float | None):
    """The next message; LabError when the kernel has died meanwhile, which nbval would notice at the cell's limit."""
    end = time.monotonic() + (timeout if timeout is not None else float("inf"))
    while True:
        left = end - time.monotonic()
        try:
            return read(timeout=max(0.0, min(LOOK_S, left)))
        except Empty:
            _demand_life(kernel)
            if left <= LOOK_S:
                raise


def _demand_life(kernel) -> None:
    if not kernel.is_alive():
        raise LabError("the kernel died (a crash in native code, or out of memory)")
