"""The loop learns, repeats itself, leaves its arguments alone and names what it cannot work with."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import data, models, training
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.training import loop


@pytest.fixture(scope="module")
def digits():
    return data.mnist()


@pytest.fixture(scope="module")
def trained(digits):
    return training.fit(models.article_cnn(), digits.train)


def stripes(count=40, seed=0):
    """Two classes a tiny network learns at once: bright left half or bright right half."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int64)
    images = rng.integers(40, size=(count, 8, 8, 1), dtype=np.uint8)
    images[labels == 0, :, :4] += 150
    images[labels == 1, :, 4:] += 150
    return data.Split(images, labels, ("left", "right"))


def tiny(outputs=2, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, outputs))


def test_the_articles_network_reads_95_percent_of_unseen_digits(trained, digits):
    assert training.accuracy(trained.model, digits.test) >= 0.95
    assert trained.epochs == 5 and trained.losses[-1] < trained.losses[0] / 3
    assert trained.accuracies[-1] > 0.9
    assert repr(trained).startswith("History(ArticleCnn: 5 epochs, loss 0.")


def test_road_signs_can_be_learned_but_not_at_once():
    signs = data.road_signs(per_class=100)
    history = training.fit(models.article_cnn(len(signs.classes), channels=3, size=32), signs.train, epochs=5)
    right = training.accuracy(history.model, signs.test)
    assert 0.6 < right < 0.99  # chance is 0.07


def test_the_model_given_and_the_global_random_state_stay_as_they_were():
    model, random_state = tiny(dropout=0.2), torch.random.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    history = training.fit(model.train(), stripes(), epochs=2, batch_size=8, learning_rate=0.1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert model.training and not history.model.training
    assert not torch.equal(history.model[2].weight, model[2].weight)


def test_the_same_seed_gives_the_same_weights():
    options = dict(epochs=2, batch_size=8, learning_rate=0.01)
    first, again, other = (training.fit(tiny(dropout=0.5), stripes(), seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first.model[2].weight, again.model[2].weight) and first.losses == again.losses
    assert not torch.equal(first.model[2].weight, other.model[2].weight)


def test_frozen_layers_stay_frozen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    history = training.fit(model, stripes(), epochs=1, batch_size=8, learning_rate=0.1)
    assert torch.equal(history.model[1].weight, model[1].weight)
    assert not torch.equal(history.model[2].weight, model[2].weight)


def test_a_lone_last_image_does_not_stop_a_batch_norm():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2))
    history = training.fit(model, stripes(17), epochs=1, batch_size=8)
    assert history.epochs == 1
    orders = loop._orders(17, 8, torch.Generator())
    assert [len(order) for order in orders] == [8, 9] and set(np.concatenate(orders)) == set(range(17))


def test_moved_images_keep_their_shape_and_shift_zero_moves_nothing():
    images = np.random.default_rng(0).integers(256, size=(3, 7, 6, 2), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    moved = [loop._moved(images, 2, generator) for _ in range(8)]
    assert all(batch.shape == images.shape for batch in moved)
    assert any(not np.array_equal(batch, images) for batch in moved)
    for each in moved:  # what came from outside repeats the border
        sources = [[np.arange(size) + shift for shift in range(-2, 3)] for size in images.shape[1:3]]
        rows, columns = ([np.clip(s, 0, size - 1) for s in ways] for ways, size in zip(sources, images.shape[1:3]))
        assert any(np.array_equal(each, images[:, down][:, :, right]) for down in rows for right in columns)
    assert loop._moved(images, 0, generator) is images


@dataclass
class Spec:
    shape: tuple
    dtype: str


class FakeRuntime:
    """Answers which half of the image is brighter, and remembers what it was fed."""

    name = "fake"

    def __init__(self, *, batch=None, dtype="float32", outputs=("logits",), answer=None):
        self.inputs = {"images": Spec((batch, 1, 8, 8), dtype)}
        self.outputs, self.fed, self.answer = outputs, [], answer

    def __call__(self, feed):
        images = feed["images"]
        self.fed.append((images.shape, str(images.dtype)))
        logits = np.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], axis=1)
        return {name: logits if self.answer is None else self.answer(logits) for name in self.outputs}


