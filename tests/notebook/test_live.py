"""The live view in real kernels. The tests play the part of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kernels import OUR_THREADS, SERVED, Kernel, install

WIDGET = "application/vnd.jupyter.widget-view+json"
#: A server whose contracts a test plays.
OPTIONS = """
from tests.support.contracts import played_by_hand, ticker
NAMES = ["BTC-26AUG22-20000-C", "ETH-26AUG22-1500-P"]
options_server = LocalServer(played_by_hand(*NAMES), keys={"demo"}).start()
OPTIONS_PLACE = {"endpoint": options_server.url, "api_key": "demo"}
"""
EMIT = "options_server.wait_connected(2)\noptions_server.emit(*map(ticker, NAMES))"
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


def test_a_page_chooses_the_expiry(kernel: Kernel) -> None:
    """Its chain comes at once, as text only, and remains in the saved notebook. Other messages are ignored."""
    kernel.run(OPTIONS)
    cell = kernel.run("listener = StreamListener(*NAMES, **OPTIONS_PLACE)\nview = listener.live()\nview")
    widget = str(kernel.shown(cell)[0][WIDGET]["model_id"])  # type: ignore[index]
    kernel.send(widget, kind="hello", page="p")
    kernel.run(EMIT)

    def chosen() -> list[str]:
        messages = kernel.received(widget, "full") + kernel.received(widget, "frame")
        return [message["options"]["chosen"] for message in messages if "chosen" in message.get("options", {})]

    kernel.wait(chosen, "a chain")
    assert set(chosen()) == {"BTC-26AUG22"}
    for malformed in (None, 5, ["ETH-26AUG22"], "XXX"):
        kernel.send(widget, kind="expiry", page="p", expiry=malformed)
    kernel.send(widget, kind="expiry", page="p", expiry="ETH-26AUG22")
    kernel.wait(lambda: "ETH-26AUG22" in chosen(), "the other chain")
    kernel.run("view.close()")
    kernel.wait(lambda: any("options of ETH-26AUG22" in html for html in redisplayed(kernel, cell)), "the last picture")
    kernel.run("options_server.stop()")


def test_the_button_stops_the_listener(kernel: Kernel, widget: str) -> None:
    """The page gets an answer, and then the last state."""
    kernel.send(widget, kind="stop", page="p")
    kernel.wait(lambda: kernel.received(widget, "stopping"), "an answer")
    kernel.wait(lambda: kernel.received(widget, "full")[-1]["state"] == "stopped", "the last state")


def test_the_control_channel_stops_the_listener_while_a_cell_runs(kernel: Kernel, widget: str) -> None:
    """The cell waits for the listener's end, so it ends with the listener."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    kernel.control("finx_streamer_page", view=widget, message={"kind": "stop"})
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
    kernel.control("finx_streamer_page", view="unknown", message={"kind": "stop"})
    kernel.control("finx_streamer_page")
    assert kernel.value("listener.state.ended") == "False"


def test_a_page_gets_frames_while_a_cell_runs(kernel: Kernel, widget: str) -> None:
    """The kernel can't read the page's messages meanwhile."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    before = len(frames(kernel, widget))
    kernel.wait(lambda: len(frames(kernel, widget)) > before + 10, "frames")
    kernel.control("finx_streamer_page", view=widget, message={"kind": "stop"})
    kernel.wait_idle(cell)


def test_a_displayed_view_counts_as_seen_while_its_cell_runs(kernel: Kernel) -> None:
    """Its page can't answer yet, and gets the full state until it does."""
    cell = kernel.begin(f"listener = StreamListener('BTC:USDC', **PLACE)\ndisplay(listener.live())\n{BUSY}")
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    [shown] = kernel.shown(cell)
    widget = str(shown[WIDGET]["model_id"])  # type: ignore[index]
    kernel.wait(lambda: [f for f in kernel.received(widget, "full") if f["totals"]["ticks"]], "the full state")
    kernel.control("finx_streamer_page", view=widget, message={"kind": "hello", "page": "p", "n": 1})
    kernel.wait(lambda: frames(kernel, widget, "points"), "changes")
    kernel.control("finx_streamer_page", view=widget, message={"kind": "stop", "page": "p", "n": 2})
    kernel.wait_idle(cell)
    assert [m["n"] for m in kernel.received(widget, "heard")] == [1, 2]


