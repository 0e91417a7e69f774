"""`python3 -m labsupport`: see cli.py."""

from __future__ import annotations

import sys

from labsupport.cli import main

if __name__ == "__main__":
    sys.exit(main())
