"""Everything that the next epoch depends on, kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from labsupport.training import checkpoints


@dataclass
class KeptState:
    """A training's checkpoint: everything that the next epoch depends on."""

    path: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    shuffler: torch.Generator
    facts: dict

    def save(self, losses: list[float], accuracies: list[float]) -> None:
        on_gpu = next(self.model.parameters()).is_cuda
        checkpoints.save(
            self.path,
            model=self.model,
            optimizer=self.optimizer,
            epoch=len(losses),
            facts=self.facts,
            state={
                "schedule": self.schedule.state_dict(),
                "shuffler": self.shuffler.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if on_gpu else None,
                "losses": losses,
                "accuracies": accuracies,
            },
        )

    def resume(self, losses: list[float], accuracies: list[float]) -> int:
        """Put everything back as it was after the last complete epoch; how many are done."""
        if not self.path.exists():
            return 0
        state = checkpoints.load(self.path, model=self.model, optimizer=self.optimizer, facts=self.facts)
        self.schedule.load_state_dict(state.state["schedule"])
        self.shuffler.set_state(state.state["shuffler"])
        torch.set_rng_state(state.state["torch"])
        if state.state["cuda"] is not None and next(self.model.parameters()).is_cuda:
            torch.cuda.set_rng_state(state.state["cuda"])
        losses += state.state["losses"]
        accuracies += state.state["accuracies"]
        return state.epoch


@contextmanager
def random_state(seed: int, device: str) -> Iterator[None]:
    """Dropout draws from PyTorch's global generators: seed them, and put them back afterwards."""
    gpus = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed(seed)
        yield
