"""`python3 -m labsupport`: see command_line/cli.py."""

from __future__ import annotations

import sys

from labsupport.command_line.cli import main

if __name__ == "__main__":
    sys.exit(main())
