"""A real JupyterLab, and its pages in Debian's Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from tests.support.kernels import PATIENCE, ROOT

CHROMIUM = shutil.which("chromium") or ""
TOKEN = "for-tests"
_IDLE = """() => {
    const session = window.jupyterapp.shell.currentWidget?.sessionContext?.session;
    return session?.kernel?.status === "idle" && session.kernel.connectionStatus === "connected";
}"""

#: What each chart of a live view shows. Labels of axes are drawn on a canvas, so they are read from the plot.
_CHARTS = """() => Object.fromEntries([...document.querySelector('.finx').finxCharts].map(([pair, chart]) => {
    const { plot, data, box } = chart;
    const place = (row) => 1e4 * row.offsetTop + row.offsetLeft;
    const rows = [...box.querySelectorAll('.u-legend .u-series:not(.time)')].sort((a, b) => place(a) - place(b));
    const name = (row) => row.querySelector('.u-label').textContent;
    const line = (row) => {
        const { borderTopStyle, borderTopColor } = getComputedStyle(row.querySelector('.u-marker'));
        return `${borderTopStyle} ${borderTopColor}`;
    };
    return [pair, {
        legend: Object.fromEntries(rows.map((row) => [name(row), row.querySelector('.u-value').textContent])),
        lines: Object.fromEntries(rows.map((row) => [name(row), line(row)])),
        labels: plot.axes.map((axis) => axis._values ?? []), places: plot.axes.map((axis) => axis._splits ?? []),
        first: data[0][0], shown: [plot.scales.x.min, plot.scales.x.max], width: plot.width, top: box.offsetTop,
    }];
}))"""


class Lab:
    """A JupyterLab server with its own folder for files, settings and kernels."""

    def __init__(self, folder: Path, kernel_path: Path | None = None) -> None:
        paths = [str(ROOT)] if kernel_path is None else [str(kernel_path), str(ROOT)]
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir()
        own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
        self._environment = {
            **os.environ, **own, "JUPYTER_DATA_DIR": str(folder / "data"), "PYTHONPATH": os.pathsep.join(paths),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }  # fmt: skip
        self._environment.pop("FINX_API_KEY", None)
        # Don't ask whether to fetch news: the dialog would cover the page.
        settings = folder / "jupyter_config_dir" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}', encoding="utf-8")

    def __enter__(self) -> Self:
        options = {
            "ip": "127.0.0.1", "port": 0, "ServerApp.root_dir": str(self.files), "IdentityProvider.token": TOKEN,
            "LabApp.expose_app_in_browser": True, "LabApp.news_url": None, "KernelManager.shutdown_wait_time": 5,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }  # fmt: skip
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            command,
            env=self._environment,
            cwd=self.folder,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.log: list[str] = []
        found = threading.Event()
        self.url = ""

        def read() -> None:
            assert self._process.stderr is not None
            for line in self._process.stderr:
                self.log.append(line)
                if not self.url and (match := re.search(r"(http://127\.0\.0\.1:\d+)/lab", line)):
                    self.url = match[1]
                    found.set()

        self._reader = threading.Thread(target=read)
        self._reader.start()
        assert found.wait(PATIENCE), "".join(self.log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def kernels(self) -> list[dict[str, Any]]:
        """Return the server's list of kernels."""
        return list(json.loads(self._ask("GET", "kernels")))

    def end_kernels(self, others: set[str]) -> None:
        """End all kernels but the others, so that they don't slow down the next test."""
        for kernel in self.kernels():
            if kernel["id"] not in others:
                self._ask("DELETE", f"kernels/{kernel['id']}")

    def _ask(self, method: str, what: str) -> bytes:
        headers = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(f"{self.url}/api/{what}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return bytes(answer.read())


class Book:
    """A notebook in a page."""

    def __init__(self, page: Page, lab: Lab) -> None:
        self.page = page
        self._lab = lab
        self.errors: list[str] = []
        #: Requests to other machines.
        self.foreign_requests: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._requested(request.url))
        page.on("websocket", lambda socket: self._requested(socket.url))

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _requested(self, url: str) -> None:
        if not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:", url):
            self.foreign_requests.append(url)

    def open(self, name: str) -> None:
        self.page.goto(f"{self._lab.url}/lab/tree/{name}?reset&token={TOKEN}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.wait_idle()

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until the session of the visible notebook reports an idle kernel."""
        self.page.wait_for_function(_IDLE, timeout=PATIENCE * 1000)

    def command(self, name: str) -> None:
        """Run a command of JupyterLab, and wait for its end."""
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def start(self, name: str) -> None:
        """Run a command of JupyterLab without waiting."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def begin(self, number: int) -> None:
        """Run a cell without waiting."""
        self.page.evaluate(
            """number => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = number;
                notebook.deselectAll();
                window.jupyterapp.commands.execute("notebook:run-cell");
            }""",
            number,
        )

    def run(self, number: int) -> None:
        """Run a cell, and wait for its end."""
        before = self.count(number)
        self.begin(number)
        self.page.wait_for_function(
            f"""() => {{
                const cell = window.jupyterapp.shell.currentWidget.content.widgets[{number}];
                return cell.model.executionCount !== null && cell.model.executionCount !== {json.dumps(before)}
                    && cell.model.executionState !== "running";
            }}""",
            timeout=PATIENCE * 1000,
        )
        self.wait_idle()

    def execute(self, number: int, code: str) -> None:
        """Replace the code of a cell, and run it."""
        cell = "window.jupyterapp.shell.currentWidget.content.widgets[n]"
        self.page.evaluate(f"([n, code]) => {{ {cell}.model.sharedModel.setSource(code); }}", [number, code])
        self.run(number)

    def count(self, number: int) -> int | None:
        script = "n => window.jupyterapp.shell.currentWidget.content.widgets[n].model.executionCount"
        found: int | None = self.page.evaluate(script, number)
        return found

    def output(self, number: int) -> str:
        """Return the text of a cell's output."""
        script = """n => window.jupyterapp.shell.currentWidget.content.widgets[n].outputArea?.node.innerText ?? "" """
        return str(self.page.evaluate(script, number))

    def wait_output(self, number: int, text: str) -> None:
        """Wait until a cell's output has this text. The page may draw it later than the kernel becomes idle."""
        script = """([n, text]) => window.jupyterapp.shell.currentWidget.content.widgets[n]
            .outputArea?.node.innerText.includes(text)"""
        self.wait(script, [number, text])

    def wait(self, script: str, argument: Any = None) -> None:
        """Wait until a script returns something true in the page."""
        try:
            self.page.wait_for_function(script, arg=argument, timeout=PATIENCE * 1000)
        except TimeoutError as error:
            seen = self.page.evaluate("() => document.querySelector('.jp-Notebook')?.innerText")
            raise AssertionError(f"timed out: {script}\n{self.errors}\n{seen}") from error

    def charts(self) -> dict[str, dict[str, Any]]:
        """Return what the charts of the live view show, by pair."""
        found: dict[str, dict[str, Any]] = self.page.evaluate(_CHARTS)
        return found

    def wait_view(self, number: int, state: str) -> dict[str, Any]:
        """Wait until the live view below a cell shows this state. Return what it shows."""
        cell = "window.jupyterapp.shell.currentWidget.content.widgets[n]"
        self.page.evaluate(f"n => {cell}.node.scrollIntoView()", number)
        shown = f"{cell}.node.querySelector('.finx header .light')?.textContent"
        self.wait(f"([n, state]) => {shown} === state", [number, state])
        script = f"""n => {{
            const text = (name) => {cell}.node.querySelector(`.finx ${{name}}`).textContent;
            const lights = [...{cell}.node.querySelectorAll('.finx tbody .light')].map((it) => it.dataset.state);
            return {{ header: text('header .light'), note: text('header .note'), totals: text('.totals'), lights }};
        }}"""
        found: dict[str, Any] = self.page.evaluate(script, number)
        return found

    def meter(self) -> dict[str, Any]:
        """Return the measurements of the live view."""
        found: dict[str, Any] = self.page.evaluate("() => document.querySelector('.finx').finxMeter")
        return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Launch Debian's browser, and not the one of Playwright."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, lab: Lab, width: int = 1200, height: int = 1000) -> Iterator[Book]:
    """Open an empty page of the lab."""
    page = browser.new_page(viewport={"width": width, "height": height})
    try:
        yield Book(page, lab)
    finally:
        page.close()
