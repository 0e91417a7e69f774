"""Progress bars: no widget, complete at the end, one line of text afterward, nothing in headless runs."""

from __future__ import annotations

import time

import pytest

from labsupport.environment import bars


class Shown(list):
    """What a notebook would show of one output: the last entry is what stays."""

    def update(self, bundle, raw):
        self.append(bundle)


@pytest.fixture
def shown(monkeypatch):
    """A notebook that somebody watches, where every bar is drawn at once."""
    shown = Shown()
    monkeypatch.setattr(bars, "headless", lambda: False)
    monkeypatch.setattr(bars, "AFTER_S", -1.0)
    monkeypatch.setitem(bars.sys.modules, "ipykernel", object())
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw, display_id: shown.append(bundle) or shown)
    return shown


def test_a_bar_gives_way_to_one_line_of_text(shown):
    assert list(bars.bar(["a", "b"], label="drawing signs", unit="signs")) == ["a", "b"]
    assert "<progress value=" in shown[0]["text/html"] and shown[0]["text/plain"].startswith("drawing signs:")
    assert list(shown[-1]) == ["text/plain"]
    assert shown[-1]["text/plain"].startswith("drawing signs: done in ") and shown[-1]["text/plain"].endswith(
        " (2 signs)"
    )
    assert not any("widget" in kind for bundle in shown for kind in bundle)


def test_a_total_that_was_a_guess_ends_complete(shown):
    with bars.bar(label="building net", unit="steps") as bar:
        bar.total, bar.n = 81, 79
        bar.set_postfix_str("timing <kernels>", refresh=True)
        assert 'value="79" max="81"' in shown[-1]["text/html"] and "timing &lt;kernels&gt;" in shown[-1]["text/html"]
        bar.finish()
    assert "building net: done in " in shown[-1]["text/plain"]


def test_what_fails_says_where_it_stopped(shown):
    with pytest.raises(KeyboardInterrupt), bars.bar(total=9, label="training", unit="batches") as bar:
        bar.update(4)
        raise KeyboardInterrupt
    assert shown[-1]["text/plain"].startswith("training: stopped after ")
    assert shown[-1]["text/plain"].endswith(" (4 batches of 9)")


def test_a_resumed_bar_starts_with_a_sane_rate(shown):
    with bars.bar(total=1000, label="training", unit="batches") as bar:
        bar.start_at(900)
        time.sleep(0.3)
        bar.update(1)
        bar.refresh()
        assert (bar.n - bar.initial) / bar.format_dict["elapsed"] < 10
        assert "901 of 1000 batches" in shown[-1]["text/html"]


def test_an_unknown_total_moves_without_a_number(shown):
    with bars.bar(label="building net") as bar:
        bar.refresh()
        assert "<progress style" in shown[-1]["text/html"] and "max" not in shown[-1]["text/html"].split("style")[0]


def test_short_work_shows_nothing(shown, monkeypatch):
    monkeypatch.setattr(bars, "AFTER_S", 60.0)
    list(bars.bar(range(3), label="quick"))
    assert shown == []


def test_a_headless_run_shows_nothing(shown, monkeypatch):
    monkeypatch.setattr(bars, "headless", lambda: True)
    with bars.bar(total=2, label="quick") as bar:
        bar.start_at(1)
        bar.set_postfix_str("x", refresh=True)
        bar.finish()
    assert shown == []


def test_a_terminal_keeps_the_line_only(shown, monkeypatch, capsys):
    monkeypatch.delitem(bars.sys.modules, "ipykernel")
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True, raising=False)
    list(bars.bar(range(3), label="slow", unit="steps"))
    assert capsys.readouterr().err.endswith("slow: done in 0.0 s (3 steps)\n")


def test_no_bar_is_drawn_where_nobody_watches(monkeypatch):
    terminal = type(
        "Terminal", (), {"isatty": lambda self: True, "write": lambda self, text: None, "flush": lambda self: None}
    )()
    monkeypatch.setattr(bars.sys, "stderr", terminal)
    monkeypatch.delenv("LABSUPPORT_QUIET", raising=False)
    assert bars.bar(total=3, label="x").disable  # pytest runs
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert not bars.bar(total=3, label="x").disable
    assert bars.bar(total=3, label="x", shown=False).disable
    monkeypatch.setenv("LABSUPPORT_QUIET", "1")
    assert bars.bar(total=3, label="x").disable


def test_a_bar_whose_making_was_interrupted_closes_in_silence():
    kind = type(bars.bar(label="x", total=1))
    kind.__new__(kind).close()
