"""Metrics under names that a person reads, such as "TensorRT FP16 over PyTorch FP16, both as CUDA graphs".

``data/recordings/names.json`` holds words for the parts of a metric's name, and whole names where the parts would
read badly.
"""

from __future__ import annotations

import functools
import re

from labsupport.recordings import provenance

SUBJECT = re.compile(r"^(?P<letter>[bsnmk])(?P<number>\d+)$")
SIZES = {"b": "batch {}", "s": "{} tokens", "n": "n = {}", "m": "m = {}", "k": "k = {}"}
SUFFIXES = {
    "_relative_error": "relative error of {}",
    "_error": "largest error of {}",
    "_accuracy": "accuracy of {}",
    "_fp32_products": "time of the products in FP32, {}",
}
GRAPH = " as a CUDA graph"
UNITS = ("_ms", "_us", "_points")  # the value's unit says it
HIDDEN = ("lab.seconds",)  # how long a lab runs is no result of it


def readable(metric: str) -> str:
    """A recorded metric's name in words."""
    words, whole = _vocabulary()
    subject, _, quantity = metric.partition(".")
    if metric in whole or f"*.{quantity}" in whole:
        said = whole.get(metric) or whole[f"*.{quantity}"]
        return said.format(subject=_subject(subject, words))
    quantity = next((quantity.removesuffix(unit) for unit in UNITS if quantity.endswith(unit)), quantity)
    pattern = "{}"
    for suffix, form in SUFFIXES.items():
        if quantity.endswith(suffix) and quantity not in words and pattern == "{}":
            quantity, pattern = quantity.removesuffix(suffix), form
    sides = [_in_words(side, words) for side in quantity.split("_over_")]
    said = " over ".join(sides)
    if len(sides) == 2 and all(side.endswith(GRAPH) for side in sides):
        said = " over ".join(side.removesuffix(GRAPH) for side in sides) + ", both as CUDA graphs"
    said, of = pattern.format(said), _subject(subject, words)
    said = said if "." in said.partition(" ")[0] else said[:1].upper() + said[1:]  # torch.compile is a name
    return f"{said} ({of})" if of else said


def _subject(subject: str, words: dict[str, str]) -> str:
    parts, sizes = [], []
    for part in _in_words(subject, words, keep=True):
        match = SUBJECT.match(part)
        (sizes if match else parts).append(SIZES[match["letter"]].format(match["number"]) if match else part)
    return ", ".join([" ".join(parts), *sizes]).strip(", ")


def _in_words(name: str, words: dict[str, str], keep: bool = False):
    """The parts of a name, each in its words; parts that belong together are looked up together."""
    parts, said = name.split("_"), []
    while parts:
        for length in range(len(parts), 0, -1):
            together = "_".join(parts[:length])
            if together in words or length == 1:
                said.append(words.get(together, together))
                parts = parts[length:]
                break
    return said if keep else " ".join(said)


@functools.lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, str], dict[str, str]]:
    content = provenance.read_json(provenance.ROOT / "names.json")
    return content["words"], content["names"]
