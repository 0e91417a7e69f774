"""The command line: what each command runs, and its exit codes; no server and no installation is started."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from labsupport import environment
from labsupport.command_line import cli, installation, testing, weights
from labsupport.command_line.findings import Finding, Report
from labsupport.errors import BadInput


@pytest.fixture(autouse=True)
def fetched(monkeypatch):
    """Nothing is downloaded in a test; how often the weights were asked for."""
    asked = []
    monkeypatch.setattr(weights, "ensure", lambda: asked.append("weights"))
    return asked


@pytest.fixture
def here(monkeypatch):
    """An environment that already has everything."""
    monkeypatch.setattr(installation, "lacking", lambda command: [])
    monkeypatch.setattr(installation.Installation, "read_stamp", lambda self: {})


@pytest.fixture
def started(monkeypatch):
    """Commands that would have been started; the code that they exit with is `started.code`."""

    class Started(list):
        code = 0

    calls = Started()

    class Child:
        def __init__(self, command, **options):
            calls.append((command, options))

        def wait(self):
            return calls.code

    monkeypatch.setattr(cli.subprocess, "Popen", Child)
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000, raising=False)
    calls.snapshots = []
    calls.copies = []
    monkeypatch.setattr("labsupport.exercises.shipped.snapshot", lambda: calls.snapshots.append(len(calls)))
    monkeypatch.setattr("labsupport.exercises.shipped.worked_in", lambda: [])
    monkeypatch.setattr(
        "labsupport.exercises.own_copies.folder_to_open", lambda: calls.copies.append(len(calls)) or ("work", "")
    )
    return calls


def fake_module(monkeypatch, name, **members):
    module = types.ModuleType(f"labsupport.{name}")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, f"labsupport.{name}", module)
    parent = sys.modules["labsupport" if "." not in name else f"labsupport.{name.rpartition('.')[0]}"]
    monkeypatch.setattr(parent, name.rpartition(".")[2], module, raising=False)


def test_lab_opens_the_first_notebook(here, started):
    assert cli.main(["lab", "--no-browser", "--port", "8900"]) == 0
    command, options = started[0]
    assert command == [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={cli.REPOSITORY}",
        "--LabApp.default_url=/lab/tree/work/00_start_here.ipynb",
        "--no-browser",
        "--port=8900",
    ]
    assert options["cwd"] == cli.REPOSITORY
    assert options["env"]["PYTHONPATH"].startswith(str(cli.REPOSITORY))


def test_lab_keeps_the_shipped_notebooks_before_anybody_can_edit_them(here, started):
    cli.main(["lab"])
    assert started.snapshots == [0], "the snapshot was not taken, or only after JupyterLab had started"
    assert started.copies == [0]


def test_kernels_of_lab_say_two_errors_plainly_and_run_the_learners_own_startup(here, started, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "mine.py")
    cli.main(["lab"])
    variables = started[0][1]["env"]
    assert Path(variables["PYTHONSTARTUP"]).name == "kernel_startup.py" and Path(variables["PYTHONSTARTUP"]).is_file()
    assert variables["LABSUPPORT_STARTUP"] == "mine.py"
    monkeypatch.setenv("PYTHONSTARTUP", variables["PYTHONSTARTUP"])  # in a terminal of JupyterLab
    cli.main(["lab"])
    assert "LABSUPPORT_STARTUP" not in started[1][1]["env"], "the file would run itself for ever"


def test_a_learners_own_notebooks_are_left_out_of_the_tests(here, started, monkeypatch, capsys):
    fake_module(monkeypatch, "recordings", check_live=lambda folder, speeds: [])
    monkeypatch.setattr("labsupport.exercises.shipped.worked_in", lambda: ["01_measuring.ipynb"])
    cli.main(["test"])
    assert "--ignore=notebooks/01_measuring.ipynb" in started[0][0]
    assert "left out, because you have worked in them: 01_measuring.ipynb" in capsys.readouterr().err


def test_lab_keeps_jupyters_token_and_address(here, started):
    cli.main(["lab"])
    assert not any("token" in word or "ip=" in word for word in started[0][0])


def test_further_arguments_go_to_jupyterlab(here, started):
    cli.main(["lab", "--allow-root", "--no-browser"])
    assert started[0][0][5:] == ["--no-browser", "--allow-root"]


def test_root_gets_jupyterlabs_permission_and_is_told(here, started, monkeypatch, capsys):
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0, raising=False)
    cli.main(["lab"])
    cli.main(["lab", "--allow-root"])
    assert [command.count("--allow-root") for command, _ in started] == [1, 1]
    said = capsys.readouterr().err
    assert (
        said.startswith("labsupport: you are root, so JupyterLab is started with --allow-root")
        and "runs as root" in said
    )


def test_windows_has_no_root(here, started, monkeypatch):
    monkeypatch.delattr(cli.os, "geteuid", raising=False)
    assert cli.main(["lab"]) == 0
    assert "--allow-root" not in started[0][0]


def test_what_jupyterlab_starts_does_not_think_it_was_installed_just_now(here, started, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_READY", "1")
    cli.main(["lab"])
    assert "LABSUPPORT_READY" not in started[0][1]["env"] and "LABSUPPORT_READY" not in os.environ


def test_test_is_one_pytest_and_then_the_bands(here, started, monkeypatch):
    seen = []
    fake_module(monkeypatch, "recordings", check_live=lambda folder, speeds: seen.append(folder) or [])
    assert cli.main(["test", "-k", "fusion", "-x"]) == 0
    ((command, options),) = started
    assert (
        command[1:9]
        == (
            "-m pytest -p labsupport.command_line.kernels --nbval-lax --nbval-current-env --nbval-cell-timeout=300 "
            "--nbval-kernel-startup-timeout=120"
        ).split()
    )
    assert command[command.index("-k") :][:3] == ["-k", "fusion", "-x"] and command[-2:] == ["tests", "notebooks"]
    assert options["env"]["IPYKERNEL_CELL_NAME"] == "<cell>"
    assert options["env"]["LABSUPPORT_METRICS"] == str(seen[0])


def test_a_metric_outside_its_band_fails_the_tests(here, started, monkeypatch, capsys):
    fake_module(monkeypatch, "recordings", check_live=lambda folder, speeds: ["lab01.x = 3 left its band 1..2"])
    assert cli.main(["test"]) == 1
    assert "FAILED lab01.x = 3 left its band 1..2" in capsys.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 5])
def test_pytests_exit_code_is_kept(here, started, monkeypatch, code):
    fake_module(monkeypatch, "recordings", check_live=lambda folder, speeds: [])
    started.code = code
    assert cli.main(["test"]) == code


def test_paths_replace_the_default_ones():
    assert testing.command(["tests/command_line/test_cli.py::test_x", "-q"])[-2:] == [
        "tests/command_line/test_cli.py::test_x",
        "-q",
    ]
    assert "tests" in testing.command(["-k", "nothing-like-a-path"])


class Result:
    def __init__(self, ok):
        self.ok = ok

    def as_dict(self):
        return {"lab": "01_measuring", "ok": self.ok}


@pytest.mark.parametrize("ok", [True, False])
def test_run_passes_its_options_on_and_fails_with_a_lab(here, monkeypatch, capsys, ok):
    calls = []
    fake_module(
        monkeypatch, "command_line.running", run=lambda labs, **options: calls.append((labs, options)) or [Result(ok)]
    )
    assert cli.main(["run", "01", "02", "--json", "--save", "out"]) == (0 if ok else 1)
    assert calls == [(["01", "02"], {"save": Path("out"), "store": False, "processor": False, "echo": None})]
    assert json.loads(capsys.readouterr().out) == {"ok": ok, "labs": [{"lab": "01_measuring", "ok": ok}]}


def test_record_stores(here, monkeypatch):
    calls = []
    fake_module(monkeypatch, "command_line.running", run=lambda labs, **options: calls.append(options["store"]) or [])
    assert cli.main(["record"]) == 0
    assert calls == [True]


def test_an_error_on_purpose_is_one_line(here, monkeypatch, capsys):
    def refuse(labs, **options):
        raise BadInput("'99' is not a lab; choose from: 00_start_here")

    fake_module(monkeypatch, "command_line.running", run=refuse)
    assert cli.main(["run", "99"]) == 1
    assert capsys.readouterr().err == "labsupport: '99' is not a lab; choose from: 00_start_here\n"


@pytest.mark.parametrize("words", [["examine", "x" * 300], ["test", "x" * 300 + ".py"]])
def test_a_name_that_no_file_can_have_is_one_line(here, capsys, words):
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("labsupport: ") and "too long" in said and said.count("\n") == 1 and len(said) < 400


def test_ctrl_c_is_one_line(here, monkeypatch, capsys):
    def interrupted(labs, **options):
        raise KeyboardInterrupt

    fake_module(monkeypatch, "command_line.running", run=interrupted)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == "labsupport: interrupted\n"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("problem", 1)])
def test_doctor_prints_text_or_json(here, monkeypatch, capsys, status, code):
    report = Report((Finding("Disk", "x", status, "tidy" if code else ""),))
    monkeypatch.setattr("labsupport.command_line.doctor.examine", lambda: report)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out == f"{report!r}\n"
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == report.as_dict()


def test_progress_and_reset(here, monkeypatch, capsys):
    import labsupport.exercises  # noqa: F401

    fake_module(monkeypatch, "exercises.progress_report", report=lambda: "3 of 9 right")
    fake_module(monkeypatch, "exercises.resetting", reset=lambda lab: f"{lab} restored")
    assert cli.main(["progress"]) == 0
    assert cli.main(["reset", "01"]) == 0
    assert capsys.readouterr().out == "3 of 9 right\n01 restored\n"


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["lab", "--gpu", "--cpu"], ["run", "--fast"], ["reset"], ["lab", "--port", "x"]]
)
def test_what_is_not_understood_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == cli.USAGE
    assert "usage: python3 -m labsupport" in capsys.readouterr().err


# --- which Python does it ---


def test_a_python_without_the_packages_hands_over(monkeypatch, started):
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setattr(
        installation.Installation,
        "ensure",
        lambda self, asked, torch_index, optional: Path(f"/made/{asked}/{torch_index}"),
    )
    started.code = 7
    assert cli.main(["test", "--cpu", "--torch-index", "u", "-x"]) == 7
    command, options = started[0]
    assert command == [str(Path("/made/cpu/u")), "-m", "labsupport", "test", "--cpu", "--torch-index", "u", "-x"]
    assert options["env"]["LABSUPPORT_READY"] == "1"


def test_an_installation_that_did_not_help_is_not_repeated(monkeypatch, started, capsys):
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setenv("LABSUPPORT_READY", "1")
    assert cli.main(["run"]) == 1
    assert "still lacks torch; delete that folder" in capsys.readouterr().err
    assert started == []


def test_the_doctor_installs_nothing(monkeypatch, started, capsys):
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setattr(installation.Installation, "ready", lambda self, asked=None, optional=(): False)
    monkeypatch.setattr("labsupport.command_line.doctor.examine", lambda: Report((Finding("Python", "3.11"),)))
    assert cli.main(["doctor"]) == 0
    assert started == []


def test_the_doctor_looks_from_inside_a_finished_environment(monkeypatch, started):
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setattr(installation.Installation, "ready", lambda self, asked=None, optional=(): True)
    monkeypatch.setattr(cli.sys, "prefix", "/usr")
    started.code = 1
    assert cli.main(["doctor", "--json"]) == 1
    assert started[0][0][1:] == ["-m", "labsupport", "doctor", "--json"]


def test_an_outdated_environment_updates_itself(monkeypatch, started):
    place = installation.Installation()
    monkeypatch.setattr(installation, "lacking", lambda command: [])
    monkeypatch.setattr(cli.sys, "prefix", str(place.folder))
    monkeypatch.setattr(installation.Installation, "read_stamp", lambda self: {"hash": "old", "set": "cpu"})
    monkeypatch.setattr(
        installation.Installation, "ensure", lambda self, asked, torch_index, optional: Path("/venv/python")
    )
    cli.main(["run"])
    assert started[0][0][1:] == ["-m", "labsupport", "run"]


def test_a_finished_hand_over_is_not_handed_over_again(monkeypatch, started):
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setattr(installation.Installation, "ready", lambda self, asked=None, optional=(): True)
    monkeypatch.setattr("labsupport.command_line.doctor.examine", lambda: Report((Finding("Python", "3.11"),)))
    monkeypatch.setattr(cli.sys, "prefix", "/usr")
    monkeypatch.setenv("LABSUPPORT_READY", "1")
    assert cli.main(["doctor"]) == 0
    assert started == []


@pytest.mark.parametrize("number", ["-1", "65536", "8888x", "1e3"])
def test_a_port_that_cannot_be(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lab", f"--port={number}"])
    assert stopped.value.code == cli.USAGE
    assert f"argument --port: '{number}' is no port; choose a number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "65535"])
def test_the_ports_at_the_ends(here, started, number):
    assert cli.main(["lab", f"--port={number}"]) == 0
    assert f"--port={number}" in started[0][0]


@pytest.mark.parametrize("arguments", [["lab"], ["reset", "00"], ["progress"]])
def test_an_old_python_is_told_so(here, started, monkeypatch, capsys, arguments):
    # What Python 3.8 has is what the code may use up to here.
    monkeypatch.setattr(cli.sys, "version_info", (3, 8, 18))
    assert cli.main(arguments) == 1
    assert "Python 3.8 is too old: the labs need 3.10 to 3.13; install" in capsys.readouterr().err


NEWER_THAN_3_8 = {"functools.cache", "removeprefix", "removesuffix", "is_relative_to", "zip(strict)"}


def newer_than_3_8(source: str) -> set[str]:
    """Names, and decorators at the top, that Python 3.8 stumbles over; annotations are never evaluated."""
    found = set()
    for node in ast.walk(ast.parse(source, feature_version=(3, 8))):
        if isinstance(node, ast.Attribute):
            found |= {ast.unparse(node), node.attr} & NEWER_THAN_3_8
        if isinstance(node, ast.Call) and any(keyword.arg == "strict" for keyword in node.keywords):
            found |= {"zip(strict)"} if ast.unparse(node.func) == "zip" else set()
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("__init__", "__main__", "errors", "files", "command_line/__init__", "command_line/cli"),
        *("command_line/installation", "command_line/doctor", "command_line/findings", "command_line/import_probes"),
        *(f"environment/{part}" for part in ("__init__", "machines", "needs", "description", "folders")),
        *("environment/packages", "environment/hardware", "exercises/__init__"),
    ],
)
def test_the_way_to_that_sentence_needs_no_newer_python(name):
    source = (environment.REPOSITORY / "labsupport" / f"{name}.py").read_text(encoding="utf-8")
    assert newer_than_3_8(source) == set()


def test_what_is_newer_is_seen():
    source = "@functools.cache\ndef f(): return 'a'.removesuffix('a'), zip(a, b, strict=True)"
    assert newer_than_3_8(source) == {"functools.cache", "removesuffix", "zip(strict)"}


def test_help_needs_only_the_standard_library():
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "labsupport", "--help"],
        capture_output=True,
        text=True,
        cwd=environment.REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert command in done.stdout


def test_lab_and_test_ask_for_the_weights_and_run_does_not(here, started, fetched):
    cli.main(["lab"])
    cli.main(["test"])
    assert fetched == ["weights"] * 2
    cli.main(["lab", "--without-weights"])
    cli.main(["progress"])
    assert fetched == ["weights"] * 2


def test_the_campaign_of_faults_takes_the_place_of_the_tests(here, started):
    assert cli.main(["test", "--faults", "--minutes", "1"]) == 0
    ((command, _),) = started
    assert command[1].endswith("campaign.py") and command[2:] == ["--minutes", "1"]


def test_ctrl_c_and_signals_end_in_the_exit_code_of_the_shell():
    class Child:
        def __init__(self, *codes):
            self.codes = iter(codes)

        def wait(self):
            if (code := next(self.codes)) is None:
                raise KeyboardInterrupt
            return code

    assert [cli.wait(Child(*codes)) for codes in ((0,), (1,), (None, 2), (None, 0), (-15,))] == [0, 1, 130, 0, 143]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_a_server_ends_with_the_command_that_started_it():
    program = (
        "import subprocess, sys\nfrom labsupport.command_line import cli\nclass Told(subprocess.Popen):\n    def "
        "wait(self):\n        print(self.pid, flush=True)\n        return "
        "super().wait()\nsys.exit(cli.wait(Told([sys.executable, '-c', 'import time; time.sleep(60)'])))\n"
    )
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(command.stdout.readline())
    command.terminate()
    assert command.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
