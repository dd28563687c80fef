"""Record the pictures in docs/images from the real thing: `make pictures`. Linux only.

The terminal is an animated SVG without a script. The notebook's pictures need JupyterLab and Chromium.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from itertools import count, groupby
from pathlib import Path

import attrs
import pyte

from tests.support.cli import COMMAND, environment, read_terminal
from tests.support.program import ROOT, program_environment

IMAGES = ROOT / "docs" / "images"
ROWS, COLUMNS = 12, 78
FRAMES, FRAME_SECONDS = 12, 0.5
#: Of a character, in pixels.
WIDTH, HEIGHT = 9, 20
MARGIN, BAR = 18, 26
DOTS = ("#ff5f57", "#febc2e", "#28c840")
#: Each box character's strokes up, right, down and left: 0 is none, 1 is light, 2 is heavy.
BOXES = {
    "─": "0101", "━": "0202", "│": "1010", "┃": "2020", "┏": "0220", "┳": "0222", "┓": "0022", "┡": "2210", "╇": "2212",
    "┩": "2012", "└": "1100", "┴": "1101", "┘": "1001",
}  # fmt: skip
COLORS = {"default": "#d0d7de", "green": "#3fb950", "red": "#ff7b72", "cyan": "#39c5cf", "brown": "#d29922"}
STYLE = """
text{font:15px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre;fill:#d0d7de}
path{stroke:#6e7681;fill:none}.b{font-weight:700;fill:#f0f6fc}
.f{visibility:hidden;animation:f %(total)ss step-end infinite}.f:last-of-type{visibility:visible}
@keyframes f{0%%{visibility:visible}%(share)s%%,to{visibility:hidden}}
@media(prefers-reduced-motion){.f{animation:none}}
"""


@attrs.frozen
class Run:
    """Characters of one style, side by side."""

    row: int
    column: int
    text: str
    color: str
    bold: bool

    def svg(self) -> str:
        # `textLength` keeps the columns in any font.
        style = f' style="fill:{COLORS[self.color]}"' if self.color != "default" else ' class="b"' if self.bold else ""
        place = f'x="{_x(self.column)}" y="{_y(self.row + 0.72)}" textLength="{len(self.text) * WIDTH}"'
        return f"<text {place}{style}>{escape(self.text)}</text>"


def record_terminal() -> list[list[str | Run]]:
    """Run `finx-streamer demo` in a terminal. Return its frames: paths of lines, and runs of text."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(b"$ finx-streamer demo\r\n")
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (ROWS - 1, COLUMNS))
    process = subprocess.Popen([*COMMAND, "demo"], stdin=follower, stdout=follower, stderr=follower, env=environment())
    os.close(follower)
    frames: list[list[str | Run]] = []
    try:
        # The first frame comes when each pair has a price.
        while " - " in (shown := "".join(screen.display)) or "streaming" not in shown:
            stream.feed(read_terminal(leader))
        start = time.monotonic()
        while len(frames) < FRAMES:
            left = start + len(frames) * FRAME_SECONDS - time.monotonic()
            if select.select([leader], [], [], max(0.0, left))[0]:
                stream.feed(read_terminal(leader))
            elif left <= 0:
                frames.append([*lines(screen), *runs(screen)])
    finally:
        process.terminate()
        process.wait()
        os.close(leader)
    return frames


def runs(screen: pyte.Screen) -> Iterator[Run]:
    """The texts on a screen, without spaces around them."""
    for row in range(ROWS):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]

        def key(column: int, cells: list[pyte.screens.Char] = cells) -> tuple[str, bool, bool]:
            # Two spaces end a run, so that columns of a table are runs of their own.
            gap = "".join(cell.data for cell in cells[column : column + 2]).isspace()
            return cells[column].fg, cells[column].bold, gap or cells[column].data in BOXES

        for (color, bold, skip), group in groupby(range(COLUMNS), key):
            columns = list(group)
            text = "".join(cells[column].data for column in columns)
            if skip or text.isspace():
                continue
            column = columns[0] + len(text) - len(text.lstrip())
            yield Run(row, column, text.strip(), color if color in COLORS else "default", bold)


def lines(screen: pyte.Screen) -> Iterator[str]:
    """The box characters on a screen, as a light path and a heavy one."""
    for weight in "12":
        # Strokes are half a character long. In these units, each has its line's place and its own on that line.
        across, down = set(), set()
        for row in range(ROWS):
            for column in range(COLUMNS):
                up, right, below, left = BOXES.get(screen.buffer[row][column].data, "0000")
                across |= {(row, 2 * column + side) for side, stroke in enumerate((left, right)) if stroke == weight}
                down |= {(column, 2 * row + side) for side, stroke in enumerate((up, below)) if stroke == weight}
        path = [f"M{_x(start / 2)} {_y(row + 0.5)}H{_x(end / 2)}" for row, start, end in _joined(across)]
        path += [f"M{_x(column + 0.5)} {_y(start / 2)}V{_y(end / 2)}" for column, start, end in _joined(down)]
        yield f'<path stroke-width="{weight}" d="{"".join(path)}"/>'


