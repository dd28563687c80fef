"""The live view in a real JupyterLab and a real browser. `make test-notebook` installs them, except Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
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
#: A price for each pair: all sizes from 1e-9 to 1e9, and some others.
PRICES = {f"P{size + 9}:USDC": f"{Decimal('1.2345').scaleb(size):f}" for size in range(-9, 10)}
PRICES |= {"A:USDC": "0.480451", "B:USDC": "0.00001234", "C:USDC": "9750000"}
#: A market that sends only what the test emits.
QUIET = """
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer
from tests.support.market import Market, tick
PRICES = {prices!r}
server = LocalServer(Market(*PRICES), keys={{"demo"}}).start()
def emit(pair, exchange, price):
    server.emit({{**tick(1, pair, exchange), "price": price}})
"""
QUIET_LIVE = """
listener = StreamListener(*PRICES, endpoint=server.url, api_key="demo")
view = listener.live()
server.wait_connected(len(PRICES))
view
"""
#: Whether the live view shows this state of the listener.
STATE = "state => document.querySelector('.finx header .light')?.textContent === state"
#: The colours of all lights of the live view.
LIGHTS = "() => [...document.querySelectorAll('.finx .light')].map((it) => getComputedStyle(it, '::before').color)"
GREY = "rgb(128, 128, 128)"
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


#: As `LIVE`, with a name for the view.
LAST = LIVE.replace("listener.live", "view = listener.live") + "view"
#: A notebook for Run All: a bare `join()` keeps the kernel busy from the start.
ALL = [SERVE, LIVE, "listener.join()", "print(f'{listener.stats.ticks:,} ticks')"]


def run_all(book: Book, lab: Lab, cells: list[str], name: str = "all.ipynb") -> None:
    """Open a notebook, and run all cells without waiting."""
    write(lab, name, cells)
    book.open(name)
    book.start("notebook:run-all-cells")


def check_run_all(book: Book) -> None:
    """The view draws, obeys and stops while `join()` keeps the kernel busy. Its last picture is the end."""
    book.wait("() => document.querySelector('.finx')")
    book.wait(FRAMES, 20)
    book.wait("() => document.querySelectorAll('.finx .chart').length === 2")
    book.page.get_by_role("button", name="SOL:USDC", exact=True).click()
    book.wait("() => document.querySelectorAll('.finx .chart').length === 3")
    assert book.output(3) == ""
    book.page.click(".finx .stop")
    book.wait_output(3, "ticks")
    view = book.wait_view(1, "stopped")
    assert view["totals"].split(" ·")[0] == book.output(3).strip()


def test_run_all(page: Book, lab: Lab) -> None:
    """The view is alive although a later cell blocks the kernel."""
    run_all(page, lab, ALL)
    check_run_all(page)
    assert (page.errors, page.foreign_requests) == ([], [])


def test_the_last_picture(page: Book, lab: Lab) -> None:
    """With Run All, a page may ask for the picture after the end, and after `close()`."""
    rounds = 5
    cells = [SERVE]
    for number in range(rounds):
        end = f"listener.join(timeout={0.2 * (number % 3)})\nlistener.stop()" + "\nview.close()" * (number % 2)
        cells += [LAST, f"{end}\nprint(f'{{listener.stats.ticks:,}} ticks')"]
    run_all(page, lab, cells)
    page.wait_output(2 * rounds, "ticks")
    for number in range(1, 2 * rounds, 2):
        view = page.wait_view(number, "stopped")
        assert view == {"header": "stopped", "lights": ["stopped"] * 10, "totals": view["totals"], "note": ""}
        assert view["totals"].split(" ·")[0] == page.output(number + 1).strip()
    assert page.errors == []


def test_a_closed_view_has_no_green_light(quiet: Book) -> None:
    """It says what the state was, and that the view is closed."""
    quiet.execute(2, "view.close()")
    quiet.wait("() => document.querySelector('.finx header .note').textContent === 'view closed'")
    colours = quiet.page.evaluate(LIGHTS)
    assert set(colours) == {GREY}
    assert quiet.page.locator(".finx header .light").inner_text() == "was streaming"
    assert quiet.page.locator(".finx .stop").is_disabled()
    quiet.run(1)


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
    assert set(book.page.evaluate(LIGHTS)) == {GREY}
    assert book.page.locator(".finx header .light").inner_text() == "was streaming"
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


@pytest.fixture(scope="module")
def shared_quiet(lab: Lab, browser: Browser) -> Iterator[Book]:
    """A notebook whose market sends only what the test emits. Its third cell is for the test."""
    write(lab, "quiet.ipynb", [QUIET.format(prices=PRICES), QUIET_LIVE, "pass", "listener"])
    with opened(browser, lab) as book:
        book.open("quiet.ipynb")
        book.run(0)
        yield book


@pytest.fixture
def quiet(shared_quiet: Book) -> Book:
    """A notebook with a live view that has no ticks yet."""
    shared_quiet.errors.clear()
    shared_quiet.run(1)
    shared_quiet.wait(STATE, "streaming")
    return shared_quiet


def test_prices_from_tiny_to_huge(quiet: Book) -> None:
    """Table, legend and snapshot show the same text. The labels of the axis have the decimals that their step needs."""
    quiet.execute(
        2,
        """for pair, price in PRICES.items():
            emit(pair, "KRAKEN", price[:-1] + "9")
            emit(pair, "COINBASE", price[:-1] + "2")
            emit(pair, "BINANCE", price)""",
    )
    shown = {}
    labels = {}
    for number, pair in enumerate(PRICES):
        if number:
            quiet.page.get_by_role("button", name=pair, exact=True).click()
        quiet.wait(
            "pair => document.querySelector('.finx').finxCharts.get(pair)?.plot?.axes[1]._values?.length > 1", pair
        )
        chart = quiet.charts()[pair]
        shown[pair] = chart["legend"]["BINANCE"]
        labels[pair] = chart["labels"][1], chart["places"][1]
    quiet.run(3)
    rows = quiet.page.locator(".finx .scroll tbody tr").all_inner_texts()
    table = {row.split()[0]: row.split()[3] for row in rows}
    quiet.wait_output(3, "as of")
    snapshot = {
        line.split()[0]: line.split()[3] for line in quiet.output(3).splitlines() if line.startswith(tuple(PRICES))
    }
    assert shown == {pair: f"{Decimal(price):,f}" for pair, price in PRICES.items()}
    assert table == shown
    assert snapshot == shown
    for texts, places in labels.values():
        assert len(set(texts)) == len(texts)
        assert all(re.fullmatch(r"\d{1,3}(,\d{3})*(\.\d+)?", text) for text in texts)
        assert [float(text.replace(",", "")) for text in texts] == pytest.approx(places, rel=1e-9)
        # No more digits than the step needs.
        assert any(not text.endswith("0") for text in texts) or "." not in texts[0]
    assert quiet.errors == []


def test_columns_keep_their_width(quiet: Book) -> None:
    """A short text after a long one moves nothing. That holds for the table and for the legend."""
    widths = """() => [...document.querySelectorAll('.finx thead th, .finx .u-legend .u-series')]
        .map((cell) => cell.getBoundingClientRect().width)"""
    seen = []
    for exchange, price in (("SHORT", "1"), ("A-VERY-LONG-NAME", "123"), ("SHORT", "2")):
        quiet.execute(
            2, f"for pair in ('P0:USDC', 'A:USDC'): emit(pair, {exchange!r}, {price!r}); emit(pair, 'X', {price!r})"
        )
        # The table shows the last tick, and the legend of the other chart shows all exchanges.
        quiet.execute(2, f"emit('A:USDC', {exchange!r}, {price!r})")
        quiet.wait("text => document.querySelector('.finx .u-legend').textContent.includes(text)", f"X{price}")
        quiet.wait("text => document.querySelector('.finx tbody').innerText.includes(text)", exchange)
        seen.append(quiet.page.evaluate(widths))
    assert len(seen[0]) == 9 + 3
    assert seen[1][2:4] > seen[0][2:4]
    assert seen[2] == pytest.approx(seen[1], abs=0.5)


def test_an_exchange_has_the_same_line_in_every_chart(quiet: Book) -> None:
    """It depends on its name, and so does its place in the legend. Exchanges without their own colour have dashes."""
    quiet.execute(2, "for name in ('KRAKEN', 'SOMEX', 'BINANCE', 'OTHEREX', 'NEWEX'): emit('A:USDC', name, '1')")
    quiet.execute(2, "for name in ('NEWEX', 'OTHEREX', 'BINANCE', 'SOMEX', 'COINBASE'): emit('B:USDC', name, '1')")
    for pair in ("A:USDC", "B:USDC"):
        quiet.page.get_by_role("button", name=pair, exact=True).click()
    quiet.wait("() => document.querySelectorAll('.finx .u-series:not(.time)').length === 10")
    charts = quiet.charts()
    assert [list(chart["lines"]) for chart in charts.values() if chart["lines"]] == [
        ["BINANCE", "KRAKEN", "NEWEX", "OTHEREX", "SOMEX"],
        ["BINANCE", "COINBASE", "NEWEX", "OTHEREX", "SOMEX"],
    ]
    expected = {
        "BINANCE": "solid rgb(184, 138, 0)",
        "NEWEX": "dashed rgb(160, 112, 74)",
        "SOMEX": "dotted rgb(180, 95, 196)",
        "OTHEREX": "dotted rgb(184, 138, 0)",
    }
    assert charts["A:USDC"]["lines"] == {**expected, "KRAKEN": "solid rgb(143, 110, 230)"}
    assert charts["B:USDC"]["lines"] == {**expected, "COINBASE": "solid rgb(47, 125, 225)"}


def test_the_legend_shows_the_last_values(quiet: Book) -> None:
    """They are there without hovering, and at the cursor they are the last ones until then."""
    quiet.page.mouse.move(0, 0)
    first = next(iter(PRICES))
    for exchange, price in (("BINANCE", "1.5"), ("KRAKEN", "1.25"), ("BINANCE", "1.75")):
        quiet.execute(2, f"emit({first!r}, {exchange!r}, {price!r}); import time; time.sleep(0.6)")
    legend = "text => document.querySelector('.finx .u-legend').textContent.includes(text)"
    quiet.wait(legend, "BINANCE1.75KRAKEN1.25")
    box = quiet.page.locator(".finx .u-over").bounding_box()
    assert box is not None
    quiet.page.mouse.move(box["x"] + 1, box["y"] + 40)
    quiet.wait(legend, "BINANCE1.50KRAKEN-")
    quiet.page.mouse.move(0, 0)
    quiet.wait(legend, "BINANCE1.75KRAKEN1.25")


CANDLES = """
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer
from tests.support.market import Market, tick
server = LocalServer(Market("BTC:USDC"), keys={"demo"}).start()
def emit(*ticks):
    server.emit(*({**tick(number), "price": price} for number, price in ticks))
