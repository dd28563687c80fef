"""The live view in a real JupyterLab and a real browser. `make test-notebook` installs them, except Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytest.importorskip("jupyterlab")
pytest.importorskip("playwright")
if not shutil.which("chromium"):
    pytest.skip("chromium is not installed; on Debian, run apt install chromium", allow_module_level=True)

from playwright.sync_api import Browser

from tests.support.browser import Book, Lab, chromium, opened
from tests.support.kernels import ROOT, install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SERVE = """
import time, threading, finx_streamer
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer, SimulatedMarket
PAIRS = [f"{base}:{quote}" for base in ("BTC", "ETH", "SOL", "ADA", "XRP") for quote in ("USDC", "USDT")]
if "server" not in globals():
    server = LocalServer(SimulatedMarket(PAIRS, rate=1000.0, seed=1), keys={"demo"}).start()
"""
LIVE = """
listener = StreamListener(*PAIRS, endpoint=server.url, api_key="demo")
listener.live("BTC:USDC", "ETH:USDC")
"""
CELLS = [SERVE, LIVE, "print('alive:', len(finx_streamer.listeners()))", "listener.join()", "listener"]
#: Whether the live view shows this state of the listener.
STATE = "state => document.querySelector('.finx header .light')?.textContent === state"
FRAMES = "count => document.querySelector('.finx')?.finxMeter.frames > count"


def write(lab: Lab, name: str, cells: list[str]) -> None:
    """Write a notebook into the lab's folder."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = new_notebook(cells=[new_code_cell(code.strip()) for code in cells], metadata={"kernelspec": kernel})
    nbformat.write(book, lab.files / name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as running:
        for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
            shutil.copy(path, running.files)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(lab: Lab, browser: Browser) -> Iterator[Book]:
    """An empty page of the lab. Its kernels end with the test."""
    others = {kernel["id"] for kernel in lab.kernels()}
    with opened(browser, lab) as book:
        yield book
    lab.end_kernels(others)


@pytest.fixture(scope="module")
def shared(lab: Lab, browser: Browser) -> Iterator[Book]:
    """A notebook for several tests, because loading a page takes long."""
    write(lab, "shared.ipynb", CELLS)
    with opened(browser, lab) as book:
        book.open("shared.ipynb")
        yield book


@pytest.fixture
def book(shared: Book) -> Book:
    """A notebook with a live view of a listener that has just started."""
    shared.errors.clear()
    shared.run(0)
    shared.run(1)
    shared.wait(FRAMES, 20)
    return shared


def test_a_notebook_of_the_docs(page: Book) -> None:
    """Its live view draws without errors, and sends no request to other machines."""
    page.open("live_portfolio.ipynb")
    page.run(1)
    page.run(2)
    page.wait(FRAMES, 20)
    drawn = page.meter()["drawn"]
    page.wait("drawn => document.querySelector('.finx').finxMeter.drawn > drawn + 20", drawn)
    assert page.page.locator(".finx .chart canvas").count() == 2
    assert page.page.locator(".finx .scroll tbody tr").count() == 3
    assert (page.errors, page.foreign_requests) == ([], [])


def test_stop_works_while_a_cell_runs(book: Book) -> None:
    """The cell waits for the listener's end, so it ends with the listener."""
    book.begin(3)
    book.wait("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    book.wait(FRAMES, book.meter()["frames"] + 20)
    book.page.click(".finx .stop")
    book.wait(STATE, "stopped")
    book.wait_idle()
    book.wait_output(3, "True")
    assert book.page.locator(".finx .stop").is_disabled()
    assert book.errors == []


def test_rerunning_leaves_one_listener(book: Book) -> None:
    """One view remains, and it updates itself."""
    for _ in range(3):
        book.run(1)
    book.run(2)
    book.wait_output(2, "alive: 1")
    book.wait(FRAMES, 20)
    assert book.page.locator(".finx").count() == 1
    assert book.errors == []


def test_a_reload_keeps_the_history(book: Book) -> None:
    """The page gets the full state once, with both charts."""
    book.wait("() => document.querySelector('.finx .chart')")
    book.command("docmanager:save")
    book.reload()
    book.wait(FRAMES, 20)
    assert book.page.locator(".finx .chart").count() == 2
    assert book.meter()["full"] == 1
    assert book.errors == []


def test_the_view_reports_a_lost_kernel(book: Book) -> None:
    """It says for how many seconds there has been no data."""
    book.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    book.wait("() => /^no data for \\d+ s$/.test(document.querySelector('.finx .note.bad')?.textContent ?? '')")
    assert book.page.locator(".finx .stop").is_disabled()
    book.wait_idle()


def test_an_interrupt_ends_a_waiting_cell(book: Book) -> None:
    """The listener keeps running."""
    book.begin(3)
    book.wait("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
    book.command("notebook:interrupt-kernel")
    book.wait_idle()
    book.wait_output(3, "KeyboardInterrupt")
    book.wait(FRAMES, book.meter()["frames"] + 10)


def test_pairs_and_charts_are_controlled_by_keyboard(book: Book) -> None:
    """Every control has an accessible name, and a zoomed chart stops following the newest ticks."""
    page = book.page
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(".finx button, .finx select, .finx [role]")]
            .filter((node) => !node.getAttribute("aria-label") && !node.textContent.trim()
                && node.getAttribute("role") !== "status").length"""
    )
    assert nameless == 0
    pick = page.get_by_role("button", name="SOL:USDC", exact=True)
    pick.focus()
    page.keyboard.press("Enter")
    book.wait("() => document.querySelectorAll('.finx .chart').length === 3")
    assert pick.get_attribute("aria-pressed") == "true"
    chart = page.locator(".finx .chart").first
    follow = chart.get_by_role("button", name="follow the newest ticks")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert follow.get_attribute("aria-pressed") == "false"
    page.keyboard.press("f")
    assert follow.get_attribute("aria-pressed") == "true"
    box = chart.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 80, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 60, steps=5)
    page.mouse.up()
    assert follow.get_attribute("aria-pressed") == "false"
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + 50)
    assert any(c.isdigit() for c in chart.locator(".u-legend").inner_text().replace("UTC", ""))
    assert book.errors == []


def test_a_hidden_page_gets_nothing(book: Book) -> None:
    """A tab in the background gets no frames."""
    page = book.page
    page.evaluate(
        """() => {
            const get = () => window.finxVisibility ?? "hidden";
            Object.defineProperty(document, "visibilityState", { get, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    book.run(2)
    before = book.meter()["frames"]
    book.run(2)
    book.run(4)
    assert book.meter()["frames"] <= before + 1
    page.evaluate("() => { window.finxVisibility = 'visible'; document.dispatchEvent(new Event('visibilitychange')); }")
    book.wait(FRAMES, before + 10)
    page.evaluate("() => { delete document.visibilityState; }")


def test_names_with_html_are_shown_as_text(page: Book, lab: Lab) -> None:
    """They do nothing in the view, in its charts and in the snapshot."""
    evil = "<img src=x onerror=document.title='evil'>"
    code = f"""
about = {{"pair": "BTC:USDC", "date": "2022-07-02", "exchange": {evil!r}, "price": "1.5"}}
ticks = [{{**about, "time": f"15:30:{{n:02}}.817Z"}} for n in range(60)]
from finx_streamer.server import Tape
evil = LocalServer(Tape(ticks, speed=20.0, loop=True), keys={{"demo"}}).start()
listener = StreamListener("BTC:USDC", endpoint=evil.url, api_key="demo", name={evil!r})
listener.live()
"""
    write(lab, "html.ipynb", [SERVE, code, "listener"])
    page.open("html.ipynb")
    for number in range(3):
        page.run(number)
    page.wait(FRAMES, 10)
    page.wait("evil => document.querySelector('.finx').innerText.includes(evil)", evil)
    page.wait_output(2, evil)
    assert page.page.locator(".finx img, .jp-OutputArea img").count() == 0
    assert page.page.title() != "evil"


def test_stop_works_while_a_cell_runs_in_an_old_kernel(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Kernels without subshells get the request on their control channel."""
    folder: Path = install(["ipykernel==6.31.0", "nest_asyncio"], tmp_path_factory.mktemp("ipykernel"))
    with Lab(tmp_path_factory.mktemp("old"), folder) as lab, opened(browser, lab) as book:
        write(lab, "old.ipynb", CELLS)
        book.open("old.ipynb")
        book.run(0)
        book.run(1)
        book.wait(FRAMES, 20)
        book.begin(3)
        book.wait("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'")
        # Longer than a page counts as visible without a message from it.
        book.wait(FRAMES, book.meter()["frames"] + 20)
        book.page.click(".finx .stop")
        book.wait(STATE, "stopped")
        book.wait_idle()
        book.wait_output(3, "True")
        assert (book.errors, book.foreign_requests) == ([], [])