def test_accuracy_counts_right_answers_of_any_runtime():
    split = stripes(10)
    assert training.accuracy(FakeRuntime(), split) == 1.0
    three_wrong = data.Split(split.images, np.where(np.arange(10) < 3, 1 - split.labels, split.labels), split.classes)
    assert training.accuracy(FakeRuntime(), three_wrong, batch_size=4) == pytest.approx(0.7)


def test_accuracy_fills_up_the_last_batch_of_a_fixed_batch_runtime_and_converts():
    runtime = FakeRuntime(batch=4, dtype="float16")
    assert training.accuracy(runtime, stripes(10)) == 1.0
    assert runtime.fed == [((4, 1, 8, 8), "float16")] * 3


def test_accuracy_takes_the_output_called_logits_of_several():
    runtime = FakeRuntime(outputs=("features", "logits"))
    assert training.accuracy(runtime, stripes(10)) == 1.0
    with pytest.raises(BadInput, match=r"has the outputs \['a', 'b'\]; one of them must be called 'logits'"):
        training.accuracy(FakeRuntime(outputs=("a", "b")), stripes(10))


def test_accuracy_leaves_a_module_in_its_mode_and_uses_its_dtype():
    model = tiny(dropout=0.9).to(torch.bfloat16).train()
    model[1].eval()
    first = training.accuracy(model, stripes(20))
    assert first == training.accuracy(model, stripes(20))  # dropout is off while it measures
    assert model.training and model[2].training and not model[1].training


SPLIT = stripes(10)
EMPTY = data.Split(SPLIT.images[:0], SPLIT.labels[:0], SPLIT.classes)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: training.fit(tiny(), EMPTY), "the split is empty"),
        (lambda: training.accuracy(tiny(), EMPTY), "the split is empty"),
        (lambda: training.fit(tiny(), SPLIT.images), "a ndarray came; wanted a split, such as dataset.train"),
        (
            lambda: training.fit(models.article_cnn(), SPLIT),
            r"ArticleCnn cannot take images of shape \(1, 8, 8\) .*: mat1",
        ),
        (lambda: training.accuracy(models.article_cnn(), SPLIT), r"ArticleCnn cannot take images of shape \(1, 8, 8\)"),
        (
            lambda: training.fit(tiny(outputs=1), SPLIT),
            "labels run up to 1, but Sequential tells 1 classes .*classes=2",
        ),
        (lambda: training.fit(nn.Conv2d(1, 2, 3), SPLIT), "answers .* for 2 images; training wants one row of logits"),
        (lambda: training.fit(tiny().requires_grad_(False), SPLIT), "has no weights to train; all are frozen"),
        (lambda: training.fit(tiny(), SPLIT, preprocess=lambda images: images / 255), "preprocess gave float64"),
        (lambda: training.fit(tiny(), SPLIT, epochs=0), "epochs=0; wanted a whole number of at least 1"),
        (lambda: training.fit(tiny(), SPLIT, batch_size=1.5), "batch_size=1.5; wanted a whole number"),
        (lambda: training.fit(tiny(), SPLIT, seed=-1), "seed=-1; wanted a whole number of at least 0"),
        (lambda: training.fit(tiny(), SPLIT, shift_pixels=-1), "shift_pixels=-1; wanted a whole number of at least 0"),
        (lambda: training.fit(tiny(), SPLIT, learning_rate=0), "learning_rate=0; wanted a number above 0"),
        (lambda: training.fit(tiny(), SPLIT, device="gpu"), "device='gpu'; wanted 'cpu', 'cuda'"),
        (lambda: training.accuracy(tiny(), SPLIT, batch_size=0), "batch_size=0; wanted a whole number"),
        (lambda: training.accuracy("model", SPLIT), "wants a PyTorch module or a runtime with one input; a str came"),
        (
            lambda: training.accuracy(FakeRuntime(answer=lambda logits: logits[:, :1]), SPLIT),
            r"fake answered \(10, 1\) for 10 images",
        ),
        (
            lambda: training.accuracy(FakeRuntime(answer=lambda logits: logits * np.nan), SPLIT),
            "fake answered NaN or infinity for 10 of 10 images",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_infinite_weights_stop_with_advice():
    model = tiny()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    with pytest.raises(LabError, match="the loss became (nan|inf) in epoch 1 of 5; lower learning_rate"):
        training.fit(model, SPLIT)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_stops(number):
    def objective(model, images, labels):
        logits = model(images)
        return logits, logits.sum() * 0 + float(number)

    with pytest.raises(LabError, match=f"the loss became {number} in epoch 1 of 2"):
        training.fit(tiny(), SPLIT, epochs=2, objective=objective)


def test_training_on_a_missing_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotAvailable, match="this PyTorch sees no GPU; train with device='cpu'"):
        training.fit(tiny(), SPLIT, device="cuda")


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_training_that_was_interrupted_goes_on_where_it_stood(tmp_path, monkeypatch, stop_after):
    from labsupport.training import checkpoints

    model, options = tiny(dropout=0.3), {"epochs": 4, "batch_size": 8, "progress": False}
    whole = training.fit(model, stripes(), **options)
    save, saved = checkpoints.save, []

    def save_and_stop(*args, **kwargs):
        saved.append(save(*args, **kwargs))
        if len(saved) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, stripes(), checkpoint=tmp_path / "half.pt", **options)
    monkeypatch.setattr(checkpoints, "save", save)
    resumed = training.fit(model, stripes(), checkpoint=tmp_path / "half.pt", **options)
    assert resumed.losses == whole.losses and resumed.accuracies == whole.accuracies
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values())
    )
    again = training.fit(model, stripes(), checkpoint=tmp_path / "half.pt", **options)
    assert again.losses == whole.losses


