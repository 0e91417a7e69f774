"""The sandbox: every way a program can end is told apart, and whatever it was, nothing stays behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from labsupport.errors import BadInput, NotAvailable
from labsupport.listings import sandbox

POSIX = pytest.mark.skipif(os.name != "posix", reason="sessions and limits of POSIX")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """Scratch folders are made here, so that a test sees whether one is left."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert list(place.iterdir()) == [], "a scratch folder was left behind"


@pytest.mark.parametrize("code, kind, said", [
    ("print('hello')", "ok", "runs"),
    ("1 / 0", "raised", "line 1: ZeroDivisionError: division by zero"),
    ("\n\nx = unknown", "raised", "line 3: NameError: name 'unknown' is not defined"),
    ("x = (1", "raised", "line 1: SyntaxError: '(' was never closed"),
    ("import sys\nsys.exit(2)", "raised", "line 2: SystemExit: 2"),
    ("exit()", "ok", "runs"),
    ("raise KeyboardInterrupt", "raised", "line 1: KeyboardInterrupt: "),
    ("import os; os._exit(4)", "died", "died: exit code 4; its last words: none"),
    ("import nothing_of_that_name", "raised", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ("input()", "raised", "line 1: EOFError: EOF when reading a line"),
    ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "raised", "line 3: E: (its text cannot be had)"),
    ("", "ok", "runs"),
])  # fmt: skip
def test_each_ending_is_told_apart(code, kind, said):
    outcome = sandbox.python(code)
    assert (outcome.kind, repr(outcome)) == (kind, said) and outcome.ok == (kind == "ok")


def test_what_is_printed_is_kept_and_cut():
    assert sandbox.python("print('a'); import sys; print('b', file=sys.stderr)").printed.split() == ["a", "b"]
    assert len(sandbox.python("print('x' * 10**6)").printed) <= sandbox.MOST_TEXT


@pytest.mark.parametrize("code", ["while True: pass", "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
                                  "import threading\nthreading.Thread(target=lambda: threading.Event().wait()).start()",
                                  "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(99)"])  # fmt: skip
def test_a_program_that_never_ends_is_stopped(code):
    threaded = "Thread" in code  # its main thread ends, and the child ends with it
    started = time.monotonic()
    outcome = sandbox.python(code, seconds=60 if threaded else 1)
    assert repr(outcome) == ("runs" if threaded else "hung: it did not end within its limit, so it was stopped")
    assert time.monotonic() - started < 50


FAKE_TENSORRT = """
import os
def build(*said):
    for line in said:
        os.write(2, f"[12/01/2026-02:50:08] [TRT] {line}\\n".encode())  # as the library does, past Python's streams
"""
FIRST, LAST = "[E] 3: [builder.cpp::check::41] the cause", "[E] 4: [network.cpp::validate::3062] no format fits"


