"""Write the badges that open lab 00 in Colab and in Binder, once it is known where the workbook is published.

    python3 tools/badges.py OWNER/NAME [--branch main]

Puts two lines into README.md and writes `binder/colab.ipynb`: lab 00 behind a first cell that fetches the workbook and
installs what is missing in Colab. Run it again after lab 00 was changed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport.exercises import editions

LAB = "00_start_here"
BEGIN, END = "<!-- badges -->", "<!-- end of badges -->"
INSTALL = """\
# Only in Colab: fetch the workbook, and install what is missing here. Takes about two minutes.
!git clone --quiet --depth 1 --branch {branch} https://github.com/{where} labs
%cd labs
!pip install --quiet --editable . "tensorrt-rtx=={rtx}" && python3 -m labsupport doctor"""


def badges(where: str, branch: str = "main") -> str:
    """Two lines of Markdown."""
    lab = f"labpath=notebooks/{LAB}.ipynb"
    colab = f"https://colab.research.google.com/github/{where}/blob/{branch}/binder/colab.ipynb"
    binder = f"https://mybinder.org/v2/gh/{where}/{branch}?{lab}"
    return (
        f"[![Open lab 00 in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open lab 00 in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def with_badges(readme: str, where: str, branch: str = "main") -> str:
    """The README with the badges below its title, in place of former ones."""
    bare = re.sub(rf"{BEGIN}.*?{END}\n\n", "", readme, flags=re.DOTALL)
    title, _, rest = bare.partition("\n\n")
    return f"{title}\n\n{BEGIN}\n{badges(where, branch)}\n{END}\n\n{rest}"


def colab_notebook(shipped: dict, where: str, branch: str, rtx: str) -> dict:
    """Lab 00 without outputs, behind the cell that installs."""
    made = editions.learners(shipped, LAB)
    made["cells"][0]["source"] = editions.bare("".join(made["cells"][0]["source"]))
    cell = {
        "cell_type": "code",
        "id": "install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": INSTALL.format(where=where, branch=branch, rtx=rtx),
    }
    made["cells"].insert(1, cell)
    made["metadata"]["accelerator"] = "GPU"
    return made


def place(text: str) -> str:
    """OWNER/NAME. Raises argparse.ArgumentTypeError for anything else."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no repository of GitHub; give OWNER/NAME")
    return text


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    """Write README.md and binder/colab.ipynb."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("where", type=place, metavar="OWNER/NAME")
    parser.add_argument("--branch", default="main")
    options = parser.parse_args(argv)
    readme = root / "README.md"
    text = with_badges(readme.read_text(encoding="utf-8"), options.where, options.branch)
    shipped = json.loads((root / "notebooks" / f"{LAB}.ipynb").read_text(encoding="utf-8"))
    rtx = re.search(r'"tensorrt-rtx==([\d.]+)', (root / "pyproject.toml").read_text(encoding="utf-8"))[1]
    notebook = colab_notebook(shipped, options.where, options.branch, rtx)
    readme.write_text(text, encoding="utf-8")
    (root / "binder").mkdir(exist_ok=True)
    (root / "binder" / "colab.ipynb").write_bytes(editions.written(notebook))
    print("README.md has the badges; binder/colab.ipynb is lab 00 for Colab")


if __name__ == "__main__":
    main()