@pytest.mark.parametrize("every, wanted", [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (9, [3])])
def test_a_checkpoint_is_saved_every_so_many_epochs_and_after_the_last(tmp_path, monkeypatch, every, wanted):
    from labsupport.training import checkpoints

    save, epochs = checkpoints.save, []

    def save_and_note(*args, **kwargs):
        epochs.append(kwargs["epoch"])
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", save_and_note)
    training.fit(tiny(), stripes(), epochs=3, checkpoint=tmp_path / "some.pt", checkpoint_every=every, progress=False)
    assert epochs == wanted
    with pytest.raises(BadInput, match="checkpoint_every=0; wanted a whole number of at least 1"):
        training.fit(tiny(), stripes(), checkpoint_every=0)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path, options = tmp_path / "one.pt", {"epochs": 1, "progress": False}
    training.fit(tiny(), stripes(), checkpoint=path, **options)
    before = path.read_bytes()
    with pytest.raises(LabError, match="one.pt belongs to another training: its learning_rate is 0.003, wanted is 0.1"):
        training.fit(tiny(), stripes(), checkpoint=path, learning_rate=0.1, **options)
    with pytest.raises(LabError, match="one.pt is a checkpoint of another model"):
        training.fit(tiny(outputs=3), stripes(), checkpoint=path, **options)
    assert path.read_bytes() == before


def test_a_checkpoint_of_other_images_or_labels_is_refused(tmp_path):
    split, file, options = stripes(), tmp_path / "tiny.pt", dict(epochs=2, batch_size=8)
    training.fit(tiny(), split, checkpoint=file, **options)
    for other in (stripes(seed=1), data.Split(split.images, 1 - split.labels, split.classes)):
        with pytest.raises(LabError, match="belongs to another training: its pixels and labels is"):
            training.fit(tiny(), other, checkpoint=file, **options)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (dict(checkpoint=3), "checkpoint=3; wanted a path"),
        (dict(model=None), "model=None; wanted a torch.nn.Module"),
        (dict(model=nn.Linear), "model=the class Linear; wanted a torch.nn.Module"),
        (dict(model=nn.BatchNorm1d(1)), "cannot take images of shape"),
        (
            dict(model=nn.Sequential(nn.Flatten(), nn.LSTM(64, 2))),
            "Sequential answers with a tuple; wanted one tensor of logits",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(given, sentence):
    with pytest.raises(BadInput, match=sentence):
        training.fit(**{"model": tiny(), "split": stripes(), **given})
