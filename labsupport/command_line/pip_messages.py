"""What pip and venv say, in one line each."""

from __future__ import annotations

import re
import sys


def shorter(line: str) -> str:
    """pip's progress line without wheel tags and without a list of eighty names."""
    wheel = re.match(r"Downloading (\S+?)-(\d[^-\s]*)\S*(.*)", line)
    return f"Downloading {wheel.group(1)} {wheel.group(2)}{wheel.group(3)}" if wheel else line.partition(":")[0]


def missing_distribution(output: str) -> bool:
    """Whether pip or uv said that no index has the package."""
    return bool(
        re.search(
            r"No matching distribution|Could not find a version|No solution found|not found in the "
            r"package registry|no version of|ResolutionImpossible",  # the last beside a constraints file
            output,
            re.IGNORECASE,
        )
    )


def explain(output: str, what: str) -> str:
    """One sentence from a failed pip or venv: no disk, no network, no venv module, else its own last error."""
    if re.search(r"No space left|Errno 28|not enough space", output, re.IGNORECASE):
        return f"{what}: the disk is full; free some space, then run the same command again: it goes on"
    if re.search(r"ensurepip is not|No module named '?(venv|ensurepip)", output):
        return (
            f"{what}: this Python has no venv module; on Debian and Ubuntu: "
            f"sudo apt install python3.{sys.version_info[1]}-venv"
        )
    if re.search(
        r"Max retries|NewConnectionError|name resolution|getaddrinfo|Network is unreachable|Read timed out|"
        r"ConnectionError|ConnectTimeout|dns error|ProxyError",
        output,
    ):
        return (
            f"{what}: the package index cannot be reached; check the network (or pip's proxy and index settings), "
            "then run the same command again: it goes on where it stopped"
        )
    lines = [line.strip() for line in output.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return f"{what}: {(errors or lines or ['no message'])[-1][:400]}"
