"""``examine MODEL``: its options, and what they mean to the room that does the work."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(add_command, install: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    text = "take a network through the labs: what it is, what it costs, what would make it faster, and a decision"
    command = add_command("examine", text, install)
    command.add_argument("model", metavar="MODEL", type=Path, help="an .onnx file, a .pt2 program or a .keras model")
    command.add_argument(
        "--inputs", metavar="NPZ", type=Path, help="an array for each input, and 'labels' if you have them"
    )
    command.add_argument(
        "--budget-ms", metavar="MS", type=float, help="the latency that you need (default: the fastest)"
    )
    command.add_argument("--keep-accuracy", metavar="SHARE", type=float, default=0.99, help="default: 0.99")
    command.add_argument("--minutes", metavar="M", type=float, default=10.0, help="time to spend (default: 10)")
    command.add_argument(
        "--save", metavar="DIR", type=Path, help="folder to write to (default: MODEL.examined beside it)"
    )


def run(options: argparse.Namespace):
    """The examination that the options ask for; its text is what the command prints."""
    from labsupport import examining

    limits = examining.Limits(options.budget_ms, options.keep_accuracy, options.minutes)
    return examining.examine(options.model, inputs=options.inputs, limits=limits, save=options.save)
