"""Which TensorRT names a source uses, and whether each exists in every release that can reach the line.

An abstract walk: every statement carries the set of releases under which it may run. Generation checks
(`environment.has`, `generation == …`, `hasattr`, early returns) narrow the set; a name missing from a release
still in the set is a fault. A private function gets the union of the sets at the places that mention it.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

LISTINGS = Path(__file__).parent / "fixtures" / "trt_api"
GENERATION = {"8.6.0": "8.6", "10.16.1.11": "10", "11.0.0.114": "11", "11.4.0.106": "11", "rtx-1.7.1": "rtx"}
NEEDS = {"8.6": {"8.6"}, "10": {"10"}, "11": {"11"}, "rtx": {"rtx"}, ">=10": {"10", "11", "rtx"}}
# set by the bindings' own __init__.py, so not in a listing: each stands for a member of DataType
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
    "fp8": "FP8",
    "int4": "INT4",
    "fp4": "FP4",
    "e8m0": "E8M0",
}
# these variable names mean a TensorRT object wherever a file uses TensorRT and does not bind them to something else
CONVENTION = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "trt_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "timing_cache": "ITimingCache",
}
RETURNS = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "build_serialized_network": "IHostMemory",
    "build_engine_with_config": "ICudaEngine",
    "create_runtime_config": "IRuntimeConfig",
    "create_serialization_config": "ISerializationConfig",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "get_layer": "ILayer",
    "add_input": "ITensor",
}
MODULE, GENERATION_NAME, OTHER = ("module",), ("generation",), ("other",)


@lru_cache
def releases() -> dict[str, dict]:
    """release → its API listing."""
    return {name: json.loads((LISTINGS / f"{name}.json").read_text(encoding="utf-8"))["api"] for name in GENERATION}


ALL = frozenset(GENERATION)


def exists(release: str, path: tuple[str, ...]) -> bool:
    """Whether ``trt.<path>`` exists; below a class that is missing itself, True: the class is the fault to report."""
    api = releases()[release]
    if path[-1].startswith("__"):
        return True
    if len(path) == 1:
        if path[0] in DTYPES:
            return DTYPES[path[0]] in api["DataType"]["enum"]
        return path[0] in api
    entry = api.get(path[0], {"function": True})
    names = entry.get("enum") or entry.get("members")
    if names is None or path[1] not in names and len(path) > 2:
        return True
    if len(path) > 2:  # trt.Logger.Severity.WARNING is trt.Logger.WARNING
        return path[1] != "Severity" or path[2] in names or path[2] in ("name", "value")
    return path[1] in names


def of_generations(generations: set[str]) -> frozenset[str]:
    return frozenset(release for release, generation in GENERATION.items() if generation in generations)


class Scan:
    """One file. ``faults`` are sentences; ``names`` counts how many TensorRT names were checked."""

    def __init__(self, tree: ast.Module, where) -> None:
        self.tree, self.where = tree, where
        self.uses_trt = any(
            isinstance(node, ast.Name)
            and node.id == "trt"
            or isinstance(node, ast.Attribute)
            and node.attr == "tensorrt"
            for node in ast.walk(tree)
        )
        private = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__")
        }
        self.entry = dict.fromkeys(private, frozenset())
        while True:  # grows until the sets at the calls and the sets in the functions agree
            self.faults: dict[str, None] = {}
            self.names, self.mentions = 0, defaultdict(frozenset)
            self.block(tree.body, ALL, {})
            entry = {name: self.mentions.get(name, ALL) for name in private}
            if entry == self.entry:
                break
            self.entry = entry

    def block(self, statements: list[ast.stmt], live: frozenset, env: dict) -> frozenset:
        """Walk statements; the releases that get past the last one."""
        for statement in statements:
            live = self.statement(statement, live, env)
        return live

    def statement(self, node: ast.stmt, live: frozenset, env: dict) -> frozenset:
        handler = getattr(self, f"on_{type(node).__name__}", None)
        if handler:
            return handler(node, live, env)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.visit(child, live, env)
        ends = isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break))
        return frozenset() if ends else live

    def on_If(self, node: ast.If, live: frozenset, env: dict) -> frozenset:
        self.visit(node.test, live, env)
        true, false = self.condition(node.test, live, env)
        return self.block(node.body, true, env) | self.block(node.orelse, false, env)

    def on_While(self, node: ast.While, live: frozenset, env: dict) -> frozenset:
        self.visit(node.test, live, env)
        self.block(node.body, self.condition(node.test, live, env)[0], env)
        self.block(node.orelse, live, env)
        return live

    def on_For(self, node: ast.For, live: frozenset, env: dict) -> frozenset:
        self.visit(node.iter, live, env)
        self.bind(node.target, None, live, env)
        self.block(node.body, live, env)
        return self.block(node.orelse, live, env)

    def on_With(self, node: ast.With, live: frozenset, env: dict) -> frozenset:
        for item in node.items:
            self.visit(item.context_expr, live, env)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, item.context_expr, live, env)
        return self.block(node.body, live, env)

    def on_Try(self, node: ast.Try, live: frozenset, env: dict) -> frozenset:
        probing = any(
            handler.type is not None and "AttributeError" in ast.unparse(handler.type) for handler in node.handlers
        )
        if probing:
            self.block(node.body, frozenset(), env)  # missing names are what the handler is for
        after = live if probing else self.block(node.body, live, env)
        after = self.block(node.orelse, after, env)
        for handler in node.handlers:
            after |= self.block(handler.body, live, env)
        self.block(node.finalbody, live, env)
        return after

    def on_Assert(self, node: ast.Assert, live: frozenset, env: dict) -> frozenset:
        self.visit(node.test, live, env)
        return self.condition(node.test, live, env)[0]

    def on_Match(self, node: ast.Match, live: frozenset, env: dict) -> frozenset:
        self.visit(node.subject, live, env)
        after, rest = frozenset(), live
        for case in node.cases:
            texts = [
                part.value.value
                for part in ast.walk(case.pattern)
                if isinstance(part, ast.MatchValue) and isinstance(part.value, ast.Constant)
            ]
            inside = rest & of_generations(set(texts)) if texts and self.is_generation(node.subject, env) else rest
            after |= self.block(case.body, inside, env)
            rest = rest - inside if texts and self.is_generation(node.subject, env) and case.guard is None else rest
            if isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None:
                return after
        return after | rest

    def on_Expr(self, node: ast.Expr, live: frozenset, env: dict) -> frozenset:
        self.visit(node.value, live, env)
        call = node.value
        if isinstance(call, ast.Call) and last_name(call.func) == "require":
            return live & self.needed(call)[0]
        return live

    def on_FunctionDef(self, node: ast.FunctionDef, live: frozenset, env: dict) -> frozenset:
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.decorator_list]:
            self.visit(default, live, env)
        inner, nested = dict(env), env.get("<inside>")
        if not nested:
            live_inside = self.entry.get(node.name, ALL)
        else:
            live_inside = live
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            ours = argument.annotation is None or "trt" in ast.unparse(argument.annotation)
            inner.pop(argument.arg, None)
            if not ours and argument.arg in CONVENTION:
                inner[argument.arg] = OTHER
        inner["<inside>"] = True
        self.block(node.body, live_inside, inner)
        return live

    on_AsyncFunctionDef = on_FunctionDef

    def on_ClassDef(self, node: ast.ClassDef, live: frozenset, env: dict) -> frozenset:
        for base in [*node.bases, *node.decorator_list]:
            self.visit(base, live, env)
        self.block(node.body, live, dict(env))
        return live

    def on_Assign(self, node: ast.Assign, live: frozenset, env: dict) -> frozenset:
        self.visit(node.value, live, env)
        for target in node.targets:
            self.bind(target, node.value, live, env)
        return live

    def on_AnnAssign(self, node: ast.AnnAssign, live: frozenset, env: dict) -> frozenset:
        if node.value is not None:
            self.visit(node.value, live, env)
            self.bind(node.target, node.value, live, env)
        return live

    def on_Import(self, node: ast.Import, live: frozenset, env: dict) -> frozenset:
        for alias in node.names:
            ours = isinstance(node, ast.Import) and alias.name in ("tensorrt", "tensorrt_rtx")
            env[alias.asname or alias.name.partition(".")[0]] = MODULE if ours else OTHER
        return live

    on_ImportFrom = on_Import  # a module called network or timing_cache is no TensorRT object

    def bind(self, target: ast.expr, value: ast.expr | None, live: frozenset, env: dict) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            values = (
                value.elts
                if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
                else [None] * len(target.elts)
            )
            for each, its in zip(target.elts, values, strict=True):
                self.bind(each, its, live, env)
        elif isinstance(target, ast.Name):
            env[target.id] = self.meaning(value, env) if value is not None else OTHER
        else:
            self.visit(target, live, env)

    def meaning(self, value: ast.expr, env: dict) -> tuple:
        if self.is_generation(value, env):
            return GENERATION_NAME
        found = self.resolve(value, env)
        if found:
            return found
        true, false = self.condition(value, ALL, env)
        if (true, false) != (ALL, ALL):
            return "condition", true, false
        try:
            return "value", ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError):
            return OTHER

    def resolve(self, node: ast.expr, env: dict) -> tuple | None:
        """What an expression is to TensorRT: the module, a path below it, or an instance of one of its classes."""
        if isinstance(node, ast.Name):
            if node.id in env:
                return env[node.id] if env[node.id][0] in ("module", "path", "instance") else None
            if node.id == "trt":
                return MODULE
            return ("instance", CONVENTION[node.id]) if self.uses_trt and node.id in CONVENTION else None
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, env)
            if base == MODULE:
                return "path", (node.attr,)
            if base and base[0] == "path":
                return "path", (*base[1], node.attr)
            if base:
                return None
            return {"trt": MODULE, "trt_engine": ("instance", "ICudaEngine")}.get(node.attr)
        if isinstance(node, ast.Call):
            called = self.resolve(node.func, env)
            if called and called[0] == "path" and len(called[1]) == 1:
                return "instance", called[1][0]
            if last_name(node.func) == "tensorrt" and called is None:
                return MODULE
            if isinstance(node.func, ast.Attribute) and (self.resolve(node.func.value, env) or OTHER)[0] == "instance":
                kind = RETURNS.get(node.func.attr)
                return ("instance", kind) if kind else None
        return None

    def visit(self, node: ast.AST, live: frozenset, env: dict) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self.visit(value, live, env)
                live = self.condition(value, live, env)[isinstance(node.op, ast.Or)]
        elif isinstance(node, ast.IfExp):
            self.visit(node.test, live, env)
            true, false = self.condition(node.test, live, env)
            self.visit(node.body, true, env)
            self.visit(node.orelse, false, env)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            self.comprehension(node, live, env)
        elif isinstance(node, ast.Lambda):
            self.visit(node.body, live, env)
        else:
            if isinstance(node, ast.Attribute):
                self.attribute(node, live, env)
            elif isinstance(node, ast.Name) and node.id in self.entry:
                self.mentions[node.id] |= live
            elif isinstance(node, ast.Call):
                self.getattr(node, live, env)
            for child in ast.iter_child_nodes(node):
                self.visit(child, live, env)

    def comprehension(self, node: ast.AST, live: frozenset, env: dict) -> None:
        env = dict(env)
        for generator in node.generators:
            self.visit(generator.iter, live, env)
            self.bind(generator.target, None, live, env)
            for test in generator.ifs:
                self.visit(test, live, env)
                live = self.condition(test, live, env)[0]
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part, live, env)

    def attribute(self, node: ast.Attribute, live: frozenset, env: dict) -> None:
        if node.attr in self.entry:
            self.mentions[node.attr] |= live
        base = self.resolve(node.value, env)
        if base:
            path = (*base[1:], node.attr) if base[0] != "path" else (*base[1], node.attr)
            self.demand(path, live, node)

    def getattr(self, node: ast.Call, live: frozenset, env: dict) -> None:
        """`getattr(trt.X, "Y")` raises where Y is missing; with a default it does not."""
        if last_name(node.func) == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            path = self.probed(node, env)
            if path:
                self.demand(path, live, node)

    def probed(self, call: ast.Call, env: dict) -> tuple[str, ...] | None:
        base, name = self.resolve(call.args[0], env), getattr(call.args[1], "value", None)
        if not base or not isinstance(name, str):
            return None
        return (*base[1], name) if base[0] == "path" else (*base[1:], name)

    def demand(self, path: tuple[str, ...], live: frozenset, node: ast.AST) -> None:
        self.names += 1
        missing = [release for release in GENERATION if release in live and not exists(release, path)]
        if missing:
            self.faults[
                f"{self.where(node)}: {'.'.join(('trt', *path))} does not exist in {', '.join(missing)}; "
                "ask environment for the generation first"
            ] = None

    def condition(self, node: ast.expr, live: frozenset, env: dict) -> tuple[frozenset, frozenset]:
        """The releases for which an expression may be true, and may be false."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.condition(node.operand, live, env)[::-1]
        if isinstance(node, ast.BoolOp):
            going, decided = live, frozenset()
            for value in node.values:
                true, false = self.condition(value, going, env)
                going, stopped = (true, false) if isinstance(node.op, ast.And) else (false, true)
                decided |= stopped
            return (going, decided) if isinstance(node.op, ast.And) else (decided, going)
        true, false = ALL, ALL
        if isinstance(node, ast.Name) and env.get(node.id, OTHER)[0] == "condition":
            _, true, false = env[node.id]
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            true, false = self.comparison(node, env)
        elif isinstance(node, ast.Call):
            true, false = self.question(node, env)
        return live & true, live & false

    def comparison(self, node: ast.Compare, env: dict) -> tuple[frozenset, frozenset]:
        if not self.is_generation(node.left, env):
            return ALL, ALL
        other = node.comparators[0]
        value = env[other.id][1] if isinstance(other, ast.Name) and env.get(other.id, OTHER)[0] == "value" else None
        try:
            value = ast.literal_eval(other) if value is None else value
        except (ValueError, SyntaxError):
            return ALL, ALL
        chosen = of_generations({value} if isinstance(value, str) else set(value or ()))
        if isinstance(node.ops[0], (ast.Eq, ast.In, ast.Is)):
            return chosen, ALL - chosen
        if isinstance(node.ops[0], (ast.NotEq, ast.NotIn, ast.IsNot)):
            return ALL - chosen, chosen
        return ALL, ALL

    def question(self, node: ast.Call, env: dict) -> tuple[frozenset, frozenset]:
        asked = last_name(node.func)
        if asked == "has":
            return self.needed(node)
        if asked == "why_not":
            return self.needed(node)[::-1]
        if asked == "hasattr" and len(node.args) == 2 and (path := self.probed(node, env)):
            there = frozenset(release for release in ALL if exists(release, path))
            return there, ALL - there
        return ALL, ALL

    @staticmethod
    def needed(call: ast.Call) -> tuple[frozenset, frozenset]:
        needs = [getattr(argument, "value", None) for argument in call.args]
        true = ALL
        for need in needs:
            if need in NEEDS:
                true &= of_generations(NEEDS[need])
        # "no" to several needs at once, or to a GPU, leaves every release possible
        return true, ALL - true if len(needs) == 1 and needs[0] in NEEDS else ALL

    def is_generation(self, node: ast.expr, env: dict) -> bool:
        if isinstance(node, ast.Name):
            return env.get(node.id) == GENERATION_NAME or node.id == "generation"
        return last_name(node.func if isinstance(node, ast.Call) else node) == "generation"


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def scan_source(source: str, name: str) -> Scan:
    return Scan(ast.parse(source), lambda node: f"{name}:{node.lineno}")


def scan_notebook(path: Path) -> Scan:
    """All code cells as one module, so that what a cell binds means the same in the next."""
    body: list[ast.stmt] = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], 1):
        if cell["cell_type"] != "code":
            continue
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        try:
            tree = ast.parse(TransformerManager().transform_cell(source))
        except SyntaxError:  # shown on purpose
            continue
        for node in ast.walk(tree):
            node.cell = number
        body += tree.body
    whole = ast.Module(body=body, type_ignores=[])
    return Scan(whole, lambda node: f"{path.name}, cell {node.cell}, line {node.lineno}")
