"""The command line, `python3 -m labsupport COMMAND`; standard library only."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from labsupport import files
from labsupport.command_line import classroom, shadows
from labsupport.command_line import examine as examination
from labsupport.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        prog="python3 -m labsupport", description="The TensorRT lab workbook.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    install = argparse.ArgumentParser(add_help=False)
    which = install.add_mutually_exclusive_group()
    for name, text in (
        ("gpu", "TensorRT and PyTorch for CUDA"),
        ("cpu", "ONNX Runtime, and TensorRT-RTX as builder"),
        ("rtx", "TensorRT-RTX on a GeForce RTX"),
    ):
        which.add_argument(f"--{name}", dest="set", action="store_const", const=name, help=f"install {text}")
    install.add_argument("--torch-index", metavar="URL", help="package index to take PyTorch from")
    install.add_argument("--offline", metavar="DIR", type=Path, help="install from this folder, made by `wheelhouse`")
    install.add_argument(
        "--without-weights", action="store_true", help="do not fetch the weights of the language labs (177 MB)"
    )

    def add(name: str, text: str, *parents) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=list(parents), allow_abbrev=False)

    lab = add("lab", "make the environment where needed and open JupyterLab; further arguments go to it", install)
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    lab.add_argument("--port", type=port, help="port of the local server (default: JupyterLab's choice, 8888 upwards)")
    tests = add("test", "run the tests and every notebook; further arguments go to pytest", install)
    tests.add_argument("--fast", action="store_true", help="unit tests only, without the slow ones")
    tests.add_argument("--all", action="store_true", help="with the optional frameworks, which are installed first")
    tests.add_argument("--faults", action="store_true", help="a campaign of faults instead: ten minutes, then a table")
    tests.add_argument("--alone", action="store_true", help="one file at a time, so that speeds can be judged")
    for name, text in (
        ("run", "execute labs without a browser, one line a lab"),
        ("record", "like run, of the shipped labs; on a GPU also store outputs and recordings"),
    ):
        command = add(name, text, install)
        command.add_argument("labs", nargs="*", metavar="LAB", help="01, or a path such as work/01_measuring.ipynb")
        command.add_argument("--json", action="store_true", help="print the results as JSON")
        command.add_argument("--save", metavar="DIR", type=Path, help="write the executed notebooks there")
        if name == "record":
            command.add_argument("--processor", action="store_true", help="store a processor's results, too")
    add("doctor", "examine this machine and its packages").add_argument("--json", action="store_true")
    add("reset", "bring one lab back as shipped, keeping your copy").add_argument("lab", metavar="LAB")
    add("links", "ask every address of notebooks, docs and README whether it is still there; needs a network")
    _add_pages_and_servers(add, install)
    classroom.add_commands(add, install)
    return top


def _add_pages_and_servers(add, install: argparse.ArgumentParser) -> None:
    report = add("report", "write one lab as one self-contained page of HTML", install)
    report.add_argument("lab", metavar="LAB", help="a lab whose cells are tagged for it, such as 12")
    report.add_argument("--pdf", action="store_true", help="write PDF as well (needs the package weasyprint)")
    report.add_argument("--stored", action="store_true", help="use the stored outputs instead of running the lab")
    report.add_argument("--save", metavar="DIR", type=Path, help="write the page there (default: the current folder)")
    examination.add(add, install)
    server = add("serve", "make the environment of NVIDIA's Triton server, for lab 11b; Linux only")
    server.add_argument("server", choices=("triton",))
    server.add_argument("--repository", metavar="DIR", type=Path, help="also serve this model repository, until Ctrl-C")
    server.add_argument("--port", type=port, default=0, help="port on the loopback address (default: a free one)")


def port(text: str) -> int:
    """A TCP port from the command line; 0 leaves the choice to the system."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; choose a number from 0 to 65535")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed, 2 not understood, 130 interrupted."""
    # Taken out, or JupyterLab would hand it on to its terminals, and a command typed there would install nothing.
    ready = bool(os.environ.pop("LABSUPPORT_READY", ""))
    argv = sys.argv[1:] if argv is None else list(argv)
    top = parser()
    options, rest = top.parse_known_args(argv)
    if rest and options.command not in ("lab", "test"):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        files.sweep(REPOSITORY / "notebooks")
        if options.command in ("lab", "test", "run", "record", "report", "examine"):
            shadows.refuse()
            elsewhere = prepare(options, argv, ready=ready)
            if elsewhere is None and options.command in ("lab", "test") and not options.without_weights:
                classroom.fetch_weights(options.offline)
        else:
            elsewhere = borrow(argv, ready=ready)
        if elsewhere is not None:
            return elsewhere
        if sys.version_info < (3, 10) and options.command != "doctor":  # the doctor reports it among the rest
            from labsupport.command_line import installation

            installation.check_python()
        return COMMANDS[options.command](options, rest)
    except KeyboardInterrupt:
        print("labsupport: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `… | head` has seen enough; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (LabError, OSError) as error:  # or a name that no file can have, a full disk, a folder of somebody else's
        print(f"labsupport: {error}", file=sys.stderr)
        return FAILED


def prepare(options: argparse.Namespace, argv: list[str], *, ready: bool = False) -> int | None:
    """Make sure of an environment; None to go on in this process, else the exit code of the one that did it all.

    ready: this process was started by `again`, after an installation.
    """
    from labsupport.command_line import installation, package_sets

    need = {"record": "run", "report": "run", "examine": "run"}.get(options.command, options.command)
    place = installation.Installation(wheelhouse=options.offline)
    if options.offline is not None:
        options.set = classroom.offline_set(options, place)
    inside = Path(sys.prefix).resolve() == place.folder.resolve()
    # In `.venv` itself a changed pyproject.toml means an update; any other environment is its owner's.
    # Only `.venv` is ours to add to; in another environment, what is missing is skipped with its reason.
    optional = tuple(package_sets.OPTIONAL) if getattr(options, "all", False) else ()
    outdated = inside and place.read_stamp() and not place.ready(options.set, optional)
    if not outdated and not installation.lacking(need) and installation.fits(options.set):
        return None
    if ready:
        missing = ", ".join(installation.lacking(need))
        if not missing:
            return None
        raise installation.InstallationError(
            f"{place.folder} was installed and still lacks {missing}; delete that folder and run the same command again"
        )
    python = place.ensure(options.set, torch_index=options.torch_index, optional=optional)
    return again(python, argv)


def borrow(argv: list[str], *, ready: bool = False) -> int | None:
    """The small commands need no environment, but tell more inside one: use `.venv` where it is finished."""
    from labsupport.command_line import installation

    place = installation.Installation()
    inside = Path(sys.prefix).resolve() == place.folder.resolve()
    if inside or ready or not installation.lacking("run") or not place.ready():
        return None
    try:
        return again(place.python, argv)
    except OSError:  # its Python does not start; the doctor then reports from here
        return None


def again(python: Path, argv: list[str]) -> int:
    """The same command under another Python. A child process, because Windows cannot replace one."""
    child = subprocess.Popen(
        [str(python), "-m", "labsupport", *argv], cwd=Path.cwd(), env=environment_variables(LABSUPPORT_READY="1")
    )
    return wait(child)


def wait(child: subprocess.Popen) -> int:
    """The exit code of a child that gets the terminal's Ctrl-C itself; JupyterLab asks before it stops."""
    # SIGTERM comes to this process alone, so it is passed on: a server must not outlive the command that started it
    interrupted, before = False, signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            try:
                code = child.wait()
                return 128 - code if code < 0 else INTERRUPTED if code and interrupted else code
            except KeyboardInterrupt:
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)


