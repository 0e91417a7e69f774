"""Commands for whoever teaches: a folder to install from without a network, a class's progress, a printable handout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_commands(add, install: argparse.ArgumentParser) -> None:
    """`wheelhouse`, `progress` and `handout`."""
    house = add("wheelhouse", "fill a folder with all packages, for `lab --offline DIR` where no network is", install)
    house.add_argument("folder", metavar="DIR", type=Path)
    house.add_argument("--all", action="store_true", help="with the optional frameworks")
    shown = add("progress", "show which exercises are done, here or in a whole class")
    shown.add_argument("--json", action="store_true", help="print it as JSON")
    shown.add_argument(
        "--of", nargs="+", metavar="DIR", type=Path, help="learners' folders or progress files, one line each"
    )
    page = add("handout", "write the exercises as one page of HTML to print")
    page.add_argument("labs", nargs="*", metavar="LAB", help="01 or 01_measuring; all labs when none is named")
    page.add_argument("--solutions", action="store_true", help="with hints and solutions")
    page.add_argument("--save", metavar="DIR", type=Path, help="write the page there (default: the current folder)")


def offline_set(options: argparse.Namespace, place) -> str:
    """The set that the folder of `--offline` holds. Raises BadInput where it does not fit this machine or command."""
    from labsupport.command_line import wheelhouse
    from labsupport.errors import BadInput

    if options.torch_index:
        raise BadInput("--torch-index names an address, and --offline uses none; leave one of them out")
    return wheelhouse.set_in(options.offline, options.set, wanted_hash=place.wanted_hash())


def fetch_weights(offline: Path | None) -> bool:
    """The weights of the language labs, from the index or from the folder of `--offline`."""
    from labsupport.command_line import weights, wheelhouse

    return weights.ensure() if offline is None else weights.ensure(download=wheelhouse.downloader(offline))


def wheelhouse(options: argparse.Namespace, rest: list[str]) -> int:
    """Fill the folder; prints what to type in the room."""
    from labsupport.command_line import package_sets, wheelhouse
    from labsupport.command_line.installation import Installation
    from labsupport.errors import BadInput
    from labsupport.language import weights

    if options.offline is not None:
        raise BadInput("a wheelhouse is made with a network; --offline belongs to the command that uses it")
    packages = [] if options.without_weights else list(weights.PACKAGES.values())
    optional = tuple(package_sets.OPTIONAL) if options.all else ()
    wheelhouse.make(
        options.folder,
        Installation(),
        asked=options.set,
        torch_index=options.torch_index,
        optional=optional,
        weights=packages,
    )
    print(f"Ready. In the room: python3 -m labsupport lab --offline {options.folder}")
    return 0


def progress(options: argparse.Namespace, rest: list[str]) -> int:
    """Which exercises are done, here or in every folder named; 1 where a folder could not be read."""
    from labsupport.exercises import class_report, progress_report

    if options.of:
        group = class_report.read(options.of)
        print(json.dumps(group.as_dict(), indent=1, ensure_ascii=False) if options.json else group)
        return int(any(learner.problem for learner in group.learners))
    print(json.dumps(progress_report.as_dict(), indent=1) if options.json else progress_report.report())
    return 0


def handout(options: argparse.Namespace, rest: list[str]) -> int:
    """One page of HTML with the exercises; prints where it lies."""
    from labsupport.command_line import handout

    print(handout.write(options.labs, folder=options.save, solutions=options.solutions))
    if not options.solutions:
        print("Questions only; --solutions adds hints and solutions.", file=sys.stderr)
    return 0


COMMANDS = {"wheelhouse": wheelhouse, "progress": progress, "handout": handout}
