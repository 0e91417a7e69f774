"""The checkers of lab 15: untouched, each foreseen mistake, right answers in two ways; the figures and old programs of its data."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from labsupport import environment
from labsupport.exercises import lab15, lab15_formats
from labsupport.exercises.base import assert_checker, assert_complete
from labsupport.listings import releases

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"np": np, "narrow": lab15_formats.nearest}
PROGRAMS = json.loads((ROOT / "data" / "programs" / "old_programs.json").read_text(encoding="utf-8"))
CHIPS = json.loads((ROOT / "data" / "hardware" / "accelerators.json").read_text(encoding="utf-8"))["rows"]
BUILDER = pytest.mark.skipif(not environment.has("engine building"), reason="no builder on this machine")


def test_the_lab_holds_five_exercises_with_hints_and_solutions():
    assert_complete(lab15, ["growth", "speedup", "nvfp4", "gone", "seventh"])


def floors(operations, size, before, after):
    return [max(operations / rate, size / memory) for rate, memory in (before, after)]


def by_rates(operations, size, before, after):
    """A twin: attainable rate is the lower of both roofs."""
    intensity = operations / size
    attainable = [min(rate, intensity * memory) for rate, memory in (before, after)]
    return attainable[1] / attainable[0]


ONE_TERM = (
    "how one term grew|The slower of the two terms binds|the other way round"  # chips and networks are drawn anew
)


def test_speedup():
    assert_checker(lab15.speedup, wrong=[
        (lambda o, s, b, a: floors(o, s, a, b)[0] / floors(o, s, a, b)[1], "the other way round"),
        (lambda o, s, b, a: (o / b[0] + s / b[1]) / (o / a[0] + s / a[1]), "the slower counts, not the sum"),
        (lambda o, s, b, a: min(o / b[0], s / b[1]) / min(o / a[0], s / a[1]), ONE_TERM),
        (lambda o, s, b, a: a[0] / b[0], ONE_TERM), (lambda o, s, b, a: a[1] / b[1], ONE_TERM), (lambda o, s, b, a: 1, f"Take the larger|{ONE_TERM}"),
        (lambda o, s, b, a: (a[0] / b[0] + a[1] / b[1]) / 2, "Take the larger"), (lambda o, s, b, a: None, "a number is wanted"), (2.0, "hand in the function itself"),
    ], right=[lambda o, s, b, a: floors(o, s, b, a)[0] / floors(o, s, b, a)[1], by_rates], namespace=NAMES)  # fmt: skip


def by_library(x):
    """A twin by ml_dtypes, block after block."""
    out, tensor = np.zeros(x.size), np.abs(x).max() / (6 * 448)
    for start in range(0, x.size, 16):
        block = x.ravel()[start : start + 16]
        if tensor and np.abs(block).max():
            scale = float(np.float32(np.abs(block).max() / 6 / tensor).astype(ml_dtypes.float8_e4m3fn)) * tensor
            scaled = np.clip(block / scale, -6, 6) if scale else np.zeros(16)
            out[start : start + 16] = scaled.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale
    return out.reshape(x.shape)


def test_nvfp4():
    assert_checker(lab15.nvfp4, wrong=[
        (lambda x: lab15_formats.blocked(x, x.size), "one scale for the whole tensor came"), (lab15_formats.exact_scales, "the block scale is exact"),
        (lab15_formats.powers, "which is MXFP4"), (lab15_formats.no_tensor_scale, "the tensor's scale is missing|off by"),
        (lambda x: lab15_formats.blocked(x, 32) if x.size % 32 == 0 else lab15_formats.as_nvfp4(x), "blocks of 32 came|one scale for"), (lambda x: x.copy(), "nothing was rounded"),
        (lambda x: x * np.nan, "NaN or infinity"), (lambda x: lab15_formats.as_nvfp4(x).ravel()[:-1], "has shape"), (lambda x: "x", "wanted are numbers"),
        (lambda x: np.multiply(x, 2, out=x), "changed an array"), (lambda x: 2 * lab15_formats.as_nvfp4(x), "off by up to"), (3, "hand in the function itself"),
        (lambda x: lab15_formats.nearest(x.reshape(-1, 16) / lab15_formats.tops(x, 16) * 6, 1, 0, 6.0).reshape(x.shape), "off by|NaN"),
    ], right=[lab15_formats.as_nvfp4, by_library], namespace=NAMES)  # fmt: skip


def lost(before, after):
    names = [name for name in before if name not in after]
    for name in before.keys() & after.keys():
        members = [set(each.get("members", [])) | set(each.get("enum", [])) for each in (before[name], after[name])]
        names += [f"{name}.{member}" for member in members[0] - members[1]]
    return sorted(names)


def lost_by_filter(before, after):
    def every(listing):
        return {
            (name, member)
            for name, entry in listing.items()
            for member in (None, *entry.get("members", ()), *entry.get("enum", ()))
        }

    gone = every(before) - every(after)
    classes = {name for name, member in gone if member is None}
    return sorted(
        name if member is None else f"{name}.{member}" for name, member in gone if member is None or name not in classes
    )


def test_gone():
    def with_members(before, after):
        return sorted(
            {
                *lost(before, after),
                *(f"{n}.{m}" for n in before if n not in after for m in before[n].get("members", [])),
            }
        )

    def members_only(before, after):
        return lost(
            {n: {"members": e.get("members", [])} for n, e in before.items()},
            {n: {"members": e.get("members", [])} for n, e in after.items()},
        )

    assert_checker(lab15.gone, wrong=[
        (with_members, "the whole class is gone: name the class once"), (members_only, "and it is not gone|is gone and is not among"),
        (lambda b, a: lost(a, b), "and it is not gone|is gone and is not among"), (lambda b, a: [n for n in sorted(b) if n not in a], "is gone and is not among"),
        (lambda b, a: lost(b, a)[::-1], "their order is not: sort them"), (lambda b, a: [], "is gone and is not among"), (lambda b, a: lost(b, a) * 2, "a name came twice"),
        (lambda b, a: "x", "a sorted list of names"), (lambda b, a: 3, "a sorted list of names"), (["x"], "hand in the function itself"),
        (lambda b, a: [[each] for each in lost(b, a)], "each is text"), (lambda b, a: [1, *lost(b, a)], "each is text"),
    ], right=[lost, lost_by_filter, lambda b, a: tuple(lost(b, a))], namespace=NAMES)  # fmt: skip


MENDED = (lab15.SEVENTH.replace("config.max_workspace_size = 1 << 26", "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 26)")
          .replace("engine = builder.build_engine(network, config)\nplan = engine.serialize()", "plan = builder.build_serialized_network(network, config)"))  # fmt: skip


@BUILDER
def test_seventh():
    twin = MENDED.replace("config = builder", "limits = trt.MemoryPoolType\nconfig = builder").replace(
        "trt.MemoryPoolType.WORKSPACE", "limits.WORKSPACE"
    )
    wrong = [
        (MENDED.replace("config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 26)", ""), "the workspace is limited to"),
        (MENDED.replace("1 << 26", "1 << 20"), "the workspace is limited to 1,048,576 bytes"), (MENDED.replace("plan = ", "engine = "), "'plan' is not defined"),
        (MENDED.replace("relu = network.add_activation(conv.get_output(0), trt.ActivationType.RELU)", "relu = conv"), "leave the convolution and the activation"),
        ("exit()", "ended before its last line"), ("while True: pass", "the program did not end"), ("plan = (", "it still breaks in line 1: SyntaxError"),
        ("print('PROOF')\nraise SystemExit", "ended before its last line"), (MENDED + "\nplan = b'x'", "`plan` holds 1 bytes"), (lambda: 3, "text, in quotation marks"),
        (MENDED + "\nplan = bytes(len(bytes(plan)))", "byte value"), (MENDED + "\nplan = 5000", "byte value"),
        ("import os\nos.system('true')", "refuses to start another process"),
    ]  # fmt: skip
    if environment.generation() != "8.6":
        wrong.append((lab15.SEVENTH, "it still breaks in line 11: AttributeError: .*max_workspace_size"))
    assert_checker(
        lab15.seventh,
        wrong=[case for case in wrong if "while" not in str(case[0])],
        right=[MENDED, twin],
        namespace=NAMES,
    )


def test_without_a_builder_the_seventh_is_not_judged(monkeypatch):
    monkeypatch.setattr(environment, "has", lambda *needs: False)
    monkeypatch.setattr(environment, "why_not", lambda *needs: "no builder here")
    verdict = lab15.seventh.check(MENDED)
    assert verdict.outcome == "not attempted" and verdict.message == "no builder here"


@pytest.mark.parametrize("name", ["speedup", "nvfp4", "gone", "seventh"])
def test_a_solution_changes_nothing_else_in_the_notebook(name):
    import solutions

    starters = {"speedup", "to_nvfp4", "went", "program"}
    assert not solutions.shared_names(getattr(lab15, name).solution_source, "15_outlook", starters=starters)


@pytest.mark.parametrize("row", CHIPS, ids=lambda row: row["name"])
def test_a_figure_has_a_source_and_stands_in_reason(row):
    assert row["source"].startswith("https://") and row["published"][:2] == "20" and 2016 < row["year"] < 2027
    assert (
        8 <= row["memory_gb"] <= 512
        and 50 < row["gb_per_s"] < 20_000
        and (row["watts"] is None or 5 <= row["watts"] <= 2000)
    )
    rates = row["tera_per_s"]
    order = [rates[kind] for kind in ("fp32", "tf32", "fp16", "fp8", "fp4") if kind in rates]
    assert order == sorted(order), "a narrower format is no slower"
    assert not row["price_usd"] or row["price_source"]


def test_the_gpu_line_grows_as_the_lab_says():
    chips = {row["name"]: row for row in CHIPS}
    first, last = chips["V100 SXM2"], chips["B200 SXM"]
    arithmetic = last["tera_per_s"]["fp16"] / first["tera_per_s"]["fp16"]
    assert 1.5 < arithmetic / (last["gb_per_s"] / first["gb_per_s"]) < 2.5


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["id"])
def test_an_old_program_names_what_broke_it(program):
    text = "\n".join(program["program"])
    assert len(PROGRAMS) == 6 and program["why"] and all(old in text for old, _ in program["changes"])
    for name in program["names"]:
        assert "8.6.0" in releases.having(name) and "rtx-1.7.1" not in releases.having(name)
        assert name.rpartition(".")[2] in text


class TestReleases:
    def test_five_releases_are_listed(self):
        assert all(len(releases.names(release)) > 1000 for release in releases.RELEASES)

    def test_changes_count_a_class_once(self):
        came, went = releases.changes("10.16.1.11", "11.0.0.114")
        assert "IInt8EntropyCalibrator2" in went and not any(
            name.startswith("IInt8EntropyCalibrator2.") for name in went
        )
        assert "BuilderFlag.FP16" in went and "INetworkDefinition.add_attention_v2" in came
        assert releases.changes("11.0.0.114", "11.4.0.106")[1] == ()

    def test_nothing_changed_within_one_release(self):
        assert releases.changes("8.6.0", "8.6.0") == ((), ())

    def test_an_unknown_release_is_refused(self):
        from labsupport.errors import BadInput

        with pytest.raises(BadInput, match="'9.9' has no listing; choose one of"):
            releases.names("9.9")


@BUILDER
def test_old_programs_do_what_their_listing_says_and_their_mends_build():
    from labsupport.listings import sandbox

    generation, aim = environment.generation(), ""
    if generation == "rtx" and not environment.has("engine execution"):
        aim = lab15.AIMED
    given = {"FLAGS": 1 if generation == "8.6" else 0, "GPU": environment.has("engine execution")}
    modules = {"tensorrt": environment.tensorrt().__name__}
    for program in PROGRAMS:
        text = "\n".join(program["program"])
        known = all(name in releases.names(releases.OF_GENERATION[generation]) for name in program["names"])
        assert sandbox.python(aim + text, given=given, modules=modules, seconds=120).ok == known, program["id"]
        for old, new in program["changes"]:
            text = text.replace(old, new)
        if generation in program["mends"]:
            outcome = sandbox.python(aim + text, given=given, modules=modules, seconds=120)
            assert outcome.ok, (program["id"], outcome)
