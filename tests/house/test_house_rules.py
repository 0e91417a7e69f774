"""The package's own rules: who may import whom, what stays cheap, what never appears. Each is shown to fire."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from package_arrows import PACKAGE, RANK, circles, file_arrows, imported, package, room_arrows, upward

ROOT = Path(__file__).resolve().parents[2]
TALKS = {
    "command_line.classroom",
    "command_line.cli",
    "command_line.opening",
    "__main__",
    "command_line.installation",
    "command_line.running",
}  # print to the terminal; the rest returns values
STDLIB_ONLY = [
    "errors",
    "files",
    "environment",
    "command_line",
    "command_line.doctor",
    "command_line.installation",
    "command_line.cli",
    "exercises",
    "exercises.base",
    "exercises.progress",
    "exercises.progress_report",
    "exercises.resetting",
    "exercises.shipped",
    "exercises.editions",
    "exercises.own_copies",
]
NEVER_AT_TOP = {
    "tensorrt",
    "tensorrt_rtx",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_graphsurgeon",
    "polygraphy",
    "pandas",
    "matplotlib",
    "pynvml",
    "nbclient",
    "nbformat",
    "tensorflow",
    "keras",
    "IPython",
}
HEAVY = NEVER_AT_TOP | {"numpy", "torch", "PIL"}
PROBES = {
    "command_line.doctor",
    "command_line.import_probes",
}  # look into broken installations, where importing raises anything
TORCH_ROOMS = {
    "models",
    "training",
    "distillation",
    "pruning",
}  # their work is PyTorch's; importing it at the top is honest
TORCH_PARTS = {
    "quantization.folded_networks",
    "quantization.qat",
    "fusion.blocks",
    "precision.raw_pixels",
    "plugins.gated_norm",
    "language.networks",
}


def tensorrt_importers(trees: dict[str, ast.Module]) -> dict[str, bool]:
    """module → whether every import of TensorRT in it is inside a function."""
    ours = {"tensorrt", "tensorrt_rtx"}
    found = {}
    for name, tree in trees.items():
        named = {dotted.split(".")[0] for dotted in imported(tree)} & ours
        called = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and any(isinstance(part, ast.Constant) and part.value in ours for part in node.args)
        ]
        if named or called:
            found[name] = not {dotted.split(".")[0] for dotted in imported(tree, inside_functions=False)} & ours
    return found


def heavy_at_top(name: str, tree: ast.Module) -> list[str]:
    tops = {dotted.split(".")[0] for dotted in imported(tree, inside_functions=False)}
    banned = NEVER_AT_TOP | (set() if name.split(".")[0] in TORCH_ROOMS or name in TORCH_PARTS else {"torch"})
    return [
        f"labsupport.{name} imports {top} at its top; import it inside the functions that need it"
        for top in sorted(tops & banned)
    ]


def prints(name: str, tree: ast.Module) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [
        f"labsupport.{name}:{call.lineno} prints; return a value and let the notebook show it"
        for call in calls
        if call.func.id == "print" and name not in TALKS
    ]


def long_functions(name: str, tree: ast.Module) -> list[str]:
    """More than 45 lines below the signature and the docstring."""
    said = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            count = node.end_lineno - body[0].lineno + 1 if body else 0
            if count > 45:
                said.append(f"labsupport.{name}.{node.name} has {count} lines; 45 at most")
    return said


def undocumented(name: str, tree: ast.Module) -> list[str]:
    """Public functions and classes without a docstring; of an exercise, the ``question`` says what it is."""
    said = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assigned = [ast.unparse(part.targets[0]) for part in node.body if isinstance(part, ast.Assign)]
            asks = "question" in assigned
            if not ast.get_docstring(node) and not asks:
                said.append(f"labsupport.{name}.{node.name} has no docstring")
    return said


def swallowed(name: str, tree: ast.Module) -> list[str]:
    said = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(part, (ast.Pass, ast.Continue)) for part in node.body)
            if node.type is None or broad and silent and name not in PROBES:
                said.append(f"{name}:{node.lineno} swallows every error; name the errors that are meant")
    return said


def unsafe(name: str, tree: ast.Module) -> list[str]:
    said = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            bad = {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & {module.split(".")[0] for module in modules}
            said += [f"{name}:{node.lineno} imports {module}" for module in sorted(bad)]
        if isinstance(node, ast.Call):
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            said += [
                f"{name}:{node.lineno} passes {option}={value}"
                for option, value in [("allow_pickle", True), ("shell", True), ("verify", False)]
                if given.get(option) is value and option in given
            ]
            if ast.unparse(node.func).endswith("torch.load") and given.get("weights_only") is not True:
                said.append(f"{name}:{node.lineno} calls torch.load without weights_only=True")
        if isinstance(node, ast.Constant) and node.value == ".".join("0000"):
            said.append(f"{name}:{node.lineno} listens to every network")
    return said


MACHINE_PATH = re.compile(r"(?<![\w.~:/}\])])/(?:work|home|root|tmp)/|\b[A-Z]:\\+Users\\")


def machine_paths(name: str, text: str) -> list[str]:
    return [
        f"{name}:{number} holds the path of some machine: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]


def tracked_files() -> list[Path]:
    """What git tracks or would add; without git, everything outside folders whose name starts with a dot."""
    try:
        listed = (
            subprocess.run(
                ["git", "ls-files", "-co", "--exclude-standard", "-z"],
                cwd=ROOT,
                capture_output=True,
                check=True,
                timeout=60,
            )
            .stdout.decode()
            .split("\0")
        )
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.SubprocessError):
        return [
            path
            for path in ROOT.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
        ]


def test_nothing_imports_upward_and_every_room_has_a_floor():
    assert {name.split(".")[0] for name in package()} - {""} <= RANK.keys() | {"__init__"}
    assert not (said := upward(package())), "\n".join(said)


def test_there_is_no_circle_between_rooms_nor_between_files():
    assert circles(room_arrows(package())) == []
    assert circles(file_arrows(package())) == []


def test_a_face_hands_names_on_and_holds_no_logic():
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        text, source = path.read_text(encoding="utf-8"), ast.parse(path.read_text(encoding="utf-8"))
        assert len(text.splitlines()) <= 60 and ast.get_docstring(source), path.parent.name
        for node in source.body[1:]:
            named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert named or isinstance(node, ast.ImportFrom), f"{path.parent.name}: {ast.unparse(node)[:60]}"
        handed = {
            alias.asname or alias.name
            for node in source.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        listed = next((ast.literal_eval(node.value) for node in source.body if isinstance(node, ast.Assign)), [])
        assert set(listed) == handed - {"annotations"}, path.parent.name


def test_folders_and_files_stay_small():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(sizes.values()) <= 350, max(sizes, key=sizes.get)
    folders = {
        folder: sum(size for path, size in sizes.items() if path.parent == folder)
        for folder in {path.parent for path in sizes} - {PACKAGE / "exercises"}
    }
    assert max(folders.values()) <= 3000, max(folders, key=folders.get)
    tests = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert max(tests.values()) <= 500, max(tests, key=tests.get)


def test_tensorrt_is_imported_in_three_modules_at_most_and_inside_functions():
    importers = tensorrt_importers(package())
    assert len(importers) <= 3, sorted(importers)
    assert all(importers.values()), f"at the top of {[name for name, inside in importers.items() if not inside]}"


@pytest.mark.parametrize("rule", [heavy_at_top, prints, long_functions, swallowed, unsafe])
def test_modules_keep_the_rule(rule):
    said = [sentence for name, tree in package().items() for sentence in rule(name, tree)]
    assert not said, "\n".join(said)


def test_what_a_notebook_can_call_is_documented():
    said = [
        sentence
        for name, tree in package().items()
        if not name.startswith("exercises.lab") and name not in TALKS
        for sentence in undocumented(name, tree)
    ]
    assert not said, "\n".join(said)


def test_there_is_no_utils_module():
    names = {path.stem for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_files_name_no_machine():
    said = []
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture or an array
            continue
        if name not in ("tests/nbval_sanitize.cfg",):  # it replaces such paths
            said += machine_paths(name, text)
    assert not said, "\n".join(said)


def test_tests_tools_and_notebooks_are_safe_too():
    said = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        said += unsafe(name, tree) + swallowed(name, tree)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                said += unsafe(path.name, notebook_tree("".join(cell["source"])))
    assert not said, "\n".join(said)


def notebook_tree(source: str) -> ast.Module:
    from notebook_rules import tree_of

    return tree_of(source)


def fresh_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages, beyond the standard library, that importing the modules brings in."""
    code = (
        "import importlib, json, sys; before = set(sys.modules)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before}\n"
        "    - set(sys.stdlib_module_names) - {'labsupport'})))"
    )
    return set(json.loads(fresh_python("-c", code).stdout))


