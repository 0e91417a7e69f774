"""Run by every kernel that `lab` starts (PYTHONSTARTUP): two errors that newcomers meet are said in plain words."""

import os

_AGAIN = "Run the cells above first: menu Run > Run All Above Selected Cell."
_STOPPED = "KeyboardInterrupt: this cell was stopped. Run it again before you go on."


def _plain(shell, kind, error, trace, tb_offset=None):
    """Show a NameError of the cell itself with one line of advice, and an interrupt in one line."""
    if issubclass(kind, KeyboardInterrupt):
        lines = [_STOPPED]
    else:
        lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        frames = []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        if frames and frames[-1].f_globals is shell.user_global_ns:
            lines = [*lines, _AGAIN]
    shell._showtraceback(kind, error, lines)
    return lines


try:
    get_ipython().set_custom_exc((NameError, KeyboardInterrupt), _plain)  # type: ignore[name-defined]
except NameError:  # a plain Python in a terminal of JupyterLab
    pass

_own = os.environ.get("LABSUPPORT_STARTUP")
if _own and os.path.isfile(_own):
    with open(_own, encoding="utf-8") as _file:
        exec(compile(_file.read(), _own, "exec"))
del _own
