"""`examine` on the command line: its options, what it prints, and how it ends."""

from __future__ import annotations

import pytest
from faces import stand_in

from labsupport import examining
from labsupport.command_line import cli


@pytest.fixture
def asked(monkeypatch):
    """What the room was asked for; it answers with a word."""
    calls = []

    def examine(model, **options):
        calls.append((model, options))
        return "the decision"

    monkeypatch.setattr(cli, "prepare", lambda *_, **__: None)
    stand_in(monkeypatch, examining, "examine", examine)
    return calls


def test_the_options_reach_the_room(asked, capsys):
    options = "--inputs d.npz --budget-ms 5 --keep-accuracy 0.9 --minutes 3 --save out".split()
    assert cli.main(["examine", "net.onnx", *options]) == 0
    ((model, given),) = asked
    assert (str(model), str(given["inputs"]), str(given["save"])) == ("net.onnx", "d.npz", "out")
    assert given["limits"] == examining.Limits(5.0, 0.9, 3.0)
    assert capsys.readouterr().out == "the decision\n"
    assert cli.main(["examine", "net.onnx"]) == 0 and asked[1][1]["limits"] == examining.Limits(None, 0.99, 10.0)


@pytest.mark.parametrize(
    "options, told", [(["--minutes", "0"], "--minutes 0"), (["--keep-accuracy", "2"], "share above 0")]
)
def test_limits_without_sense_end_in_a_sentence(asked, capsys, options, told):
    assert cli.main(["examine", "net.onnx", *options]) == cli.FAILED
    assert told in capsys.readouterr().err and asked == []


@pytest.mark.parametrize("words", [["examine"], ["examine", "a", "--budget-ms", "soon"], ["examine", "a", "--fast"]])
def test_what_is_not_understood(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == cli.USAGE and "usage:" in capsys.readouterr().err


def test_interrupted(asked, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    stand_in(monkeypatch, examining, "examine", interrupted)
    assert cli.main(["examine", "net.onnx"]) == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_a_file_that_is_not_there(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: None)
    assert cli.main(["examine", str(tmp_path / "none.onnx")]) == cli.FAILED
    assert "none.onnx: no such file" in capsys.readouterr().err
