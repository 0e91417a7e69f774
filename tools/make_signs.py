"""How data/signs/ was made: python tools/make_signs.py openclipart-svg_0.18+dfsg-19_all.deb [folder]

Get the package with `apt-get download openclipart-svg`, and `dpkg-deb` and `rsvg-convert` (librsvg2-bin) from Debian.
Each drawing is rendered large, cut at its outline, and shrunk to fit 128×128; the list says what came from where.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PIXELS = 128
FOLDER = "usr/share/openclipart/svg/transportation/roadsigns"
PACKAGE = "openclipart-svg 1:0.18+dfsg-19 (Debian)"
LICENCE = "Public domain: each file names http://web.resource.org/cc/PublicDomain, as does Debian's copyright file"
DRAWINGS = {
    "stop": "stop_sign_right_font_mig_",
    "give way": "Give_Way",
    "no entry": "no_entry",
    "no motor vehicles": "Evel_Knievel",
    "no buses": "no_buses",
    "no cycling": "no_cycles",
    "weight limit": "lorry_limit",
    "keep left": "keep_left",
    "turn left": "turn_left",
    "turn left ahead": "turn_ahead",
    "pass either side": "pass_either",
    "cycle route": "cycles",
    "one way": "oneway",
    "parking": "parking_romus_01",
    "roundabout ahead": "roundabout",
    "road narrows": "narrows_both",
    "two-way traffic": "two_way_ahead",
    "slippery road": "slippery",
    "deer": "bambi",
    "road works": "man_w_umbrella",
}


def rendered(svg: Path) -> Image.Image:
    """The drawing alone, RGBA, cut at its outline and at most 128×128."""
    png = subprocess.run(
        ["rsvg-convert", "--keep-aspect-ratio", "--width", "1200", "--height", "1200", str(svg)],
        check=True,
        capture_output=True,
    ).stdout
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    cut = picture.crop(picture.getchannel("A").point(lambda value: 255 * (value > 40)).getbbox())
    scale = PIXELS / max(cut.size)
    return cut.resize((round(cut.width * scale), round(cut.height * scale)), Image.Resampling.LANCZOS)


def convert(package: Path, target: Path) -> Path:
    """Write the PNG files and signs.json to `target`; return the list."""
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        for name, stem in DRAWINGS.items():
            svg = Path(folder) / FOLDER / f"{stem}.svg"
            text = svg.read_text(encoding="utf-8", errors="replace")
            if "cc/PublicDomain" not in text:
                sys.exit(f"{svg.name} does not name the public domain; take another drawing")
            file = target / f"{name.replace(' ', '_')}.png"
            rendered(svg).save(file, optimize=True)
            author = re.search(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", text, re.DOTALL).group(1).strip()
            rows.append({"class": name, "file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                         "drawing": f"{FOLDER}/{svg.name}",
                         "drawing_sha256": hashlib.sha256(svg.read_bytes()).hexdigest(),
                         "author": author})  # fmt: skip
    listed = {"origin": PACKAGE, "licence": LICENCE, "made_by": "tools/make_signs.py", "signs": rows}
    path = target / "signs.json"
    path.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = Path(__file__).parent.parent / "data" / "signs"
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else default
    sys.stdout.write(f"{convert(Path(sys.argv[1]), output)}\n")
