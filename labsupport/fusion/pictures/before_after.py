"""Before and after of a plan in one picture: ONNX nodes on the left, on the right the kernels that took them.

Each node has a row; the nodes of a kernel stand together, so a kernel is a box as high as what it swallowed. Arrows to
the next row are drawn straight and all others as rails beside the column, which keeps 200 nodes as readable as 20.
"""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.fusion.kernels import Kernel, Plan
from labsupport.fusion.onnx_nodes import Node, NodeGraph
from labsupport.fusion.pictures.canvas import FONT, STYLES, Canvas, GraphDrawing, page

PLAIN = ("#F2F2F2", "")
BRIEF = {"convolution": "conv", "normalization": "norm", "reduction": "reduce", "region": "Myelin region"}


@dataclass(frozen=True)
class Block:
    """Rows that belong together: a kernel's nodes, a kernel without nodes, or one node that no kernel took."""

    kernel: Kernel | None
    nodes: tuple[Node, ...]
    note: str = ""

    @property
    def rows(self) -> int:
        return max(len(self.nodes), 1)


def draw_plan(plan: Plan, graph: NodeGraph) -> GraphDrawing:
    """Draw a plan beside the graph it was made from; constants and shape arithmetic are only counted."""
    books = plan.accounts(graph)
    blocks = _blocks(plan, graph, books)
    rows = sum(block.rows for block in blocks)
    panels = 1 if rows <= 30 else 2  # a third would be too small to read in a notebook
    height, places = _placed(blocks, panels, -(-rows // panels))
    figure, axes = page(panels, height)
    canvas = Canvas(axes, panels, height)
    for block, start in zip(blocks, places, strict=True):
        _draw_block(canvas, block, start)
    _draw_edges(canvas, blocks, places, plan, graph)
    _draw_key(axes, plan, books, canvas)
    return GraphDrawing(figure, _words(plan, books, blocks))


def _blocks(plan: Plan, graph: NodeGraph, books) -> list[Block]:
    """Kernels and stray nodes in an order in which data flows down the page."""
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    hidden = {n for n in books.folded if n not in books.placed}
    owner = books.placed
    mine: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.name in owner:
            mine.setdefault(owner[node.name], []).append(node)
    keyed, before = [], -1.0
    for kernel in plan.kernels:
        nodes = tuple(mine.pop(kernel.name, ()))
        if not nodes and not kernel.launches:
            continue
        # a kernel without nodes stands where the plan runs it, behind the kernel before it
        before = max(order[n.name] for n in nodes) if nodes else before + 1e-3
        keyed.append((before, Block(kernel, nodes)))
    for node in graph.nodes:
        if node.name not in owner and node.name not in hidden:
            account = books.where(node.name)[0]
            note = "unplaced: nobody names it" if account == "unplaced" else account
            keyed.append((order[node.name], Block(None, (node,), note)))
    return [block for _, block in sorted(keyed, key=lambda pair: pair[0])]


def _placed(blocks: list[Block], panels: int, height: int) -> tuple[int, list[int]]:
    """First row of each block, so that no block is torn over two panels unless it is higher than a third of one."""
    while True:
        places, row = [], 0
        for block in blocks:
            left = height - row % height
            if left < block.rows <= max(height // 3, 2):
                row += left
            places.append(row)
            row += block.rows
        if row <= panels * height:
            return height, places
        height += 1


def _draw_block(canvas: Canvas, block: Block, start: int) -> None:
    left, right = canvas.letters
    for place, node in enumerate(block.nodes):
        doubtful = block.kernel is not None and node.name in block.kernel.inferred
        dashed = block.kernel is None or doubtful
        canvas.box(
            canvas.NODE,
            start + place,
            1,
            facecolor="white",
            edgecolor="black",
            linewidth=0.6,
            linestyle="--" if dashed else "-",
        )
        canvas.text(canvas.NODE[0] + 0.12, start + place, _label(node, left) + ("  ?" if doubtful else ""))
    if block.kernel is None:
        canvas.text(canvas.KERNEL[0], start, block.note, style="italic", color="#444444")
        return
    colour, hatch = STYLES.get(block.kernel.kind, PLAIN)
    low, high = canvas.KERNEL
    canvas.box((low, high), start, block.rows, facecolor=colour, edgecolor="black", linewidth=0.9)
    canvas.box((low, low + 0.32), start, block.rows, facecolor="white", edgecolor="black", linewidth=0.6, hatch=hatch)
    lines = _kernel_words(block.kernel)
    shown = [_cut(line, right) for line in ([" ".join(lines)] if block.rows == 1 else lines)][: block.rows]
    first = start + (block.rows - len(shown)) // 2
    if first // canvas.height != (first + len(shown) - 1) // canvas.height:  # the words would be torn over two panels
        first, shown = start, shown[:1]
    for place, words in enumerate(shown):
        canvas.text(low + 0.42, first + place, words, weight="bold" if place == 0 and block.nodes else "normal")


def _kernel_words(kernel: Kernel) -> list[str]:
    same = kernel.precision_in in ("", kernel.precision_out)
    types = kernel.precision_out if same else f"{kernel.precision_in}→{kernel.precision_out}"
    head = BRIEF.get(kernel.kind, kernel.kind)
    if kernel.kind == "layout":
        head = kernel.layer_type if kernel.nodes and kernel.layer_type else "copy"
    share = [f"{kernel.share:.1%}"] if kernel.share is not None else []
    return [f"{head} {types}".strip(), *share]


def _draw_edges(canvas: Canvas, blocks, places, plan: Plan, graph: NodeGraph) -> None:
    row_of = {
        node.name: start + place
        for block, start in zip(blocks, places, strict=True)
        for place, node in enumerate(block.nodes)
    }
    pairs = {
        (row_of[producer.name], row_of[name])
        for name in row_of
        for producer in _sources(graph.by_name[name], graph, row_of)
    }
    _column(canvas, -1, pairs, set(row_of.values()))
    spans = {
        block.kernel.name: (start, start + block.rows - 1)
        for block, start in zip(blocks, places, strict=True)
        if block.kernel is not None
    }
    owner = {node.name: block.kernel.name for block in blocks if block.kernel is not None for node in block.nodes}
    links = _links(plan.kernels, spans)
    links |= (
        {(owner[p.name], owner[name]) for name in owner for p in _sources(graph.by_name[name], graph, owner)}
        if not links
        else set()
    )
    rows = {(spans[a][1], spans[b][0]) for a, b in links if a != b}
    _column(canvas, 1, rows, {row for first, last in spans.values() for row in range(first, last + 1)})


def _links(kernels, drawn) -> set[tuple[str, str]]:
    """Which drawn kernel reads what which wrote, by the tensors that the plan lists and looking through no-ops.

    Nothing for a plan of names only.
    """
    writer = {tensor.name: kernel for kernel in kernels for tensor in kernel.outputs}
    links = set()
    for kernel in kernels:
        todo, seen = [t.name for t in kernel.inputs] if kernel.name in drawn else [], set()
        while todo:
            name = todo.pop()
            source = writer.get(name)
            if source is None or name in seen:
                continue
            seen.add(name)
            if source.name in drawn:
                links.add((source.name, kernel.name))
            else:
                todo += [t.name for t in source.inputs]
    return links


def _sources(node: Node, graph: NodeGraph, drawn) -> list[Node]:
    """The drawn nodes that a node hangs on, looking through those that are not drawn."""
    sources, todo, seen = [], list(node.inputs), set()
    while todo:
        producer = graph.producer.get(todo.pop())
        if producer is None or producer.name in seen:
            continue
        seen.add(producer.name)
        if producer.name in drawn:
            sources.append(producer)
        elif producer.name not in graph.shape_nodes and producer.name not in graph.constant_nodes:
            todo += producer.inputs
    return sources


def _column(canvas: Canvas, side: int, edges, occupied: set[int]) -> None:
    """Straight arrows to the next box below, rails in free lanes for the others."""
    middle = sum(canvas.NODE if side < 0 else canvas.KERNEL) / 2
    ends: list[int] = []
    for upper, lower in sorted(edges):
        if lower == upper:
            continue
        upper, lower, upwards = min(upper, lower), max(upper, lower), lower < upper
        (x, y), (x_low, y_low) = canvas.spot(upper), canvas.spot(lower)
        if not upwards and not occupied & set(range(upper + 1, lower)):
            if x == x_low:
                canvas.axes.plot([x + middle, x + middle], [y + 0.9, y_low + 0.1], color="black", linewidth=1.1)
            else:  # on to the top of the next panel
                canvas.arrow((x + middle, y + 0.9), (x + middle, y + 1.4))
                canvas.arrow((x_low + middle, y_low - 0.3), (x_low + middle, y_low + 0.1))
            continue
        lane = next((place for place, end in enumerate(ends) if end < upper), len(ends))
        if lane == len(ends):
            ends.append(lower)
        else:
            ends[lane] = lower
        canvas.rail(side, min(lane, 4), upper, lower, upwards=upwards)


def _draw_key(axes, plan: Plan, books, canvas: Canvas) -> None:
    for panel in range(canvas.panels):
        x = panel * canvas.WIDTH
        axes.text(x + canvas.NODE[0], -0.5, "ONNX node", fontsize=FONT + 0.5, weight="bold", va="center")
        axes.text(x + canvas.KERNEL[0], -0.5, "kernel that runs it", fontsize=FONT + 0.5, weight="bold", va="center")
    tail = f"  ·  {len(books.folded)} nodes folded, not drawn" if books.folded else ""
    tail += "  ·  ? = inferred" if books.inferred else ""
    axes.set_title(
        f"{plan.name}: {len(books.nodes)} ONNX nodes → {len(plan.launched)} kernels{tail}", fontsize=9.5, loc="left"
    )


def _words(plan: Plan, books, blocks) -> str:
    fused = [b for b in blocks if b.kernel is not None and len(b.nodes) > 1]
    most = max(fused, key=lambda b: len(b.nodes), default=None)
    parts = [f"{plan.name}, before and after: {books!r}"]
    parts.append(
        f"{len(plan.launched)} kernels run, {len(fused)} of them swallow two nodes or more"
        if fused
        else f"{len(plan.launched)} kernels run, none swallows two nodes"
    )
    if most:
        parts.append(
            f"the largest takes {len(most.nodes)}: {', '.join(node.op for node in most.nodes[:8])}"
            + (", …" if len(most.nodes) > 8 else "")
        )
    if plan.inserted:
        parts.append(f"inserted kernels that stand for no node: {len(plan.inserted)}")
    return "; ".join(parts) + "."


def _label(node: Node, letters: int) -> str:
    """Operator first, then as much of the name as fits and tells more."""
    name = node.name.replace("/layers/", "/").strip("/")
    parts = [p for p in name.split("/") if p not in (node.op,)]
    # exporters repeat a path: layer1/layer1.0 says no more than layer1.0
    parts = [p for place, p in enumerate(parts) if not any(q.startswith(p + ".") for q in parts[place + 1 :])]
    rest = "/".join(parts)
    room = letters - len(node.op) - 2
    if not rest or room < 4 or rest == node.op or rest.startswith(node.op + "_") and "/" not in rest:
        return node.op
    return f"{node.op}  {rest if len(rest) <= room else '…' + rest[-(room - 1) :]}"


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"
