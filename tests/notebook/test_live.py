"""The live view in real kernels. The tests play the part of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kernels import OUR_THREADS, SERVED, Kernel, install

WIDGET = "application/vnd.jupyter.widget-view+json"
#: A cell that keeps the kernel busy until the listener ends.
BUSY = "import os\nprint('begun')\nwhile not listener.state.ended: time.sleep(0.01)"


@pytest.fixture
def kernel(any_kernel: Kernel) -> Iterator[Kernel]:
    """A kernel of each version: they differ in what a thread may send."""
    yield any_kernel
    any_kernel.run("finx_streamer.stop_all()")


@pytest.fixture
def widget(kernel: Kernel) -> str:
    """The ID of a live view's widget, with one visible page."""
    return opened(kernel)


def opened(kernel: Kernel, arguments: str = "") -> str:
    """Create a listener and a live view, and open a page. Return the widget's ID."""
    cell = kernel.run(f"listener = StreamListener('BTC:USDC', 'ETH:USDC', **PLACE)\nlistener.live({arguments})")
    [shown] = kernel.shown(cell)
    widget = str(shown[WIDGET]["model_id"])  # type: ignore[index]
    kernel.send(widget, kind="hello", page="p")
    kernel.wait(lambda: kernel.received(widget, "full"), "the full state")
    return widget


def frames(kernel: Kernel, widget: str, key: str = "rows") -> list[dict[str, Any]]:
    """The frames that have something under this key."""
    return [frame for frame in kernel.received(widget, "frame") if frame.get(key)]


def redisplayed(kernel: Kernel, cell: str) -> list[str]:
    """The HTML that replaced a cell's displayed output, one for each update."""
    [place] = [m["content"]["transient"] for m in kernel.messages[cell] if m["msg_type"] == "display_data"]
    found = [m["content"] for of_cell in tuple(kernel.messages.values()) for m in tuple(of_cell) if "content" in m]
    return [c["data"]["text/html"] for c in found if c.get("transient") == place][1:]


def test_a_view_starts_and_shows_its_listener(kernel: Kernel) -> None:
    """It displays a widget, and static HTML for front ends without widgets and for exported notebooks."""
    cell = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
    [shown] = kernel.shown(cell)
    assert set(shown) == {WIDGET, "text/html", "text/plain"}
    assert "BTC:USDC" in shown["text/html"]
    assert "<script" not in shown["text/html"]
    assert kernel.value("listener.state.ended") == "False"
    kernel.run("listener.stop()")
    kernel.wait(lambda: any("stopped" in html for html in redisplayed(kernel, cell)), "the last update")


def test_a_visible_page_gets_frames(kernel: Kernel, widget: str) -> None:
    """Frames have the last prices, the chart's points and the counters."""
    kernel.wait(lambda: len(frames(kernel, widget)) > 10, "frames")
    kernel.wait(lambda: frames(kernel, widget, "points"), "points")
    counted = kernel.wait(lambda: [f for f in frames(kernel, widget, "totals") if f["state"] == "streaming"], "totals")
    assert len(counted[-1]["streams"]) == 2
    assert [pair for frame in frames(kernel, widget, "points")[:1] for pair in frame["points"]] == ["BTC:USDC"]


def test_a_hidden_page_gets_nothing(kernel: Kernel, widget: str) -> None:
    """When the page becomes visible again, it gets the full state with the history."""
    kernel.wait(lambda: frames(kernel, widget), "frames")
    kernel.send(widget, kind="hidden", page="p")
    kernel.run("view_quiet = True")
    # One frame may have been on its way.
    before = len(kernel.comms)
    kernel.run("position = listener._recent.total\nwhile listener._recent.total < position + 100: time.sleep(0.01)")
    assert len(kernel.comms) <= before + 1
    full_states = len(kernel.received(widget, "full"))
    kernel.send(widget, kind="visible", page="p")
    full = kernel.wait(lambda: kernel.received(widget, "full")[full_states:], "the full state")[0]
    assert full["charts"]["BTC:USDC"]["x"]


def test_a_reloaded_page_gets_the_history(kernel: Kernel, widget: str) -> None:
    """The chart starts where it started before."""
    kernel.wait(lambda: len(frames(kernel, widget, "points")) > 10, "points")
    full_states = len(kernel.received(widget, "full"))
    kernel.send(widget, kind="hello", page="q")
    full = kernel.wait(lambda: kernel.received(widget, "full")[full_states:], "the full state")[0]
    first = kernel.received(widget, "full")[0]["charts"]["BTC:USDC"]
    again = full["charts"]["BTC:USDC"]
    assert len(again["x"]) >= len(first["x"])
    assert again["x"][: len(first["x"])] == first["x"]


def test_a_page_chooses_the_charts(kernel: Kernel, widget: str) -> None:
    """Unknown pairs and malformed messages are ignored."""
    kernel.send(widget, kind="chart", page="p", pairs=["ETH:USDC", "XXX:YYY"])
    [chosen] = kernel.wait(lambda: frames(kernel, widget, "pairs"), "the other chart")
    assert (chosen["pairs"], list(chosen["new_charts"])) == (["ETH:USDC"], ["ETH:USDC"])
    for malformed in ("ETH:USDC", [1], None, {}):
        kernel.send(widget, kind="chart", page="p", pairs=malformed)
    kernel.send(widget, kind=None)
    kernel.send(widget, kind="chart", page="p", pairs=["BTC:USDC"])
    kernel.wait(lambda: frames(kernel, widget, "pairs")[-1]["pairs"] == ["BTC:USDC"], "the first chart")
    assert len(frames(kernel, widget, "pairs")) == 2