def environment_variables(**more: str) -> dict[str, str]:
    """This environment, with `labsupport` importable in every child."""
    from labsupport.language.weights import VARIABLE, root

    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    more.setdefault(VARIABLE, str(root()))  # tests give each test a cache of its own; the weights stay where they are
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def lab(options: argparse.Namespace, rest: list[str]) -> int:
    """JupyterLab on the learner's copy of the first notebook, with its default token and only on this machine."""
    from labsupport.command_line import opening
    from labsupport.exercises import own_copies, shipped

    shipped.snapshot()  # what `reset` restores from where there is no git
    folder, said = own_copies.folder_to_open()
    if said:
        print(said, file=sys.stderr)
    command = opening.command(folder, options, rest)
    # Containers and rented machines often have no other user, and JupyterLab refuses this one unasked.
    if getattr(os, "geteuid", lambda: 1)() == 0 and "--allow-root" not in rest:
        print(
            "labsupport: you are root, so JupyterLab is started with --allow-root: all code in a notebook then "
            "runs as root and may change every file of this machine",
            file=sys.stderr,
        )
        command.append("--allow-root")
    return wait(subprocess.Popen(command, cwd=REPOSITORY, env=environment_variables(**opening.variables())))


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """One pytest over tests and notebooks; then the metrics that the notebooks recorded, against their bands."""
    from labsupport import environment
    from labsupport.command_line import testing
    from labsupport.exercises import shipped

    if options.faults:
        return wait(subprocess.Popen(testing.faults(rest), env=environment_variables()))
    started = time.monotonic()
    at_once = testing.workers(rest, alone=options.alone, gpu=environment.has("engine execution"))
    with files.scratch() as folder:
        # One thread each: on a small or busy machine PyTorch's threads wait for each other far longer than they work.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        variables = environment_variables(LABSUPPORT_METRICS=str(folder), IPYKERNEL_CELL_NAME="<cell>", **threads)
        own = shipped.worked_in()
        if own:
            print(
                f"left out, because you have worked in them: {', '.join(own)} (`python3 -m labsupport reset LAB` "
                "brings one back as shipped; authors note theirs with "
                "`python3 -m labsupport.exercises.resetting --write-manifest`)",
                file=sys.stderr,
            )
        if said := testing.plan(rest, fast=options.fast, at_once=at_once):
            print(said, file=sys.stderr, flush=True)
        pytest = testing.command(rest, own, fast=options.fast, at_once=at_once)
        code = wait(subprocess.Popen(pytest, cwd=REPOSITORY, env=variables))
        if code not in (0, 1):
            return code
        from labsupport import recordings

        violations = recordings.check_live(folder, speeds=at_once == 1)
    if at_once > 1 and not options.fast:
        print(
            "speeds were not held against their bands, because tests ran side by side; "
            "`python3 -m labsupport test --alone` does",
            file=sys.stderr,
        )
    for violation in violations:
        print(f"FAILED {violation}", file=sys.stderr)
    if not code and not rest:
        testing.note(started, fast=options.fast, at_once=at_once)
    return FAILED if violations else code


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Execute labs; the lines go to standard output, the progress bar to standard error."""
    from labsupport.command_line import running

    where = {"store": options.command == "record", "processor": getattr(options, "processor", False)}
    results = running.run(options.labs, save=options.save, echo=None if options.json else print, **where)
    if options.json:
        print(
            json.dumps(
                {"ok": all(result.ok for result in results), "labs": [result.as_dict() for result in results]}, indent=1
            )
        )
    return 0 if all(result.ok for result in results) else FAILED


def report(options: argparse.Namespace, rest: list[str]) -> int:
    """One lab as a page of HTML; prints where it lies."""
    from labsupport.command_line import report as page

    for path in page.write(options.lab, folder=options.save, stored=options.stored, pdf=options.pdf):
        print(path)
    return 0


def examine(options: argparse.Namespace, rest: list[str]) -> int:
    """A network through the labs; prints the decision and where the report lies."""
    print(examination.run(options))
    return 0


def doctor(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the report; 1 when it holds a problem."""
    from labsupport.command_line.doctor import examine

    report = examine()
    print(json.dumps(report.as_dict(), indent=1) if options.json else report)
    return 0 if report.ok else FAILED