def test_messages_are_received_while_a_cell_runs(kernel: Kernel, widget: str) -> None:
    """A page that can't reach the thread that runs cells repeats its messages. They count once, in order."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")

    def say(n: int, **message: Any) -> None:
        kernel.send(widget, page="p", n=n, **message)
        kernel.control("finx_streamer_page", view=widget, message={"page": "p", "n": n, **message})
        kernel.wait(lambda: [m for m in kernel.received(widget, "heard") if m["n"] == n], "an answer")

    say(1, kind="chart", pairs=["ETH:USDC"])
    kernel.wait(lambda: frames(kernel, widget, "pairs"), "the other chart")
    say(2, kind="hidden")
    before = len(frames(kernel, widget))
    say(3, kind="hidden")
    assert len(frames(kernel, widget)) <= before + 1
    say(4, kind="visible")
    kernel.wait(lambda: len(frames(kernel, widget)) > before + 5, "frames")
    say(5, kind="stop")
    kernel.wait_idle(cell)
    kernel.wait(lambda: len(kernel.received(widget, "heard")) == 10, "answers to the messages sent twice")
    assert len(frames(kernel, widget, "pairs")) == 1
    assert len(kernel.received(widget, "stopping")) == 1


@pytest.mark.parametrize("end", ["listener.stop()", "listener.stop(drain=False)", "view.close()"])
def test_a_page_gets_the_last_picture_after_the_end(kernel: Kernel, end: str) -> None:
    """Also one that says hello later. The picture says whether it is the listener's last one."""
    cell = kernel.run("listener = StreamListener('BTC:USDC', 'ETH:USDC', **PLACE)\nview = listener.live()\nview")
    widget = str(kernel.shown(cell)[0][WIDGET]["model_id"])  # type: ignore[index]
    kernel.run("while listener.stats.ticks < 20: time.sleep(0.01)")
    kernel.run(f"{end}\nview.close()")
    ended = "stop" in end
    for page in ("q", "r"):
        before = len(kernel.received(widget, "full"))
        kernel.send(widget, kind="hello", page=page)
        full = kernel.wait(lambda before=before: kernel.received(widget, "full")[before:], "the last picture")[-1]
        assert (full["state"], full["closed"]) == ("stopped" if ended else "streaming", True)
    if ended:
        assert full["totals"]["ticks"] == int(kernel.value("listener.stats.ticks"))
    kernel.send(widget, kind="chart", page="r", pairs=["ETH:USDC"])
    kernel.wait(lambda: frames(kernel, widget, "pairs"), "the chosen chart")


def test_the_last_picture_is_read_after_the_end(kernel: Kernel) -> None:
    """Callbacks run on for a while after `stop` was called, and their ticks count."""
    cell = kernel.run(
        """
listener = StreamListener("BTC:USDC", **PLACE)
@listener.on_tick
def slow(tick): time.sleep(0.02)
listener.live()"""
    )
    widget = str(kernel.shown(cell)[0][WIDGET]["model_id"])  # type: ignore[index]
    kernel.run("while listener.stats.queue_depth < 20: time.sleep(0.01)")
    last = kernel.run("listener.stop()\nprint(listener.stats.ticks)")
    # A front end like nbclient reads only messages of the running cell.
    updates = [m["content"]["data"]["state"]["saved"] for m in kernel.messages[last] if m["msg_type"] == "comm_msg"
               and m["content"]["comm_id"] == widget and "saved" in m["content"]["data"].get("state", {})]  # fmt: skip
    assert updates[-1]["state"] == "stopped"
    assert updates[-1]["totals"]["ticks"] == int(kernel.text(last))


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
