"""Names inside names: the ONNX nodes that a TensorRT layer's name and metadata mention."""

from __future__ import annotations

import re

PROFILE = re.compile(r" \[profile (\d+)\]")
MYELIN = re.compile(r"_myl(\d+)_\d+$")


def metadata_names(text: str) -> tuple[str, ...]:
    """ONNX nodes in a layer's Metadata, parted by \\x1e (Myelin's by \\x1f); `| function` after a name is dropped."""
    return tuple(
        dict.fromkeys(name.split(" | ")[0].strip() for name in re.findall(r"\[ONNX Layer: ([^\]]*)\]", text or ""))
    )


def without_profile(name: str) -> str:
    """A layer's or tensor's name without the mark of its optimization profile, as in "conv [profile 1]"."""
    return PROFILE.sub("", name)


def of_profile(names: list[tuple[str, ...]]) -> list[int]:
    """The optimization profile of each layer, given its name and its tensors' names; the first is 0 and is not marked.

    Layers of a profile stand together. Of a Myelin region some bear no mark, but share the region's number, "_myl11".
    """
    marks = [next((int(m[1]) for m in map(PROFILE.search, texts) if m), None) for texts in names]
    regions = [next((m[1] for m in map(MYELIN.search, texts[:1]) if m), None) for texts in names]
    by_region = {region: mark for region, mark in zip(regions, marks, strict=True) if region and mark is not None}
    profiles, current = [], 0
    for mark, region in zip(marks, regions, strict=True):
        current = mark if mark is not None else by_region.get(region, current)
        profiles.append(current)
    return profiles


def name_parts(name: str) -> tuple[str, ...]:
    """ONNX node names in a layer's name: parted at " + " and " || ", taken out of PWN(…) and the like."""
    text = without_profile(name.strip())
    if region_ends(text) or text.startswith("Reformatting CopyNode for "):
        return ()
    text = re.sub(r"(?<![\w/.])(PWN|PointWise)\(", "(", text)
    parts = []
    for piece in re.split(r" \+ | \|\| |, (?=[^)\]]*(?:[)\]]|$))", text):
        piece = re.sub(r"^[({\s]+", "", piece) if not piece.lstrip("( ").startswith("Unnamed Layer") else ""
        piece = piece.rstrip("} ") if piece.count("{") < piece.count("}") else piece
        while piece.count(")") > piece.count("("):
            piece = piece.rstrip()[:-1] if piece.rstrip().endswith(")") else piece.replace(")", "", 1)
        piece = re.sub(
            r"^(?:(?:re)?shape_(?:before|after)|(?:copied_|un)?squeeze_(?:node_)?(?:before|after))_", "", piece
        )
        piece = re.sub(r"(?:_myl\d+_\d+|_clone_\d+|_copy_(?:in|out)put| copy| \[[A-Za-z ]+\])$", "", piece).strip()
        if piece and not piece.startswith("__my"):
            parts.append(piece)
    return tuple(dict.fromkeys(parts))


def region_ends(name: str) -> tuple[str, str] | None:
    """First and last node of a Myelin region called {ForeignNode[first...last]}; None for another layer."""
    match = re.search(r"ForeignNode\[(.+?)\.\.\.(.+)\]", without_profile(name))
    return (match.group(1).strip(), match.group(2).strip()) if match else None


def kind_by_name(name: str) -> str:
    """A names-only plan does not say what a layer is; its name gives some of them away."""
    if region_ends(name):
        return "region"
    if name.startswith(("Reformatting CopyNode", "reshape_", "squeeze_", "unsqueeze_")) or name.endswith(" copy"):
        return "layout"
    return "pointwise" if name.startswith(("PWN(", "PointWise(")) else "unknown"
