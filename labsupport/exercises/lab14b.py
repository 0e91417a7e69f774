"""Exercises of lab 14b: what batching gains, shared blocks, a checked draft, a split product."""

from __future__ import annotations

from collections.abc import Callable

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.lab14_workpieces import as_tensor, plain, seed

LAB = "14b_serving_large_models"


class BatchGain(Prediction):
    question = (
        "How many times as many tokens a second does continuous batching serve as static batching, at the same p99?"
    )
    quantity = "tokens a second, continuous over static"
    unit = "times"
    within = 1.5


class Gained(Exercise):
    question = (
        "Write `gained(guesses, chosen)`: the tokens that one checked step adds. `chosen[i]` is the network's own "
        "choice in place of `guesses[i]`, and `chosen` is one longer. Hand in the function; it gives a list."
    )
    hints = (
        "A choice counts only while all guesses before it were right: it was computed behind them.",
        "The first choice always counts, because no guess stands before it; a step never gives less than one token.",
    )
    solution_source = """
        def gained(guesses, chosen):
            right = 0
            while right < len(guesses) and guesses[right] == chosen[right]:
                right += 1
            return list(chosen[: right + 1])

        lab14b.gained.check(gained)
    """
    answer = "So the answer is the one without drafts, token for token, and the worst case is one token a step."

    def judge(self, gained: Callable) -> str:
        import numpy as np

        dice = np.random.default_rng(seed())
        fixed = [
            ([7, 8, 9], [7, 8, 9, 4]),
            ([7, 8, 9], [1, 8, 9, 4]),
            ([7, 8, 9], [7, 1, 9, 4]),
            ([], [5]),
            ([7, 7], [7, 3, 7]),
        ]
        drawn = [
            (dice.integers(2, size=n).tolist(), dice.integers(2, size=n + 1).tolist()) for n in dice.integers(1, 7, 60)
        ]
        for guesses, chosen in fixed + drawn:
            got = gained(list(guesses), list(chosen))
            right = next((i for i, guess in enumerate(guesses) if guess != chosen[i]), len(guesses))
            wanted = chosen[: right + 1]
            if isinstance(got, (int, np.integer)) or not hasattr(got, "__len__") or isinstance(got, (str, dict)):
                raise Wrong(f"the function gave {described(got)}; wanted is the list of tokens.")
            got = [plain(token) for token in got]
            if got == wanted:
                continue
            say = f"guesses {guesses}, chosen {chosen}: the step adds {wanted}, and your function says {got}."
            if got == guesses[:right] or (not got and not right):
                raise Wrong(f"{say} The network's own choice behind the last right guess is a token as well.")
            if len(got) > len(wanted):
                raise Wrong(f"{say} What was chosen behind a wrong guess was computed from a text that does not exist.")
            raise Wrong(say)
        return "Right for 65 drafts."


