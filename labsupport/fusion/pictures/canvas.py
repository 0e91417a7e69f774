"""The page of a fusion drawing: panels of rows side by side, boxes over rows, rails beside a column; PNG and SVG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from labsupport.comparing.drawing import Drawing
from labsupport.errors import BadInput

ROW_INCH, FONT = 0.185, 7.5
# kind → (colour, hatch): a pale ground for black text, and a hatch on the band beside it that tells kinds apart in grey
STYLES = {
    "convolution": ("#A6CEE3", "////"),
    "matmul": ("#FDD0A2", "\\\\\\\\"),
    "pointwise": ("#C7E9C0", "...."),
    "pooling": ("#DADAEB", "----"),
    "normalization": ("#FFF2AE", "xxxx"),
    "softmax": ("#FCCDE5", "oooo"),
    "layout": ("#FFFFFF", ""),
    "region": ("#D9D9D9", "++++"),
    "attention": ("#FBB4AE", "**"),
    "generated": ("#CCEBC5", "||||"),
    "reduction": ("#E5D8BD", "||"),
}


@dataclass(frozen=True, repr=False)
class GraphDrawing(Drawing):
    """A drawing that also gives itself as SVG, which stays sharp at any size."""

    def _png(self, dpi: int) -> bytes:
        from PIL import Image

        # few colours hold what is drawn, and the stored notebook stays a third as large; the kinds' own are kept exact
        greys = [f"#{level:02X}{level:02X}{level:02X}" for level in range(0, 256, 51)]
        colours = [int(c[at : at + 2], 16) for c in (*greys, *(c for c, _ in STYLES.values())) for at in (1, 3, 5)]
        palette = Image.new("P", (1, 1))
        palette.putpalette(colours)
        picture, small = Image.open(io.BytesIO(super()._png(dpi))), io.BytesIO()
        picture = picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
        picture.save(small, format="png", optimize=True)
        return small.getvalue()

    def svg(self) -> str:
        """The picture as SVG text."""
        import matplotlib

        picture = io.StringIO()
        with matplotlib.rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": "labsupport"}
        ):  # text stays text: small, and can be searched
            self.figure.savefig(picture, format="svg", metadata={"Date": None, "Description": self.text})
        return picture.getvalue()

    def save(self, path) -> Path:
        """Write the picture as .svg or .png and return the path."""
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise BadInput(
                f"{path.name} ends in {path.suffix!r}; a drawing is saved as .svg (opens at any size) or .png"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.svg().encode("utf-8") if path.suffix == ".svg" else self._repr_png_())
        return path


class Canvas:
    """Turns a row number into a place on the page: panels stand side by side, rows run down each of them."""

    WIDTH, NODE, KERNEL = 10.0, (0.95, 4.95), (5.35, 9.05)

    def __init__(self, axes, panels, height):
        self.axes, self.panels, self.height = axes, panels, height
        axes.set_xlim(0, panels * self.WIDTH)
        axes.set_ylim(height + 0.4, -0.9)
        axes.axis("off")
        # characters that fit into a box, at the page's width
        self.letters = {1: (52, 42), 2: (23, 20)}[panels]

    def spot(self, row: int) -> tuple[float, float]:
        return (row // self.height) * self.WIDTH, row % self.height

    def box(self, span, row, rows, **style):
        """A box over rows; one that reaches into the next panel is drawn in both."""
        from matplotlib.patches import Rectangle

        done = 0
        while done < rows:
            x, y = self.spot(row + done)
            here = min(rows - done, self.height - y)
            self.axes.add_patch(Rectangle((x + span[0], y + 0.1), span[1] - span[0], here - 0.2, **style))
            done += here

    def text(self, at, row, words, **style):
        x, y = self.spot(row)
        self.axes.text(x + at, y + 0.5, words, va="center", **{"fontsize": FONT, **style})

    def arrow(self, start, end):
        style = {
            "arrowstyle": "-|>",
            "linewidth": 0.7,
            "color": "#333333",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 6,
        }
        self.axes.annotate("", end, start, arrowprops=style)

    def rail(self, side: int, lane: int, upper: int, lower: int, *, upwards: bool = False):
        """A line down a lane beside the column, between two rows, with a head where the data arrives."""
        edge = self.NODE[0] if side < 0 else self.KERNEL[1]
        lane_x = edge + side * (0.18 + 0.15 * lane)
        style = {"color": "#333333", "linewidth": 0.7, "solid_capstyle": "butt"}
        row = upper
        while row <= lower:
            x, y = self.spot(row)
            last = min(lower, row + self.height - y - 1)
            top = y + (0.7 if row == upper else 0.0)
            bottom = self.spot(last)[1] + (0.3 if last == lower else 1.0)
            self.axes.plot([x + lane_x, x + lane_x], [top, bottom], **style)
            ends = [(top, upwards)] * (row == upper) + [(bottom, not upwards)] * (last == lower)
            for height, headed in ends:
                if headed:
                    self.arrow((x + lane_x, height), (x + edge, height))
                else:
                    self.axes.plot([x + edge, x + lane_x], [height, height], **style)
            row = last + 1


def page(panels: int, height: int):
    """A figure for that many panels of rows, and its axes without ticks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = {1: 7.2, 2: 7.6}[panels]
    figure = Figure(figsize=(width, (height + 1.1) * ROW_INCH + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
