"""Two plans beside each other, and pictures of one."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from plan_samples import REAL, onnx_file, recorded, synthetic

from labsupport import fusion, recordings, runtimes
from labsupport.errors import BadInput
from labsupport.fusion.pictures import before_after


def test_diff_finds_regrouping_types_and_tactics(real, workpieces):
    graph = workpieces["resnet18"]
    ours, theirs = fusion.xray(runtimes.OnnxRuntime(graph)), fusion.xray(recordings.load_plan(REAL), graph=graph)
    found = fusion.diff(ours, theirs)
    # ONNX Runtime adds the shortcut in the main branch's convolution, TensorRT in the shortcut's
    assert len(found.regrouped) == 3 and len(found.same) == 17 and len(found.retyped) == 17
    before, after = found.regrouped[0]
    assert [k.nodes[-1] for k in before] == ["/layer2/layer2.0/downsample/downsample.0/Conv", "/layer2/layer2.0/Relu_1"]
    assert found.only_before == ("/Flatten",) and found.only_after == ()
    assert "3 groups fused differently" in repr(found) and len(found.table()) == 20


def test_diff_of_a_plan_with_itself_is_empty(real):
    found = fusion.diff(real, real)
    assert (
        not found.regrouped
        and not found.retyped
        and not found.retuned
        and len(found.same) == 23
        and len(found.table()) == 0
    )


def test_diff_refuses_strangers(real, workpieces):
    with pytest.raises(BadInput, match="have no ONNX node in common; compare plans of one graph"):
        fusion.diff(real, fusion.xray(runtimes.OnnxRuntime(workpieces["encoder"])))
    with pytest.raises(BadInput, match=r"after is a dict; diff\(\) takes two results of fusion.xray\(\)"):
        fusion.diff(real, {})


# --- pictures ----------------------------------------------------------------------------------------------------


def test_drawing_shows_every_node_and_kernel(real):
    picture = fusion.draw(real)
    svg = picture.svg()
    assert len(re.findall(r">(?:Conv|Relu|Add|MaxPool|GlobalAveragePool|Flatten|Gemm)\b[^<]*<", svg)) == 49
    assert len(re.findall(r">conv fp16", svg)) == 20 and len(re.findall(r">copy ", svg)) == 2
    assert picture.text.startswith("resnet18_b32.fp16, before and after: 49 ONNX nodes = 48 in 23 kernels + 1 removed")
    assert len(picture._repr_png_()) < 95_000 and picture._repr_png_()[:4] == b"\x89PNG"


def test_drawing_of_two_hundred_nodes_stays_small_and_whole(tmp_path):
    count = 200
    nodes = [
        (f"/n{i}/Relu" if i % 2 else f"/n{i}/Exp", "Relu" if i % 2 else "Exp", [f"t{i}"], [f"t{i + 1}"], {})
        for i in range(count)
    ]
    graph = onnx_file(tmp_path / "long.onnx", nodes, [("t0", [4])], [(f"t{count}", [4])])
    pairs = [" + ".join(name for name, *_ in nodes[i : i + 2]) for i in range(0, count, 2)]
    picture = fusion.draw(fusion.xray({"Layers": pairs}, graph=graph))
    assert len(re.findall(r">(?:Exp|Relu)\b[^<]*<", picture.svg())) == count and len(picture._repr_png_()) < 95_000
    width, height = picture.figure.get_size_inches()
    assert width <= 8 and height <= 20


def test_drawing_of_mobilenet_fits_a_notebook_and_keeps_the_kinds_apart(workpieces):
    from io import BytesIO

    from PIL import Image

    from labsupport.fusion.pictures.canvas import STYLES

    run = runtimes.OnnxRuntime(workpieces["mobilenet"])
    times = fusion.profile(run, np.zeros((1, 3, 32, 32), np.float32), runs=1, warmup=0)
    plan = fusion.xray(run, profile=times)
    png = fusion.draw(plan)._repr_png_()
    assert len(png) < 95_000
    colours = {colour for _, colour in Image.open(BytesIO(png)).convert("RGB").getcolors(256)}
    kinds = {kernel.kind for kernel in plan.kernels} & set(STYLES)
    assert {tuple(bytes.fromhex(STYLES[kind][0][1:])) for kind in kinds} <= colours


def test_drawing_joins_kernels_through_what_does_not_run():
    """The merged matmul reaches its three copies through a no-op, and they the pointwise kernel through others."""
    from labsupport.fusion.pictures.before_after import _links

    plan = recorded("sibling_matmuls.fp16")
    names = {kernel.name: kernel.kind for kernel in plan.launched}
    links = {(names[a], names[b]): n for n, (a, b) in enumerate(sorted(_links(plan.kernels, names)))}
    assert set(links) == {("layout", "matmul"), ("matmul", "layout"), ("layout", "pointwise"), ("pointwise", "layout")}


def test_drawing_marks_what_is_inferred_moved_or_unplaced(block):
    region = fusion.draw(fusion.xray(synthetic("trt8.6_region"), graph=block)).svg()
    assert (
        region.count("  ?<") == 4
        and "? = inferred" in region
        and "4 nodes folded, not drawn" in region
        and ">moved<" in region
    )
    names = ["/left/Conv || /right/Conv", "/tail/Conv", "/act/Sigmoid + /act/Mul"]
    assert ">unplaced: nobody names it<" in fusion.draw(fusion.xray(names, graph=block)).svg()


def test_drawing_keeps_an_edge_that_runs_up_the_page(block):
    """A region around a kernel in its middle reads what stands below it; the arrow is drawn upwards, not lost."""
    layers = [
        "/conv1/Conv + /relu1/Relu + /act/Mul",
        "/left/Conv || /right/Conv",
        "/tail/Conv + /add/Add + /act/Sigmoid",
    ]
    down = fusion.draw(fusion.xray({"Layers": [layers[0].replace(" + /act/Mul", ""), *layers[1:]]}, graph=block))
    both = fusion.draw(fusion.xray({"Layers": layers}, graph=block))
    heads = [
        sum(bool(text.arrow_patch) for text in d.figure.axes[0].texts if hasattr(text, "arrow_patch"))
        for d in (down, both)
    ]
    assert heads[1] > heads[0]


def test_rails_share_a_lane_only_where_one_ends_above_the_other():
    rails = []
    canvas = SimpleNamespace(
        NODE=(0, 1), KERNEL=(2, 3), spot=lambda row: (0, row),
        rail=lambda side, lane, upper, lower, upwards: rails.append((lane, upper, lower, upwards)),
    )  # fmt: skip
    before_after._column(canvas, -1, {(0, 2), (2, 4), (3, 7), (5, 7), (9, 6), (8, 8)}, occupied=set(range(10)))
    assert rails == [(0, 0, 2, False), (1, 2, 4, False), (0, 3, 7, False), (1, 5, 7, False), (2, 6, 9, True)]


def test_drawing_is_saved_as_svg_or_png(real, tmp_path):
    picture = fusion.draw(real)
    assert picture.save(tmp_path / "a" / "plan.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert picture.save(tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(
        BadInput, match="plan.gif ends in '.gif'; a drawing is saved as .svg .opens at any size. or .png"
    ):
        picture.save(tmp_path / "plan.gif")


def test_time_bar_adds_up_the_rest(real):
    bar = fusion.time_bar(real, top=3)
    assert (
        "conv1/Conv +1 0.0644 (convolution, 12%)" in bar.text
        and "22 others" in bar.text
        and "copy for conv1/Conv" in fusion.time_bar(real).text
    )


def test_pictures_refuse_what_they_cannot_show(block):
    plan = fusion.xray(synthetic("layer_names"))
    with pytest.raises(BadInput, match="read without its ONNX graph, so there is no 'before' to draw; pass graph="):
        fusion.draw(plan)
    with pytest.raises(BadInput, match="has no times; pass profile=fusion.profile"):
        fusion.time_bar(plan)
    with pytest.raises(BadInput, match="top=0; wanted a whole number of at least 1"):
        fusion.time_bar(fusion.xray(synthetic("trt10"), graph=block, profile={"/tail/Conv + /add/Add": 1.0}), top=0)