def test_the_button_stops_the_listener(kernel: Kernel, widget: str) -> None:
    """The page gets an answer, and then the last state."""
    kernel.send(widget, kind="stop", page="p")
    kernel.wait(lambda: kernel.received(widget, "stopping"), "an answer")
    kernel.wait(lambda: kernel.received(widget, "full")[-1]["state"] == "stopped", "the last state")


def test_the_control_channel_stops_the_listener_while_a_cell_runs(kernel: Kernel, widget: str) -> None:
    """The cell waits for the listener's end, so it ends with the listener."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    kernel.control("finx_streamer_stop", view=widget)
    kernel.wait(lambda: kernel.received(widget, "stopping"), "an answer")
    kernel.wait_idle(cell)
    assert kernel.errors(cell) == []


def test_a_view_continues_when_its_listener_starts_again(kernel: Kernel, widget: str) -> None:
    """The view is notified of the end and of the new start."""
    kernel.run("listener.stop()")
    kernel.wait(lambda: kernel.received(widget, "full")[-1]["state"] == "stopped", "the last state")
    before = len(frames(kernel, widget))
    kernel.run("listener.start()")
    kernel.send(widget, kind="visible", page="p")
    kernel.wait(lambda: len(frames(kernel, widget)) > before + 5, "frames")


def test_a_kernel_reads_every_message_of_a_busy_page(kernel: Kernel, widget: str) -> None:
    """Messages that arrive while replies are sent would stop the kernel versions that the extra excludes."""
    for _ in range(50):
        cell = kernel.begin("1")
        for _ in range(20):
            kernel.send(widget, kind="visible", page="p")
        kernel.wait_idle(cell)


def test_warns_once_about_a_kernel_that_may_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first live view warns and names the version; the second one doesn't."""
    with Kernel(install(["ipykernel==7.3.0"], tmp_path_factory.mktemp("ipykernel"))) as kernel:
        kernel.run(SERVED)
        first = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
        second = kernel.run("listener.live()")
        kernel.run("listener.stop()")
        assert "RuntimeWarning: ipykernel 7.3.0 can stop responding" in kernel.text(first, "stderr")
        assert kernel.text(second, "stderr") == ""


def test_does_not_warn_about_a_fixed_kernel(kernel: Kernel) -> None:
    """Versions that the extra allows cause no warning."""
    cell = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
    assert kernel.text(cell, "stderr") == ""


def test_a_stop_for_an_unknown_view_does_nothing(kernel: Kernel, widget: str) -> None:
    """The content of the message doesn't matter."""
    kernel.control("finx_streamer_stop", view="unknown")
    kernel.control("finx_streamer_stop")
    assert kernel.value("listener.state.ended") == "False"


def test_a_page_gets_frames_while_a_cell_runs(kernel: Kernel, widget: str) -> None:
    """The kernel can't read the page's messages meanwhile."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    before = len(frames(kernel, widget))
    kernel.wait(lambda: len(frames(kernel, widget)) > before + 10, "frames")
    kernel.control("finx_streamer_stop", view=widget)
    kernel.wait_idle(cell)


def test_a_rerun_closes_the_earlier_view(kernel: Kernel) -> None:
    """The earlier view's thread ends."""
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE).start()")
    code = "view = listener.live()\nview"
    kernel.run(code, cell="live")
    threads = kernel.value(OUR_THREADS)
    kernel.run("earlier = view")
    kernel.run(code, cell="live")
    assert kernel.value("(earlier._thread.is_alive(), view._thread.is_alive())") == "(False, True)"
    assert kernel.value(OUR_THREADS) == threads
    kernel.run("view.close()")
    assert kernel.value("view._thread.is_alive()") == "False"


def test_without_the_extra_a_table_is_shown(kernel: Kernel) -> None:
    """The table updates itself until its listener ends, and says what to install for more."""
    kernel.run("import sys\nsys.modules.pop('finx_streamer.notebook.widget', None)\nsys.modules['anywidget'] = None")
    try:
        cell = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
        kernel.wait(lambda: len(redisplayed(kernel, cell)) > 2, "updates")
        kernel.run("listener.stop()")
        kernel.wait(lambda: "stopped" in redisplayed(kernel, cell)[-1], "the last update")
    finally:
        kernel.run("del sys.modules['anywidget']")
    assert WIDGET not in kernel.shown(cell)[0]
    assert 'pip install "finx-streamer[notebook]"' in redisplayed(kernel, cell)[-1]


def test_draws_prices_of_other_types(kernel: Kernel) -> None:
    """Decimal and str prices are drawn like floats."""
    kernel.run("from decimal import Decimal")
    for kind in ("Decimal", "str"):
        cell = kernel.run(f"listener = StreamListener('BTC:USDC', parse_price={kind}, **PLACE)\nlistener.live()")
        widget = str(kernel.shown(cell)[0][WIDGET]["model_id"])  # type: ignore[index]
        kernel.send(widget, kind="hello", page="p")
        kernel.wait(lambda widget=widget: frames(kernel, widget, "points"), "points")  # type: ignore[misc]
