"""Two plans of one graph beside each other: what fused differently, which types and tactics differ."""

from __future__ import annotations

from dataclasses import dataclass

from labsupport.errors import BadInput
from labsupport.fusion.kernels import Kernel, Plan


@dataclass(frozen=True)
class Diff:
    """What differs from plan ``before`` to plan ``after``, by the ONNX nodes that kernels share.

    ``regrouped``: (kernels before, kernels after) that compute the same nodes in another division. ``same`` pairs
    kernels of the same nodes; ``retyped`` and ``retuned`` are those of them whose types or whose tactic differ.
    """

    before: Plan
    after: Plan
    same: tuple[tuple[Kernel, Kernel], ...]
    regrouped: tuple[tuple[tuple[Kernel, ...], tuple[Kernel, ...]], ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def retyped(self) -> tuple[tuple[Kernel, Kernel], ...]:
        """Pairs of the same nodes in other types."""
        return tuple((a, b) for a, b in self.same if _typed(a) and _typed(b) and _typed(a) != _typed(b))

    @property
    def retuned(self) -> tuple[tuple[Kernel, Kernel], ...]:
        """Pairs of the same nodes by another tactic."""
        return tuple((a, b) for a, b in self.same if a.tactic and b.tactic and a.tactic != b.tactic)

    def __repr__(self) -> str:
        inserted = len(self.before.inserted), len(self.after.inserted)
        parts = [
            f"{len(self.same)} kernels of the same nodes",
            f"{len(self.regrouped)} groups fused differently",
            f"{len(self.retyped)} in other types",
            f"{len(self.retuned)} by another tactic",
            f"inserted copies {inserted[0]} → {inserted[1]}",
        ]
        if self.only_before or self.only_after:
            parts.append(f"nodes in no kernel of the other: {len(self.only_before)} and {len(self.only_after)}")
        return f"Diff({self.before.name} → {self.after.name}: {', '.join(parts)})"

    def table(self):
        """One row per group of nodes that differs: kernels, types, tactics and times of both plans (a DataFrame)."""
        from labsupport.comparing.tables import frame_class

        rows = []
        for before, after in self.regrouped:
            rows.append(self._row("fused differently", before, after))
        for a, b in self.same:
            what = [word for word, pairs in (("types", self.retyped), ("tactic", self.retuned)) if (a, b) in pairs]
            if what:
                rows.append(self._row(" and ".join(what), (a,), (b,)))
        return frame_class()(rows, columns=None if rows else ["what", "before", "after"])

    def _row(self, what, before, after) -> dict:
        row = {
            "what": what,
            "before": _groups(before),
            "after": _groups(after),
            "types before": _all(before, _typed),
            "types after": _all(after, _typed),
        }
        row |= {"tactic before": _all(before, lambda k: k.tactic), "tactic after": _all(after, lambda k: k.tactic)}
        if self.before.total_ms is not None and self.after.total_ms is not None:
            row |= {"ms before": sum(k.time_ms or 0 for k in before), "ms after": sum(k.time_ms or 0 for k in after)}
        return row


def diff(before: Plan, after: Plan) -> Diff:
    """Compare two plans made from the same ONNX graph: fp16 against int8, one release against another, two runtimes.

    Kernels are matched by the nodes they compute, never by their names. Raises BadInput where no node is in both.
    """
    for side, plan in (("before", before), ("after", after)):
        if not isinstance(plan, Plan):
            raise BadInput(f"{side} is a {type(plan).__name__}; diff() takes two results of fusion.xray()")
    homes = [_homes(plan) for plan in (before, after)]
    if not set(homes[0]) & set(homes[1]):
        raise BadInput(
            f"{before.name} and {after.name} have no ONNX node in common; compare plans of one graph (the same export)"
        )
    same, regrouped, done = [], [], set()
    for node in homes[0]:
        if node in done or node not in homes[1]:
            continue
        left, right = _component(node, *homes)
        done |= {n for kernel in (*left, *right) for n in kernel.nodes}
        one = len(left) == len(right) == 1 and set(left[0].nodes) & set(homes[1]) == set(right[0].nodes) & set(homes[0])
        if one:
            same.append((left[0], right[0]))
        else:
            regrouped.append((left, right))
    only = [tuple(n for n in homes[i] if n not in homes[1 - i]) for i in (0, 1)]
    return Diff(before, after, tuple(same), tuple(regrouped), *only)


def _homes(plan: Plan) -> dict[str, list[Kernel]]:
    homes: dict[str, list[Kernel]] = {}
    for kernel in plan.kernels:
        for node in kernel.nodes:
            homes.setdefault(node, []).append(kernel)
    return homes


def _component(node: str, *homes) -> tuple[tuple[Kernel, ...], tuple[Kernel, ...]]:
    """All kernels of both plans that hang together with a node's kernels by the nodes they share."""
    sides: list[dict[str, Kernel]] = [{}, {}]
    todo, seen = [node], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for side, home in zip(sides, homes, strict=True):
            for kernel in home.get(name, []):
                side[kernel.name] = kernel
                todo += kernel.nodes
    return tuple(sides[0].values()), tuple(sides[1].values())


def _typed(kernel: Kernel) -> str:
    return f"{kernel.precision_in} → {kernel.precision_out}" if kernel.precision_in or kernel.precision_out else ""


def _groups(kernels) -> str:
    return " | ".join(" + ".join(kernel.nodes) for kernel in kernels)


def _all(kernels, what) -> str:
    return " | ".join(what(kernel) or "–" for kernel in kernels)