def _joined(strokes: set[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Each line of adjacent strokes: its place, its start and its end."""
    for place, start in sorted(strokes):
        if (place, start - 1) not in strokes:
            end = next(end for end in count(start) if (place, end) not in strokes)
            yield place, start, end


def _x(column: float) -> str:
    return f"{MARGIN + column * WIDTH:g}"


def _y(row: float) -> str:
    return f"{BAR + MARGIN + row * HEIGHT:g}"


def draw_terminal(frames: list[list[str | Run]]) -> str:
    """Return the SVG. What all frames have in common is drawn once."""
    common = [part for part in frames[0] if all(part in frame for frame in frames)]
    width, height = 2 * MARGIN + COLUMNS * WIDTH, BAR + 2 * MARGIN + ROWS * HEIGHT
    total = len(frames) * FRAME_SECONDS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="finx-streamer demo: live prices of a simulated market in a terminal">',
        f"<style>{STYLE % {'total': f'{total:g}', 'share': f'{100 / len(frames):.4g}'}}</style>",
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" fill="#0d1117" stroke="#6e768166"/>',
        *(f'<circle cx="{22 + 20 * at}" cy="20" r="6" fill="{color}"/>' for at, color in enumerate(DOTS)),
        *map(_svg, common),
    ]
    for number, frame in enumerate(frames):
        parts.append(f'<g class="f" style="animation-delay:{number * FRAME_SECONDS - total:g}s">')
        parts += [_svg(part) for part in frame if part not in common]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _svg(part: str | Run) -> str:
    return part if isinstance(part, str) else part.svg()


NOTEBOOK = """
from finx_streamer import StreamListener
from finx_streamer.server import LocalServer, SimulatedMarket
PAIRS = ["BTC:USDC", "ETH:USDC", "SOL:USDC", "ETH:BTC"]
server = LocalServer(SimulatedMarket(PAIRS, rate=500.0, seed=3), keys={"demo"}).start()
listener = StreamListener(*PAIRS, endpoint=server.url, api_key="demo", name="portfolio")
"""
OPTIONS = """
from finx_streamer import Instrument, StreamListener
from finx_streamer.server import LocalServer, SimulatedMarket
market = SimulatedMarket(["BTC:USDC"], rate=500.0, seed=3, options=["BTC"])
server = LocalServer(market, keys={"demo"}).start()
expiries = {each.expiry for each in map(Instrument.parse, market.contracts) if each.strike}
months = {f"BTC{'FGHJKMNQUVXZ'[each.month - 1]}{each.year % 10}{each:%Y%m}" for each in expiries}
listener = StreamListener(*sorted(months), endpoint=server.url, api_key="demo", name="options")
"""
#: For a full chart, and for a full chain.
NOTEBOOK_SECONDS, OPTIONS_SECONDS = 65, 5


def photograph_notebook() -> None:
    """Save the live view and the snapshot of a listener to pairs."""
    codes = (NOTEBOOK, 'listener.live("BTC:USDC", "ETH:BTC")', "listener")
    _photograph(codes, NOTEBOOK_SECONDS, {"live": ".finx", "snapshot": ".jp-OutputArea-output > div:has(table)"})


def photograph_candles() -> None:
    """Save the live view with candles."""
    codes = (NOTEBOOK, 'listener.live("BTC:USDC", "ETH:BTC", bars="1s")', "pass")
    _photograph(codes, NOTEBOOK_SECONDS, {"candles": ".finx"})


def photograph_options() -> None:
    """Save the live view of a listener to options."""
    _photograph((OPTIONS, "listener.live()", "pass"), OPTIONS_SECONDS, {"options": ".finx"})


def _photograph(codes: tuple[str, str, str], seconds: int, wanted: dict[str, str]) -> None:
    """Run three cells in JupyterLab, wait before the last one, and save what these selectors find in both themes."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from tests.support.browser import Book, Lab, chromium

    cells = [new_code_cell(code.strip()) for code in codes]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, chromium() as browser:
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), lab.files / "picture.ipynb")
        page = browser.new_page(viewport={"width": 1400, "height": 1100}, device_scale_factor=1.5)
        book = Book(page, lab)
        book.open("picture.ipynb")
        book.run(0)
        book.run(1)
        page.wait_for_timeout(seconds * 1_000)
        book.run(2)
        for theme, name in (("JupyterLab Light", "light"), ("JupyterLab Dark", "dark")):
            page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
            page.wait_for_timeout(3_000)
            for what, shown in wanted.items():
                box = page.locator(shown).last.bounding_box()
                assert box is not None
                clip = {"x": box["x"] - 6, "y": box["y"] - 4, "width": box["width"] + 12, "height": box["height"] + 8}
                page.screenshot(path=IMAGES / f"{what}-{name}.png", clip=clip)
        page.close()


def draw_plot() -> None:
    """Run the cookbook's programs that save a plot."""
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text("utf-8"), re.DOTALL)
    for code in programs:
        if "savefig" in code:
            subprocess.run(
                [sys.executable, "-c", code], cwd=IMAGES, env=program_environment(MPLBACKEND="agg"), check=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choices = ["terminal", "plot", "notebook", "candles", "options"]
    parser.add_argument("pictures", nargs="*", choices=choices, default=choices)
    wanted = parser.parse_args().pictures
    if "terminal" in wanted:
        (IMAGES / "terminal.svg").write_text(draw_terminal(record_terminal()), encoding="utf-8")
    if "plot" in wanted:
        draw_plot()
    if not {"notebook", "candles", "options"} & {*wanted}:
        return
    if not shutil.which("chromium"):
        sys.exit("the notebook's pictures need chromium; on Debian, run apt install chromium")
    if "notebook" in wanted:
        photograph_notebook()
    if "candles" in wanted:
        photograph_candles()
    if "options" in wanted:
        photograph_options()


if __name__ == "__main__":
    main()