listener = StreamListener("BTC:USDC", endpoint=server.url, api_key="demo")
view = listener.live(bars="1s")
server.wait_connected(1)
view
"""
#: Whether the chart has these candles: their open, high, low and close.
HAS = """wanted => {
    const [, ...prices] = [...document.querySelector('.finx')?.finxCharts.values() ?? []][0]?.data ?? [];
    return prices.length && JSON.stringify(prices[0].map((_, i) => prices.map((column) => column[i]))) === wanted;
}"""
#: The opaque colours of the chart, except those of its text and its grid.
PAINTED = """() => {
    const canvas = document.querySelector('.finx .chart canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const found = new Set();
    for (let i = 0; i < data.length; i += 4) {
        const colour = data.slice(i, i + 3);
        if (data[i + 3] === 255 && Math.max(...colour) - Math.min(...colour) > 50) found.add(colour.join());
    }
    return [...found].sort();
}"""


def test_candles(page: Book, lab: Lab) -> None:
    """Ticks change the open candle, late ones an earlier one. Rising and falling candles have colours."""
    write(lab, "candles.ipynb", [CANDLES, "emit((1, '10'), (50, '12'), (150, '11'))", "emit((160, '9'), (60, '13'))"])
    page.open("candles.ipynb")
    page.run(0)
    page.wait(STATE, "streaming")
    page.run(1)
    page.wait(HAS, "[[10,12,10,12],[11,11,11,11]]")
    page.run(2)
    page.wait(HAS, "[[10,13,10,13],[11,11,9,9]]")
    page.wait(
        "() => document.querySelector('.finx .u-legend').textContent === 'time (UTC)15:30:01open11high11low9close9'"
    )
    assert page.page.evaluate(PAINTED) == ["217,66,58", "46,158,79"]
    # A chart that is chosen again has them, too.
    page.page.click(".finx tbody button")
    page.wait("() => !document.querySelector('.finx .chart')")
    page.page.click(".finx tbody button")
    page.wait(HAS, "[[10,13,10,13],[11,11,9,9]]")
    assert page.errors == []


def test_a_click_on_a_pair_keeps_the_other_charts(book: Book) -> None:
    """They aren't drawn again from the start, and keep their zoom."""
    book.wait("() => document.querySelectorAll('.finx .chart').length === 2")
    book.page.locator(".finx .chart").first.focus()
    book.page.keyboard.press("ArrowLeft")
    before = book.charts()["BTC:USDC"]["shown"]
    full = book.meter()["full"]
    book.page.evaluate(
        "() => { for (const it of document.querySelectorAll('.finx .chart canvas')) it.finxMark = true; }"
    )
    for name, count in (("SOL:USDC", 3), ("XRP:USDT", 4), ("ETH:USDC", 3)):
        book.page.get_by_role("button", name=name, exact=True).click()
        book.wait("count => document.querySelectorAll('.finx .chart').length === count", count)
    marks = "() => [...document.querySelectorAll('.finx .chart canvas')].map((it) => it.finxMark === true)"
    assert book.page.evaluate(marks) == [True, False, False]
    assert book.charts()["BTC:USDC"]["shown"] == before
    assert book.meter()["full"] == full


def test_the_window_starts_with_its_data(book: Book) -> None:
    """It grows, and moves on when it has the chosen length. The labels of its axis are round."""
    began = book.charts()["BTC:USDC"]
    assert began["shown"][0] == began["first"]
    book.wait(
        "from => document.querySelector('.finx').finxCharts.get('BTC:USDC').plot.scales.x.max > from + 6",
        began["first"],
    )
    grown = book.charts()["BTC:USDC"]
    assert grown["shown"][0] == began["first"]
    seconds = [int(label[-2:]) for label in grown["labels"][0]]
    assert grown["places"][0] == [round(place) for place in grown["places"][0]]
    assert seconds == [place % 60 for place in grown["places"][0]]
    book.page.locator(".finx .chart").first.focus()
    # Half as long.
    book.page.keyboard.press("+")
    book.wait(
        "from => document.querySelector('.finx').finxCharts.get('BTC:USDC').plot.scales.x.min > from + 1",
        began["first"],
    )


def test_time_labels_are_round(book: Book) -> None:
    """They have as much precision as the distance between them needs."""
    page = book.page
    page.locator(".finx .chart").first.focus()
    page.keyboard.press("ArrowLeft")

    def labels(key: str, presses: int) -> list[str]:
        """Zoom, and return the labels. Each is the text of a multiple of the distance."""
        for _ in range(presses):
            page.keyboard.press(key)
        book.wait("() => new Promise((resolve) => requestAnimationFrame(() => resolve(true)))")
        chart = book.charts()["BTC:USDC"]
        places, texts = chart["places"][0], chart["labels"][0]
        step = round(places[1] - places[0], 1)
        assert [place / step for place in places] == pytest.approx([round(place / step) for place in places], abs=1e-3)
        form = "%H:%M" if step >= 60 else "%H:%M:%S"
        digits = 1 if step < 1 else 0
        moments = [datetime.fromtimestamp(round(place, 1), UTC) for place in places]
        assert texts == [moment.strftime(form) + f"{moment.microsecond / 1e6:.1f}"[1:] * digits for moment in moments]
        return texts

    assert len({len(labels("+", 6)[0]), len(labels("-", 6)[0]), len(labels("-", 9)[0])}) == 3


def test_charts_use_the_width_of_the_cell(book: Book) -> None:
    """Two are side by side where there is room."""
    book.wait("() => document.querySelectorAll('.finx .chart').length === 2")

    def layout(width: int) -> tuple[bool, int]:
        book.page.evaluate(
            "width => { document.querySelector('.finx').parentElement.style.width = `${width}px`; }", width
        )
        book.wait(
            """() => [...document.querySelector('.finx').finxCharts.values()]
                .every(({ plot, box }) => plot.width === box.clientWidth)"""
        )
        charts = book.charts().values()
        return len({chart["top"] for chart in charts}) == 1, sum(chart["width"] for chart in charts)

    together, total = layout(1400)
    assert together
    assert 1340 < total <= 1400
    together, total = layout(500)
    assert not together
    assert 960 < total <= 1000
    book.page.get_by_role("button", name="ETH:USDC", exact=True).click()
    book.wait("() => document.querySelectorAll('.finx .chart').length === 1")
    assert 1340 < layout(1400)[1] <= 1400
    assert book.errors == []


def test_a_hidden_page_gets_nothing(book: Book) -> None:
    """A tab in the background gets no frames. When it is visible again, its charts go on."""
    page = book.page
    page.evaluate("() => { document.querySelector('.finx .chart canvas').finxMark = true; }")
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
    assert page.evaluate("() => document.querySelector('.finx .chart canvas').finxMark === true")
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
        run_all(book, lab, ALL)
        check_run_all(book)
        assert (book.errors, book.foreign_requests) == ([], [])


#: Contracts of two underlyings and of two expiries, and a market that plays what a test emits.
CONTRACTS = [
    f"{expiry}-{strike}-{side}"
    for expiry, strikes in (
        ("BTC-26AUG22", range(15_000, 27_000, 500)),
        ("BTC-30SEP22", (20_000, 21_000)),
        ("ETH-26AUG22", (1_500,)),
    )
    for strike in strikes
    for side in "CP"
]
OPTIONS = f"""
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer
from tests.support.contracts import played_by_hand, ticker
CONTRACTS = {CONTRACTS!r}
MONTHS = ["BTCQ2202208", "BTCU2202209", "ETHQ2202208"]
server = LocalServer(played_by_hand(*CONTRACTS, "BTC-PERPETUAL"), keys={{"demo"}}).start()
def emit(name, **values):
    server.emit(ticker(name, **{{key: str(value) for key, value in values.items()}}))
def emit_all():
    for name in CONTRACTS:
        call, forward = name.endswith("C"), 1520 if name.startswith("ETH") else 22100
        emit(name, mark_iv=70.25, delta=0.5 if call else -0.5, best_bid_price=0.0305, best_ask_price=0.1,
             underlying_price=forward)
"""
OPTIONS_LIVE = """
listener = StreamListener(*MONTHS, "BTC-PERPETUAL", endpoint=server.url, api_key="demo")
view = listener.live()
server.wait_connected(4)
emit_all()
view
"""
#: The texts of the chain by strike.
CHAIN = """() => Object.fromEntries([...document.querySelectorAll('.finx .chain tbody tr')].map((row) =>
    [row.querySelector('th').textContent, [...row.querySelectorAll('td')].map((cell) => cell.textContent)]))"""


@pytest.fixture
def options(page: Book, lab: Lab) -> Book:
    """A notebook with a live view of options. Its third cell is for the test."""
    write(lab, "options.ipynb", [OPTIONS, OPTIONS_LIVE, "pass"])
    page.open("options.ipynb")
    page.run(0)
    page.run(1)
    page.wait("() => document.querySelectorAll('.finx .chain tbody tr').length === 24")
    return page


def test_a_chain_and_its_smiles(options: Book) -> None:
    """The strike at the money is marked and visible. Changes arrive in their cells."""
    chain = options.page.evaluate(CHAIN)
    assert chain["20,000"] == ["70.3", "0.50", "0.0305", "0.1000", "0.0305", "0.1000", "-0.50", "70.3"]
    assert options.page.locator(".finx .chain .atm th").all_inner_texts() == ["22,000"]
    options.wait(
        """() => {
            const scroll = document.querySelector('.finx .chain .scroll').getBoundingClientRect();
            const { top, bottom } = document.querySelector('.finx .chain .atm').getBoundingClientRect();
            return top > scroll.top + 60 && bottom < scroll.bottom - 60;
        }"""
    )
    assert "forward 22,100.00 · prices in BTC" in options.page.locator(".finx .chain .bar").inner_text()
    options.wait("() => document.querySelector('.finx .smile .u-legend')?.textContent.includes('BTC-26AUG2270.3 %')")
    options.execute(2, "emit(CONTRACTS[0], mark_iv=99.5, best_ask_price=0.12345, underlying_price=15100)")
    options.wait("() => document.querySelector('.finx .chain .atm th').textContent === '15,000'")
    chain = options.page.evaluate(CHAIN)
    assert chain["15,000"] == ["99.5", "-", "-", "0.12345", "0.03050", "0.10000", "-0.50", "70.3"]
    assert chain["20,000"][3] == "0.10000"
    assert (options.errors, options.foreign_requests) == ([], [])


def test_the_expiry_is_selected(options: Book) -> None:
    """By keyboard, too. The smiles are those of its underlying. A new page shows the same."""
    select = options.page.get_by_label("expiry")
    assert select.locator("option").all_inner_texts() == ["BTC-26AUG22", "BTC-30SEP22", "ETH-26AUG22"]
    select.focus()
    options.page.keyboard.press("ArrowDown")
    options.wait("() => document.querySelectorAll('.finx .chain tbody tr').length === 2")
    select.select_option("ETH-26AUG22")
    options.wait("() => document.querySelector('.finx .smile b').textContent === 'implied volatility of ETH'")
    assert list(options.page.evaluate(CHAIN)) == ["1,500"]
    options.command("docmanager:save")
    options.open("options.ipynb")
    options.wait("() => document.querySelector('.finx .chain tbody th')?.textContent === '1,500'")
    assert options.page.get_by_label("expiry").input_value() == "ETH-26AUG22"
    assert options.errors == []


def test_only_what_is_no_option_has_a_chart(options: Book) -> None:
    """The names of months are no buttons. A listener with only pairs has no chain."""
    buttons = options.page.locator(".finx .scroll tbody button")
    assert buttons.all_inner_texts() == ["BTC-PERPETUAL"]
    options.execute(2, "emit('BTC-PERPETUAL', mark_price=22050.5)")
    options.wait("() => document.querySelector('.finx .chart .u-legend').textContent.includes('DERIBIT22,050.5')")
    options.execute(2, "listener.remove(*MONTHS)")
    options.wait("() => document.querySelector('.finx .options') === null")
    assert options.errors == []


def test_a_zoomed_smile_stays_zoomed(options: Book) -> None:
    """Until a double click."""
    scale = "document.querySelector('.finx').finxOptions().smiles.plot.scales.x"
    shown = f"() => {scale}.max - {scale}.min"
    options.wait("() => document.querySelector('.finx').finxOptions().smiles?.plot?.scales.x.max > 20000")
    whole = options.page.evaluate(shown)
    over = options.page.locator(".finx .smile .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    options.page.mouse.move(box["x"] + 100, box["y"] + 50)
    options.page.mouse.down()
    options.page.mouse.move(box["x"] + 200, box["y"] + 60, steps=5)
    options.page.mouse.up()
    zoomed = options.page.evaluate(shown)
    assert zoomed < whole / 2
    options.execute(2, "emit(CONTRACTS[0], mark_iv=12.5, underlying_price=15100)")
    options.wait("() => document.querySelector('.finx .chain .atm th').textContent === '15,000'")
    assert options.page.evaluate(shown) == pytest.approx(zoomed)
    over.dblclick()
    assert options.page.evaluate(shown) == pytest.approx(whole)
    assert options.errors == []