def test_import_labsupport_imports_nothing_else():
    assert loaded_by("labsupport") == set()


def test_modules_that_run_before_the_environment_exists_use_the_standard_library_only():
    there = [f"labsupport.{name}" for name in STDLIB_ONLY if name in package()]
    assert loaded_by(*there) == set()


def test_the_doors_of_the_other_rooms_are_light():
    light = [
        f"labsupport.{name}" for name in ("export", "build", "recordings", "command_line.running") if name in package()
    ]
    assert not loaded_by(*light) & HEAVY


def test_the_check_of_what_is_loaded_can_fail():
    assert "numpy" in loaded_by("numpy")


def test_import_labsupport_takes_less_than_30_ms():
    # the best of several: what else runs on the machine only ever adds
    best_us = min(
        int(re.search(r"\|\s*(\d+) \|\s+labsupport$", run.stderr, re.M).group(1))
        for run in (fresh_python("-X", "importtime", "-c", "import labsupport") for _ in range(5))
    )
    assert best_us < 30_000


def tree(source: str) -> ast.Module:
    return ast.parse(source)


@pytest.mark.parametrize(
    "rule, source, sentence",
    [
        (heavy_at_top, "import onnx", "imports onnx at its top"),
        (heavy_at_top, "try:\n    import torch.nn\nexcept ImportError:\n    torch = None", "imports torch at its top"),
        (prints, "def f():\n    print(1)", "x:2 prints"),
        (long_functions, "def f():\n" + "    x = 1\n" * 46, "f has 46 lines"),
        (undocumented, "def f():\n    return 1", "f has no docstring"),
        (undocumented, "class Plain:\n    answer = 1", "Plain has no docstring"),
        (swallowed, "try:\n    f()\nexcept:\n    g()", "x:3 swallows"),
        (swallowed, "try:\n    f()\nexcept Exception:\n    pass", "x:3 swallows"),
        (unsafe, "import pickle", "imports pickle"),
        (unsafe, "from pickle import loads", "imports pickle"),
        (unsafe, "np.load(p, allow_pickle=True)", "allow_pickle=True"),
        (unsafe, "subprocess.run(c, shell=True)", "shell=True"),
        (unsafe, "get(u, verify=False)", "verify=False"),
        (unsafe, "torch.load(p)", "without weights_only"),
        (unsafe, "serve(" + repr(".".join("0000")) + ")", "listens to every network"),
    ],
)
def test_a_rule_fires(rule, source, sentence):
    assert any(sentence in said for said in rule("x", tree(source))), rule("x", tree(source))


