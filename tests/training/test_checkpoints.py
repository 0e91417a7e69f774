"""A checkpoint is whole or not there, and goes into nothing but the training it belongs to."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import data
from labsupport.errors import BadInput, LabError
from labsupport.training import checkpoints

FACTS = {"epochs": 8, "seed": 0, "teacher": "0123456789ab"}


def small(width=4, norm=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, width), *([nn.BatchNorm1d(width)] if norm else []))


def stepped(model, steps=2):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(5, 3) * torch.arange(5.0)[:, None]).square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.fixture
def saved(tmp_path):
    model = small()
    optimizer = stepped(model)
    path = tmp_path / "folder" / "student.pt"
    checkpoints.save(path, model=model, optimizer=optimizer, epoch=2, facts=FACTS, state={"losses": [2.0, 1.5]})
    return path, model


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_what_was_saved_comes_back_bit_by_bit(saved):
    path, model = saved
    again = small()
    optimizer = torch.optim.AdamW(again.parameters(), lr=0.1)
    point = checkpoints.load(path, model=again, optimizer=optimizer, facts=FACTS)
    assert same(model, again) and point.epoch == 2 and point.facts == FACTS and point.state["losses"] == [2.0, 1.5]
    assert repr(point) == "Checkpoint(student.pt: 2 epochs done)"
    assert optimizer.state_dict()["state"][0]["step"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["student.pt"]


def test_facts_are_compared_only_where_they_are_given(saved):
    assert checkpoints.load(saved[0], model=small()).epoch == 2


@pytest.mark.parametrize(
    "wanted, sentence",
    [
        ({**FACTS, "seed": 1}, r"its seed is 0, wanted is 1; train with the same seed"),
        ({**FACTS, "teacher": "ffff"}, r"its teacher is '0123456789ab', wanted is 'ffff'"),
        ({"epochs": 8, "seed": 0}, r"its teacher is '0123456789ab', wanted is 'not there'"),
        ({**FACTS, "alpha": 0.5}, r"its alpha is 'not there', wanted is 0.5"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(saved, wanted, sentence):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LabError, match=sentence):
        checkpoints.load(saved[0], model=model, facts=wanted)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "other, sentence",
    [
        (
            small(width=5),
            r"another model, Sequential: its 0\.weight is \(4, 3\), in the Sequential to fill it is \(5, 3\)",
        ),
        (small(norm=False), r"its 1\.weight is \(4,\), in the Sequential to fill it is not there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(saved, other, sentence):
    with pytest.raises(LabError, match=sentence):
        checkpoints.load(saved[0], model=other)


def test_a_checkpoint_without_this_optimizer_is_refused(saved, tmp_path):
    model = small()
    with pytest.raises(LabError, match="no state for this SGD over these weights .it has AdamW"):
        checkpoints.load(saved[0], model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(LabError, match="no state for this AdamW"):
        checkpoints.load(saved[0], model=model, optimizer=torch.optim.AdamW([model[0].weight], lr=0.1))
    checkpoints.save(tmp_path / "bare.pt", model=model, epoch=0, facts={})
    with pytest.raises(LabError, match="it has no optimizer"):
        checkpoints.load(tmp_path / "bare.pt", model=model, optimizer=torch.optim.AdamW(model.parameters()))


def test_a_file_cut_off_anywhere_is_refused(saved):
    path, _ = saved
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            LabError, match=rf"cannot be read as a checkpoint: {size} bytes, cut off.*delete it to start"
        ):
            checkpoints.load(path, model=small())


def test_a_flipped_bit_in_a_weight_is_noticed(saved):
    path, model = saved
    whole, weight = bytearray(path.read_bytes()), model[0].weight.detach().numpy().tobytes()
    whole[whole.index(weight) + 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(LabError, match="is damaged: the checksum of its part"):
        checkpoints.load(path, model=small())


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(LabError, match="there is no such checkpoint"):
        checkpoints.load(tmp_path / "absent.pt", model=small())
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(LabError, match="holds a list that checkpoints.save did not write"):
        checkpoints.load(tmp_path / "list.pt", model=small())
    torch.save(small(), tmp_path / "code.pt")  # a whole module: reading it would run code
    with pytest.raises(LabError, match="cannot be read as a checkpoint"):
        checkpoints.load(tmp_path / "code.pt", model=small())


def test_an_interrupted_write_leaves_the_checkpoint_before_it(saved, monkeypatch):
    path, model = saved
    whole = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        LabError, match="could not be written .No space left on device.; the one before it is still there"
    ):
        checkpoints.save(path, model=model, epoch=3, facts=FACTS)
    with pytest.raises(LabError, match="nothing was written"):
        checkpoints.save(path.with_name("new.pt"), model=model, epoch=3, facts=FACTS)
    assert path.read_bytes() == whole and [file.name for file in path.parent.iterdir()] == ["student.pt"]


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"epoch": -1}, "epoch=-1; wanted a whole number of at least 0"),
        ({"epoch": True}, "epoch=True"),
        ({"facts": ["seed"]}, r"facts=\['seed'\]; wanted a mapping"),
        ({"facts": {"teacher": small()}}, r"fingerprint\(model\)"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, given, sentence):
    with pytest.raises(BadInput, match=sentence):
        checkpoints.save(tmp_path / "x.pt", **{"model": small(), "epoch": 0, "facts": {}, **given})
    assert not list(tmp_path.iterdir())


def test_a_fingerprint_sees_weights_and_batch_norm_statistics():
    model, again = small(), small()
    assert checkpoints.fingerprint(model) == checkpoints.fingerprint(again)
    again[1].running_mean[0] += 1e-7
    assert checkpoints.fingerprint(model) != checkpoints.fingerprint(again)
    assert len(checkpoints.fingerprint(small().bfloat16())) == 12


def test_a_folder_and_a_foreign_file_of_the_same_format_are_refused(tmp_path):
    with pytest.raises(LabError, match="is a folder; give the path of a file in it"):
        checkpoints.load(tmp_path, model=small())
    torch.save({"format": checkpoints.FORMAT}, tmp_path / "half.pt")
    with pytest.raises(LabError, match=r"half\.pt holds a dict that checkpoints.save did not write; delete it"):
        checkpoints.load(tmp_path / "half.pt", model=small())


def test_a_place_is_that_of_the_weights_a_training_begins_with(tmp_path):
    first, second = small(), small()
    with torch.no_grad():
        second[0].weight[0, 0] += 1e-6
    here, there = checkpoints.place(tmp_path, "slim8", first), checkpoints.place(tmp_path, "slim8", second)
    assert (
        here.path.parent == tmp_path and here.path == checkpoints.place(tmp_path, "slim8", small()).path != there.path
    )
    assert repr(here) == "starts from the beginning"
    checkpoints.save(here.path, model=first, epoch=1, facts={})
    (tmp_path / "slim8-notes.pt").write_text("")
    (tmp_path / "slim80-0123456789ab.pt").write_text("")
    assert repr(checkpoints.place(tmp_path, "slim8", first)) == f"goes on from {here.path.name}"
    other = checkpoints.place(tmp_path, "slim8", second)
    assert other.others == (here.path,)
    assert repr(other) == f"starts from the beginning; {here.path.name} began from other weights and can be deleted"
    assert here.path.is_file(), "looking for a place deletes nothing"


def test_a_restarted_kernel_whose_network_came_out_differently_starts_over(tmp_path):
    from labsupport import training

    split = data.Split(np.zeros((8, 8, 8, 1), np.uint8), np.arange(8) % 2, ("a", "b"))
    options = {"epochs": 2, "batch_size": 4, "shift_pixels": 0, "progress": False}
    for offset in (0.0, 1e-6):  # the second time with slightly other weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        with torch.no_grad():
            model[1].weight += offset
        place = checkpoints.place(tmp_path, "slim", model)
        assert not place.path.exists() and len(place.others) == bool(offset)
        training.fit(model, split, checkpoint=place.path, **options)
        assert repr(checkpoints.place(tmp_path, "slim", model)).startswith("goes on from slim-")


@pytest.mark.parametrize("stem", ["", "a/b", "*", None, "-x"])
def test_a_stem_that_is_no_name_is_refused(tmp_path, stem):
    with pytest.raises(BadInput, match=r"stem=.*; (it begins a file's name|wanted text)"):
        checkpoints.place(tmp_path, stem, small())