class SharedBlocks(Exercise):
    question = (
        "Write `blocks_needed(prompts, size)`: how many blocks of `size` rows the prompts (lists of tokens) take "
        "together, when full blocks of an equal beginning are shared. Hand in the function."
    )
    hints = (
        "Key and value of a token depend on all tokens before it: a block can be shared if everything up to its "
        "end is equal.",
        "Count the different tuples `tuple(prompt[:end])` for each full block's end; the rest of each prompt "
        "takes one more.",
    )
    solution_source = """
        def blocks_needed(prompts, size):
            full, rest = set(), 0
            for prompt in prompts:
                for end in range(size, len(prompt) + 1, size):
                    full.add(tuple(prompt[:end]))
                rest += len(prompt) % size > 0
            return len(full) + rest

        lab14b.shared_blocks.check(blocks_needed)
    """
    answer = "A system prompt that every request begins with is computed and stored once."

    def judge(self, blocks_needed: Callable) -> str:
        import numpy as np

        from labsupport.exercises.answers import as_number
        from labsupport.language.serving import Blocks

        dice = np.random.default_rng(seed())
        for number in range(12):
            size, shared = int(dice.integers(2, 6)), dice.integers(3, size=int(dice.integers(4, 24))).tolist()
            prompts = [
                shared[: int(dice.integers(1, len(shared) + 1))]
                + dice.integers(3, size=int(dice.integers(0, 9))).tolist()
                for _ in range(4)
            ]
            if number == 0:  # a block behind two beginnings, and one that is not full twice
                size, prompts = 2, [[1, 2, 5, 5], [3, 4, 5, 5], [1, 2, 5], [1, 2, 5]]
            blocks = Blocks(200, size)
            for i, prompt in enumerate(prompts):
                blocks.start(str(i), prompt)
            got = as_number(blocks_needed([list(prompt) for prompt in prompts], size), "the number of blocks")
            if got == blocks.used:
                continue
            say = f"prompts {prompts} in blocks of {size} take {blocks.used}, and your function says {got:g}."
            alone = sum(-(-len(prompt) // size) for prompt in prompts)
            alike = len({tuple(p[i : i + size]) for p in prompts for i in range(0, len(p) - size + 1, size)}) + sum(
                len(p) % size > 0 for p in prompts
            )
            if got == alone:
                raise Wrong(f"{say} That is without sharing.")
            if got == alike:
                raise Wrong(f"{say} Two blocks with equal tokens behind different beginnings hold different keys.")
            if got < blocks.used:
                raise Wrong(f"{say} A block that is not full still grows, each sequence in its own way.")
            raise Wrong(say)
        return "Right for twelve sets of prompts."


class Split(Exercise):
    question = (
        "Write `split(up, down, rank, world)`: the parts of two weights that one of `world` processes holds, so that "
        "the sum of `F.gelu(x @ up_part) @ down_part` over all ranks is `F.gelu(x @ up) @ down`. up is (hidden, "
        "inner), down (inner, hidden); `inner` is a multiple of `world`."
    )
    hints = (
        "GELU acts on each inner value alone, so a process may own some inner values entirely: columns of up.",
        "Whoever owns columns of up has the inner values that the same rows of down are multiplied with.",
    )
    solution_source = """
        def split(up, down, rank, world):
            width = up.shape[1] // world
            own = slice(rank * width, (rank + 1) * width)
            return up[:, own], down[own]

        lab14b.split.check(split)
    """
    answer = "Columns first, rows second: one sum over the link for two products, and none between them."

    def judge(self, split: Callable) -> str:
        import torch
        from torch.nn import functional as F

        dice = torch.Generator().manual_seed(seed())
        for hidden, inner, world in ((6, 12, 2), (5, 12, 3), (4, 8, 4), (8, 8, 1), (8, 8, 2)):
            x, up, down = (
                torch.randn(shape, generator=dice) for shape in ((3, hidden), (hidden, inner), (inner, hidden))
            )
            whole, held, most, total = F.gelu(x @ up) @ down, 0, 0, torch.zeros(3, hidden)
            for rank in range(world):
                parts = split(up.clone(), down.clone(), rank, world)
                if not isinstance(parts, (tuple, list)) or len(parts) != 2:
                    raise Wrong(
                        f"the function gave {described(parts)}; wanted are two tensors, parts of up and of down."
                    )
                first, second = map(as_tensor, parts)
                if first.dim() != 2 or first.shape[0] != hidden or second.shape != first.T.shape:
                    raise Wrong(
                        f"rank {rank} of {world}: parts of shape {tuple(first.shape)} and {tuple(second.shape)} do not "
                        f"fit between {hidden} values and themselves; split the inner ones."
                    )
                most = max(most, first.shape[1])
                held += first.numel() + second.numel()
                total = total + F.gelu(x @ first) @ second
            if not torch.allclose(total, whole, atol=1e-4):
                raise Wrong(
                    f"hidden {hidden}, inner {inner}, {world} processes: the sum is off by "
                    f"{float((total - whole).abs().max()):.2g}. Does each inner value belong to one rank, in up and in "
                    "down?"
                )
            if held != up.numel() + down.numel():
                raise Wrong(
                    f"the sum is right, and {world} processes hold {held} weights together where there are "
                    f"{up.numel() + down.numel()}."
                )
            if most * world > inner:
                raise Wrong(
                    f"the sum is right, and one of {world} processes holds {most} of {inner} inner values; an equal "
                    f"part is {inner // world}. A device that must hold more gains nothing from the split."
                )
        return "Each weight is held once, and the parts sum to the whole."


batch_gain = BatchGain()
shared_blocks = SharedBlocks()
gained = Gained()
split = Split()