@pytest.mark.parametrize(
    "rule, source",
    [
        (heavy_at_top, "def f():\n    import onnx"),
        (heavy_at_top, "import numpy"),
        (heavy_at_top, "if TYPE_CHECKING:\n    import torch"),
        (long_functions, 'def f():\n    """' + "\n" * 50 + '    """\n    return 1'),
        (undocumented, "def _f():\n    return 1"),
        (undocumented, "class Spot(base.Exercise):\n    question = 'Which?'"),
        (swallowed, "try:\n    f()\nexcept OSError:\n    pass"),
        (unsafe, "torch.load(p, weights_only=True)"),
        (unsafe, "np.load(p, allow_pickle=False)"),
    ],
)
def test_a_rule_lets_the_right_thing_pass(rule, source):
    assert rule("x", tree(source)) == []


def test_an_import_upward_and_a_circle_are_seen():
    trees = {
        "build.engines": tree("def f():\n    from labsupport.comparing import tables"),
        "errors": tree("from . import build"),
        "export.a": tree("from labsupport.data.b import x"),
        "data.b": tree("import labsupport.export.a"),
    }
    assert upward(trees) == [
        "labsupport.build imports comparing, which stands above it",
        "labsupport.errors imports build, which stands above it",
    ]
    assert circles(room_arrows(trees)) == ["data", "export"]
    trees = {
        "build.a": tree("from labsupport.build import b"),
        "build.b": tree("def f():\n    from labsupport.build.a import x"),
        "build.c": tree("1"),
    }
    assert circles(file_arrows(trees)) == ["build.a", "build.b"]


def test_an_importer_of_tensorrt_is_seen():
    trees = {
        "a": tree("import tensorrt as trt"),
        "b": tree("def f():\n    import tensorrt_rtx"),
        "d": tree("import torch"),
        "c": tree("def f():\n    importlib.import_module('tensorrt')"),
    }
    assert tensorrt_importers(trees) == {"a": False, "b": True, "c": True}


@pytest.mark.parametrize(
    "line, found",
    [
        ("/".join(["cache = '", "work", "main'"]), True),
        ("/".join(["see ", "home", "ada"]), True),
        ("\\".join(["C:", "Users", "ada"]), True),
        ("https://example.org" + "/".join(["", "work", "x"]), False),
        ("notebooks/my_work/1", False),
        ("~" + "/".join(["", "tmp", "x"]), False),
    ],
)
def test_a_machine_path_is_seen(line, found):
    assert bool(machine_paths("x", line)) is found