def reset(options: argparse.Namespace, rest: list[str]) -> int:
    """Bring one lab back as shipped."""
    from labsupport.exercises import resetting

    print(resetting.reset(options.lab))
    return 0


def links(options: argparse.Namespace, rest: list[str]) -> int:
    """Ask every address; 1 when one is gone, or none could be reached."""
    from labsupport.command_line import links as addresses

    judged = addresses.check(addresses.collect(REPOSITORY), REPOSITORY)
    print(addresses.report(judged))
    return FAILED if addresses.failed(judged) else 0


def triton(options: argparse.Namespace, rest: list[str]) -> int:
    """Make Triton's environment; with a repository, serve it on the loopback address until Ctrl-C."""
    from labsupport.serving import triton_server

    print(f"Triton is ready in {triton_server.make_environment()}", flush=True)
    if options.repository is None:
        return 0
    with triton_server.TritonServer(options.repository, port=options.port) as server:
        print(f"{', '.join(server.models)} at http://{server.address}; Ctrl-C stops it", flush=True)
        return server.wait()


COMMANDS = {
    "lab": lab,
    "test": test,
    "run": run,
    "record": run,
    "report": report,
    "examine": examine,
    "doctor": doctor,
    "reset": reset,
    "links": links,
    "serve": triton,
    **classroom.COMMANDS,
}
