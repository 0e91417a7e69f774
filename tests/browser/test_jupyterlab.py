"""Lab 00 in JupyterLab in a real browser: to its end, one exercise wrong and right, a reload, the dark theme, axe-core.

The checkout is a copy in a folder with spaces and umlauts. Skipped, with the reason, where there is no browser.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import lab_server
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
STATE = """() => {
  const notebook = window.jupyterapp.shell.currentWidget;
  const cells = notebook.content.model.sharedModel.toJSON().cells.filter(cell => cell.cell_type === "code");
  return {
    path: notebook.context.path,
    kernel: notebook.sessionContext.session?.kernel?.status ?? "none",
    left: cells.filter(cell => cell.source.length && cell.execution_count === null).length,
    errors: cells.flatMap(cell => cell.outputs.filter(out => out.output_type === "error").map(out => out.evalue)),
    outputs: cells.reduce((sum, cell) => sum + cell.outputs.length, 0),
  };
}"""
EXERCISE = "lab00.pixels.check"


@pytest.fixture(scope="module")
def checkout(browser, tmp_path_factory):  # after the browser: without one nothing is copied
    return lab_server.copy_of_checkout(tmp_path_factory.mktemp("browser") / "Übung für alle")


@pytest.fixture(scope="module")
def address(checkout, tmp_path_factory):
    """The address of a JupyterLab that ends with these tests."""
    folder = tmp_path_factory.mktemp("settings")
    place = folder / "@jupyterlab" / "notebook-extension"
    place.mkdir(parents=True)
    (place / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))  # all cells at once
    words = ("--port=0", "--LabApp.expose_app_in_browser=True")
    with lab_server.running(checkout, folder, *words, JUPYTERLAB_SETTINGS_DIR=str(folder)) as (where, _):
        yield where


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (`test --all` does it)")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser was found: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        # A container's root has no sandbox, and a page of this checkout is no stranger's.
        shown = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield shown
        shown.close()


@pytest.fixture(scope="module")
def page(browser, address):
    tab = browser.new_page(viewport={"width": 1500, "height": 1000})
    tab.set_default_timeout(120_000)
    tab.goto(address)
    ready(tab)
    return tab


def ready(tab) -> dict:
    """Wait for the notebook and its kernel."""
    tab.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.model?.sharedModel")
    tab.wait_for_function(f"() => ({STATE})().kernel === 'idle'")
    return tab.evaluate(STATE)


def in_exercise(tab):
    return tab.locator(".jp-CodeCell").filter(has=tab.locator(".jp-InputArea", has_text=EXERCISE)).first


def answered(tab, answer: str, verdict: str) -> None:
    """Type an answer into the exercise's cell, run it by its keys, and read the verdict."""
    cell = in_exercise(tab)
    cell.locator(".cm-content").click()
    tab.keyboard.press("Control+a")
    tab.keyboard.insert_text(f"{EXERCISE}({answer})")
    tab.keyboard.press("Control+Enter")
    cell.locator(".jp-OutputArea-output", has_text=verdict).wait_for()


def findings(tab) -> list[str]:
    """Serious and critical findings of axe-core in what our notebooks show; JupyterLab's own are not ours."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    ours = {"include": [[".jp-Notebook .jp-MarkdownOutput"], [".jp-Notebook .jp-OutputArea-output"]]}
    result = axe.Axe().run(tab, context=ours).response
    assert len(result["passes"]) > 5, "axe-core looked at nothing"
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:120]} {node['failureSummary'][:200]}"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_the_learners_copy_opens(page):
    assert page.evaluate(STATE)["path"].endswith("work/00_start_here.ipynb")
    page.get_by_role("heading", name="Start here").first.wait_for()


def test_the_lab_runs_to_its_end(page):
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(
        f"() => {{ const s = ({STATE})(); return s.left === 0 || s.errors.length; }}", timeout=350_000
    )
    page.wait_for_function(f"() => ({STATE})().kernel === 'idle'")
    state = page.evaluate(STATE)
    assert state["errors"] == [] and state["left"] == 0 and state["outputs"] > 15
    printed = "[...document.querySelectorAll('.jp-CodeCell .jp-OutputArea-output pre')]"
    assert set(page.evaluate(f"() => {printed}.map(each => getComputedStyle(each).wordBreak)")) == {"normal"}


def test_an_exercise_wrong_and_right(page):
    answered(page, "56", "Not quite:")
    answered(page, "28 * 28", "Correct.")


def test_a_reload_keeps_the_answer(page, checkout):
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")
    page.reload()
    ready(page)
    in_exercise(page).locator(".jp-OutputArea-output", has_text="Correct.").wait_for()
    kept = json.loads((checkout / "work" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    assert any("28 * 28" in "".join(cell["source"]) for cell in kept["cells"])
    shipped = (checkout / "notebooks" / "00_start_here.ipynb").read_bytes()
    assert shipped == (REPOSITORY / "notebooks" / "00_start_here.ipynb").read_bytes()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_neither_theme_has_a_serious_finding_of_accessibility(page, theme, tmp_path):
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", theme)
    light = "true" if theme.endswith("Light") else "false"
    page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
    page.wait_for_timeout(1000)  # colors fade in
    if folder := os.environ.get("LABSUPPORT_SCREENSHOTS"):
        in_exercise(page).scroll_into_view_if_needed()
        page.screenshot(path=Path(folder) / f"{theme.split()[-1].lower()}.png")
    assert findings(page) == []


def test_axe_sees_a_picture_without_words(page):
    page.evaluate(
        "() => document.querySelector('.jp-Notebook .jp-MarkdownOutput').insertAdjacentHTML("
        "'beforeend', '<img id=\"wordless\" src=\"data:image/gif;base64,R0lGODlhAQABAAAAACw=\">')"
    )
    try:
        assert any("image-alt" in finding for finding in findings(page))
    finally:
        page.evaluate("() => document.getElementById('wordless').remove()")
