"""One short training loop, and the accuracy of anything that runs."""

from __future__ import annotations

import copy
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labsupport import data, environment
from labsupport.data.datasets import Split
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.training import checkpoints

# (model, images (N, C, H, W), labels (N,)) → logits (N, classes) and the loss to be lowered
Objective = Callable[[nn.Module, Tensor, Tensor], "tuple[Tensor, Tensor]"]


@dataclass(frozen=True, eq=False)
class History:
    """A trained model (on the CPU, in eval mode) and, for each epoch, its mean loss and its accuracy while training."""

    model: nn.Module
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def epochs(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        return (
            f"History({type(self.model).__name__}: {self.epochs} epoch{'s' * (self.epochs != 1)}, "
            f"loss {self.losses[-1]:.3f}, training accuracy {self.accuracies[-1]:.1%}, {self.seconds:.1f} s)"
        )


def fit(
    model: nn.Module,
    split: Split,
    *,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    shift_pixels: int = 2,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    preprocess: Callable[[np.ndarray], np.ndarray] = data.preprocess,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    objective: Objective | None = None,
    facts: Mapping[str, object] | None = None,
) -> History:
    """Train a copy of an image classifier with AdamW, the learning rate rising and falling once (Smith 2018).

    Each batch is moved by up to `shift_pixels` each way (borders repeated): a few thousand images are soon learned by
    heart, moved ones are not. The model given stays as it was. The same seed on the same CPU gives the same weights.
    With `checkpoint`, each epoch is saved to that file, or every `checkpoint_every`-th and the last, and a training
    that was interrupted goes on where it stood. `objective(model, images, labels) -> (logits, loss)` takes the place of
    cross entropy on the labels; `facts` say in the checkpoint what it was, so that nothing goes on with another one.
    Raises BadInput for data the model cannot take, LabError when the loss is no longer a number, and for a checkpoint
    of another model, training or other images.
    """
    _check_options(
        epochs=epochs,
        batch_size=batch_size,
        shift_pixels=shift_pixels,
        seed=seed,
        learning_rate=learning_rate,
        checkpoint_every=checkpoint_every,
    )
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise BadInput(f"checkpoint={checkpoint!r:.60}; wanted the path of a file to save the training in")
    check_device(device)
    check_fits(model, split, preprocess)
    started = time.perf_counter()
    student = copy.deepcopy(model).to(device).train()
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate)
    steps = epochs * len(_orders(len(split), batch_size, torch.Generator()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(2, steps))
    losses, accuracies = [], []
    with _random_state(seed, device), _bar(steps, progress) as bar:
        shuffler = torch.Generator().manual_seed(seed)
        kept = checkpoint and _Kept(
            Path(checkpoint),
            student,
            optimizer,
            schedule,
            shuffler,
            {
                "trained by": "training.fit",
                "start": checkpoints.fingerprint(model),
                "images": len(split),
                "pixels and labels": _checksum(split),
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "shift_pixels": shift_pixels,
                "seed": seed,
                **(facts or {}),
            },
        )
        done = kept.resume(losses, accuracies) if kept else 0
        bar.update(done * steps // epochs)
        for epoch in range(done, epochs):
            loss_sum, right = 0.0, 0
            for order in _orders(len(split), batch_size, shuffler):
                images = preprocess(_moved(split.images[order], shift_pixels, shuffler))
                loss, correct = _step(student, optimizer, images, split.labels[order], objective or cross_entropy)
                if not np.isfinite(loss):
                    raise LabError(
                        f"the loss became {loss} in epoch {epoch + 1} of {epochs}; lower learning_rate "
                        f"(now {learning_rate:g}), or look for non-finite weights or preprocessed images"
                    )
                schedule.step()
                loss_sum, right = loss_sum + loss * len(order), right + correct
                bar.update()
            losses.append(loss_sum / len(split))
            accuracies.append(right / len(split))
            if kept and ((epoch + 1) % checkpoint_every == 0 or epoch + 1 == epochs):
                kept.save(losses, accuracies)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", accuracy=f"{accuracies[-1]:.1%}")
    return History(student.cpu().eval(), tuple(losses), tuple(accuracies), time.perf_counter() - started)


def accuracy(
    runtime: nn.Module | Callable,
    split: Split,
    *,
    batch_size: int = 256,
    preprocess: Callable[[np.ndarray], np.ndarray] = data.preprocess,
) -> float:
    """Share of the split that a module or any runtime (`run(feed) -> outputs`) classifies right, from 0 to 1.

    A runtime built for a fixed batch gets batches of that size, the last one filled up; inputs are
    converted to the float type it wants. Raises BadInput for an empty split and for answers that are not numbers.
    """
    _check_options(batch_size=batch_size)
    check_filled(split)
    answer, fixed_batch = _answerer(runtime)
    right = 0
    for images, labels in split.batches(fixed_batch or batch_size):
        padding = (fixed_batch or len(images)) - len(images)
        feed = preprocess(images if not padding else np.concatenate([images, images[:1].repeat(padding, axis=0)]))
        logits = answer(feed)[: len(images)]
        if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] <= split.labels.max():
            raise BadInput(
                f"{_name(runtime)} answered {tuple(logits.shape)} for {len(images)} images; wanted one row "
                f"for each image with a number for each of the {len(split.classes)} classes"
            )
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise BadInput(
                f"{_name(runtime)} answered NaN or infinity for {bad} of {len(images)} images; its accuracy "
                "would mean nothing. In fp16, look for activations above 65504"
            )
        right += int((logits.argmax(axis=1) == labels).sum())
    return right / len(split)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The objective that `fit` has by default: logits (N, classes) and the mean loss on the labels (N,)."""
    logits = model(images)
    return logits, F.cross_entropy(logits, labels)  # log-softmax and negative log-likelihood in one, stable in fp32


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: np.ndarray, labels: np.ndarray, objective: Objective
) -> tuple[float, int]:
    """One batch forward, back, and one move of the weights; returns its mean loss and how many it had right."""
    device = next(model.parameters()).device
    targets = torch.from_numpy(labels).to(device)
    logits, loss = objective(model, torch.from_numpy(images).to(device), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(dim=1) == targets).sum())


@dataclass
class _Kept:
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
        found = checkpoints.load(self.path, model=self.model, optimizer=self.optimizer, facts=self.facts)
        self.schedule.load_state_dict(found.state["schedule"])
        self.shuffler.set_state(found.state["shuffler"])
        torch.set_rng_state(found.state["torch"])
        if found.state["cuda"] is not None and next(self.model.parameters()).is_cuda:
            torch.cuda.set_rng_state(found.state["cuda"])
        losses += found.state["losses"]
        accuracies += found.state["accuracies"]
        return found.epoch


@contextmanager
def _random_state(seed: int, device: str) -> Iterator[None]:
    """Dropout draws from PyTorch's global generators: seed them, and put them back afterwards."""
    gpus = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed(seed)
        yield


def _orders(count: int, batch_size: int, shuffler: torch.Generator) -> list[np.ndarray]:
    batches = [part.numpy() for part in torch.randperm(count, generator=shuffler).split(batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        # BatchNorm cannot train on one value for a channel, so a lone last image joins the batch before it.
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def _moved(images: np.ndarray, most: int, shuffler: torch.Generator) -> np.ndarray:
    if not most:
        return images
    down, right = torch.randint(2 * most + 1, (2,), generator=shuffler).tolist()
    wide = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    return wide[:, down : down + images.shape[1], right : right + images.shape[2]]


def _bar(steps: int, progress: bool):
    """A progress bar where someone watches; elsewhere silent, because a bar in a stored output differs every run."""
    from tqdm.auto import tqdm

    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    silent = not progress or not watched or environment.headless()
    return tqdm(total=steps, desc="training", unit="batch", leave=False, disable=silent)


def _answerer(runtime: nn.Module | Callable) -> tuple[Callable[[np.ndarray], np.ndarray], int | None]:
    """A function from preprocessed images to logits in NumPy, and the batch size if only one will do."""
    if isinstance(runtime, nn.Module):
        return lambda images: evaluate(runtime, images), None
    inputs = getattr(runtime, "inputs", None)
    if not callable(runtime) or not isinstance(inputs, Mapping) or len(inputs) != 1:
        came = f"inputs {list(inputs)}" if isinstance(inputs, Mapping) else f"a {type(runtime).__name__}"
        raise BadInput(f"accuracy wants a PyTorch module or a runtime with one input; {came} came")
    ((name, spec),) = inputs.items()
    fixed = spec.shape[0] if isinstance(spec.shape[0], int) and spec.shape[0] > 0 else None

    def answer(images: np.ndarray) -> np.ndarray:
        outputs = runtime({name: images.astype(spec.dtype, copy=False)})
        if len(outputs) > 1 and "logits" not in outputs:
            raise BadInput(f"{_name(runtime)} has the outputs {list(outputs)}; one of them must be called 'logits'")
        return np.asarray(outputs.get("logits", next(iter(outputs.values()))), np.float32)

    return answer, fixed


def evaluate(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits of a module in eval mode, on its own device and in its own float type; its mode is put back."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            answer = model(torch.from_numpy(images).to(weight))
    except (RuntimeError, ValueError) as error:  # layers refuse a shape with either
        raise BadInput(
            f"{type(model).__name__} cannot take images of shape {images.shape[1:]} (C, H, W): "
            f"{str(error).splitlines()[0]}"
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(answer, Tensor):
        raise BadInput(
            f"{type(model).__name__} answers with a {type(answer).__name__}; wanted one tensor of logits (N, classes)"
        )
    return answer.float().cpu().numpy()


def check_fits(model: nn.Module, split: Split, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
    """Try two images before training, so that a mismatch is named before any work is done."""
    check_filled(split)
    if not isinstance(model, nn.Module):
        came = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise BadInput(f"{came} came as the model; wanted a PyTorch module, such as models.resnet18()")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(
            f"{type(model).__name__} has no weights to train; all are frozen. Unfreeze some with requires_grad_(True)"
        )
    images = preprocess(split.images[:2])
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise BadInput(
            f"preprocess gave {getattr(images, 'dtype', type(images).__name__)}; "
            "training wants a float32 NumPy array (N, C, H, W)"
        )
    logits = evaluate(model, images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise BadInput(
            f"{type(model).__name__} answers {logits.shape} for {len(images)} images; "
            "training wants one row of logits for each image"
        )
    if logits.shape[1] <= split.labels.max():
        raise BadInput(
            f"labels run up to {split.labels.max()}, but {type(model).__name__} tells {logits.shape[1]} "
            f"classes apart; make it with classes={len(split.classes)}"
        )


def check_filled(split: Split) -> None:
    if not isinstance(split, Split):
        raise BadInput(f"a {type(split).__name__} came; wanted a split, such as dataset.train or dataset.test")
    if not len(split):
        raise BadInput("the split is empty; it takes at least one image")


def _checksum(split: Split) -> int:
    return zlib.crc32(np.ascontiguousarray(split.labels), zlib.crc32(np.ascontiguousarray(split.images)))


def check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device={device!r}; choose one of ['cpu', 'cuda']")
    if device == "cuda" and not torch.cuda.is_available():
        raise NotAvailable("device='cuda', but this PyTorch sees no GPU; train with device='cpu'")


def _check_options(**options: float) -> None:
    for name, value in options.items():
        if name == "learning_rate":
            if not (isinstance(value, (int, float)) and 0 < value < float("inf")):
                raise BadInput(f"learning_rate={value!r}; wanted a number above 0, such as 3e-3")
            continue
        least = 0 if name in ("seed", "shift_pixels") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadInput(f"{name}={value!r}; wanted a whole number of at least {least}")


def _name(runtime: nn.Module | Callable) -> str:
    return getattr(runtime, "name", type(runtime).__name__)
