"""Every notebook of the docs runs to its end, without a key and without a network."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

from tests.support.kernels import ROOT, SERVED

#: A listener with a live view, and ways to end it in another cell.
LIVE = """
listener = StreamListener("BTC:USDC", "ETH:USDC", **PLACE)
view = listener.live()
view
"""
ENDS = (
    "listener.join(timeout=0.3)\nlistener.stop()",
    "listener.join(timeout=0.2)\nlistener.stop()\nview.close()",
    "threading.Timer(0.2, listener.stop).start()\nlistener.join()",
    "with listener: time.sleep(0.1)",
)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a key, in which kernels import this checkout."""
    monkeypatch.delenv("FINX_API_KEY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that is closed at the end. nbclient leaves its own one open."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


def executed(path: Path, folder: Path, loop: asyncio.AbstractEventLoop) -> Any:
    """Run a notebook and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=50, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        return loop.run_until_complete(client.async_execute())
    finally:
        if client.km is not None:
            client.km.context.destroy(linger=0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.stem))
def test_notebook(path: Path, tmp_path: Path, environment: None, loop: asyncio.AbstractEventLoop) -> None:
    """No cell fails, and the exported HTML shows the last state of its listeners."""
    check(path, executed(path, tmp_path, loop))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.stem))
def test_notebook_with_papermill(path: Path, tmp_path: Path, environment: None) -> None:
    """It leaves the same notebook as nbclient."""
    output = tmp_path / "output.ipynb"
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--cwd", str(tmp_path), "--no-progress-bar"]
    ended = subprocess.run([*command, str(path), str(output)], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    check(path, nbformat.read(output, as_version=4))


def check(path: Path, notebook: Any) -> None:
    """Check the outputs of an executed notebook."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.output_type == "error"] == []
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    if path.stem == "first_ticks":
        assert printed.count("ether") == 3
    if path.stem == "errors_and_gaps":
        assert "filled: True" in printed
        assert "ended by AuthenticationError" in printed
        assert 1 <= printed.count("Traceback") <= 3
    if path.stem == "live_portfolio":
        assert "finx-streamer listener" in page
        views = [o.data for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
        assert ["stopped" in view["text/html"] for view in views] == [True]
        assert "<polyline" in views[0]["text/html"]
    if path.stem == "greeks_live":
        tables = [str(o.data.get("text/html")) for o in outputs if "data" in o]
        # That of the view, and that of the listener.
        assert ["stopped" in table for table in tables if "implied volatility at the money: BTC-" in table] == [
            True
        ] * 2
        found = re.search(r"without the hedge: ([\d,]+) USD, with it: ([\d,]+) USD", printed)
        assert found is not None, printed
        assert int(found[2].replace(",", "")) < int(found[1].replace(",", ""))


@pytest.mark.parametrize("rounds", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_the_last_picture(rounds: int, tmp_path: Path, environment: None, loop: asyncio.AbstractEventLoop) -> None:
    """What nbclient saves after a listener's end is the end: its state and all its ticks."""
    cells = [new_code_cell(SERVED)]
    for number in range(rounds):
        cells += [new_code_cell(code) for code in (LIVE, ENDS[number % len(ENDS)], "print(listener.stats.ticks)")]
    path = tmp_path / "ends.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    notebook = executed(path, tmp_path, loop)
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    seen = []
    for live, ticks in zip(notebook.cells[1::3], notebook.cells[3::3], strict=True):
        [shown] = [o.data for o in live.outputs if "data" in o]
        saved = widgets[shown["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]["saved"]
        seen.append(
            (saved["state"], saved["totals"]["ticks"] - int(ticks.outputs[0].text), "stopped" in shown["text/html"])
        )
    assert seen == [("stopped", 0, True)] * rounds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.stem))
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    """Readers see only output of their own runs."""
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.id for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_documented_notebooks_exist() -> None:
    """The docs list six notebooks."""
    names = ["errors_and_gaps", "first_ticks", "greeks_live", "history_research", "live_portfolio"]
    names += ["recording_backtest"]
    assert [path.stem for path in NOTEBOOKS] == names