@pytest.mark.parametrize("said, end, told", [
    ([FIRST, LAST], "assert plan is not None", "AssertionError: 4: [network.cpp::validate::3062] no format fits"),
    ([LAST, FIRST, "[W] slow"], "assert plan is not None", "AssertionError: 3: [builder.cpp::check::41] the cause"),
    (["[F] out of memory", "[I] done"], "raise ValueError", "ValueError: out of memory"),
    (["[E] " + "x" * 999], "assert plan is not None", "AssertionError: " + "x" * 400),
    ([LAST], "assert plan is not None, 'no plan'", "AssertionError: no plan"),
    (["[W] slow"], "assert plan is not None", "AssertionError: "),
])  # fmt: skip
def test_a_bare_assert_says_the_builders_last_error(tmp_path, monkeypatch, said, end, told):
    (tmp_path / "fake_tensorrt.py").write_text(FAKE_TENSORRT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = f"import tensorrt as trt\nplan = trt.build(*{said!r})\n{end}"
    outcome = sandbox.python(program, modules={"tensorrt": "fake_tensorrt"})
    assert (outcome.kind, repr(outcome)) == ("raised", f"line 3: {told}")
    assert said[0] in outcome.printed


def test_a_program_that_runs_says_no_error_of_the_builder():
    assert sandbox.python("import os; os.write(2, b'[TRT] [E] 2: tried another kernel\\n')").message == ""


def test_files_of_its_own_are_told_and_removed():
    outcome = sandbox.python(
        "import os\nos.mkdir('a')\nopen('a/b.txt', 'w').write('x')\nopen('c', 'wb').close()\nos.rename('c', 'd')"
    )
    assert outcome.ok and outcome.files == ("a/b.txt", "d")


@pytest.mark.parametrize("code, what", [
    ("open({there!r}, 'w')", "write outside its folder"), ("open({there!r}, 'a')", "write outside"), ("open({there!r}, 'x')", "write outside"),
    ("from pathlib import Path; Path({there!r}).write_text('x')", "write outside"), ("import os; os.open({there!r}, os.O_CREAT | os.O_WRONLY)", "write outside"),
    ("open('../up.txt', 'w')", "write outside"), ("import os; os.symlink({folder!r}, 'way'); open('way/new.txt', 'w')", "change files outside"),
    ("import os; os.remove({kept!r})", "change files outside"), ("import os; os.rename({kept!r}, 'mine')", "change files outside"),
    ("import shutil; shutil.rmtree({folder!r})", "change files outside"), ("import os; os.mkdir({there!r})", "change files outside"),
    ("import os; os.chmod({kept!r}, 0)", "change files outside"), ("import os; os.truncate({kept!r}, 0)", "change files outside"),
    ("import sqlite3; sqlite3.connect({there!r}).execute('create table t (a)')", "change files outside"),
    ("import os; os.system('echo x')", "start another process"), ("import subprocess; subprocess.run(['echo'])", "start another process"),
    ("import multiprocessing as m\nm.get_context('fork').Process(target=print).start()", "start another process"),
    ("import socket; socket.create_connection(('127.0.0.1', 9))", "reach the network"),
    ("import urllib.request; urllib.request.urlopen('http://example.org')", "reach the network"),
    ("import os; os.kill(os.getppid(), 9)", "signal another process"),
])  # fmt: skip
@POSIX
def test_what_is_not_its_own_is_refused(code, what, tmp_path):
    kept, there = tmp_path / "kept.txt", tmp_path / "new.txt"
    kept.write_text("here")
    outcome = sandbox.python(code.format(there=str(there), kept=str(kept), folder=str(tmp_path)))
    assert outcome.kind == "refused" and what in outcome.message, outcome
    assert kept.read_text() == "here" and not there.exists()


def test_a_refusal_that_the_program_swallows_is_told_all_the_same(tmp_path):
    outcome = sandbox.python(
        f"try:\n    open({str(tmp_path / 'x')!r}, 'w')\nexcept Exception:\n    pass\nprint('all fine')"
    )
    assert outcome.kind == "refused" and outcome.printed.strip() == "all fine"


def test_reading_is_allowed(tmp_path):
    (tmp_path / "data.txt").write_text("7")
    assert sandbox.python(f"print(open({str(tmp_path / 'data.txt')!r}).read())").printed.strip() == "7"


def test_secrets_of_the_environment_do_not_reach_the_child(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert sandbox.python(
        "import os; print(os.environ.get('SOME_TOKEN'), os.environ['HOME'] == os.getcwd())"
    ).printed.split() == ["None", "True"]


def test_given_names_and_a_module_under_another_name():
    outcome = sandbox.python(
        "import tensorrt as trt\nprint(trt.sqrt(four))", modules={"tensorrt": "math"}, given={"four": 4}
    )
    assert outcome.printed.strip() == "2.0"
    assert (
        repr(sandbox.python("import tensorrt\ntensorrt.Server", modules={"tensorrt": "math"}))
        == "line 2: AttributeError: module 'tensorrt' has no attribute 'Server'"
    )


STAND_IN = """
import tensorflow as tf
import tensorflow.keras.backend as K
from tensorflow.keras import layers
model = tf.keras.Sequential([layers.Dense(3)])
with tf.device('/GPU:0'):
    model.layers[0].trainable = True
assert list(model.weights) == []
tf.DeviceMemory
"""


def test_a_stand_in_has_every_name_but_the_ones_it_lacks():
    outcome = sandbox.python(STAND_IN, stand_ins={"tensorflow": ["tensorflow.DeviceMemory"]})
    assert repr(outcome) == "line 9: AttributeError: module 'tensorflow' has no attribute 'DeviceMemory'"
    assert sandbox.python(STAND_IN, stand_ins={"tensorflow": []}).ok


@pytest.mark.parametrize("arguments, said", [
    ({"code": 3}, "code=3; wanted text"), ({"code": None}, "code=None; wanted text"), ({"code": "x", "seconds": 0}, "a limit above 0"),
    ({"code": "x", "seconds": True}, "seconds=True; wanted a number such as"), ({"code": "x", "seconds": "5"}, "seconds='5'; wanted a number such as"), ({"code": "x", "seconds": 1e9}, "at most 600"),
])  # fmt: skip
def test_bad_requests_are_refused(arguments, said):
    with pytest.raises(BadInput, match=said):
        sandbox.python(**arguments)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_shell_lines():
    assert sandbox.shell("export A=1\ntest $A = 1").ok
    assert repr(sandbox.shell("false")) == "exit code 1: "
    assert sandbox.shell("sleep 30", seconds=1).kind == "hung"
    assert sandbox.shell("python -c 'import sys; print(sys.version_info[0])'").printed.strip() == "3"
    assert "setup.py" in sandbox.shell("python setup.py build\npython setup.py install").message
    assert sandbox.shell("echo x > made.txt").files == ("made.txt",)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_pip_neither_reaches_out_nor_installs():
    pytest.importorskip("pip")
    outcome = sandbox.shell("pip install no-package-of-this-name", seconds=60)
    assert not outcome.ok and "No matching distribution" in outcome.message


@POSIX
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_what_a_shell_leaves_running_is_ended(tmp_path):
    mark = tmp_path / "mark"
    assert sandbox.shell(f"(while true; do echo x >> {mark}; sleep 0.1; done) &\nsleep 0.5").ok
    size = mark.stat().st_size
    time.sleep(0.5)
    assert mark.stat().st_size == size


def test_without_bash_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotAvailable, match="there is no bash"):
        sandbox.shell("true")


@POSIX
def test_an_interrupt_ends_the_child(tmp_path, monkeypatch):
    import subprocess

    started = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.python("while True: pass")
    assert started[0].returncode is not None


def test_the_child_is_this_python():
    assert Path(sandbox.python("import sys; print(sys.executable)").printed.strip()).name in (
        Path(sys.executable).name,
        "python",
    )


def test_packages_that_pythonpath_names_are_there_and_this_workbook_is_not(tmp_path, monkeypatch):
    (tmp_path / "beside_site.py").write_text("answer = 42")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(sandbox.__file__).parents[2]), "nowhere"])
    )
    assert sandbox.python("import beside_site; print(beside_site.answer)").printed.strip() == "42"
    assert str(Path(sandbox.__file__).parents[2]) not in sandbox._package_folders()
