"""The live view in real kernels, with the test in the place of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.notebook.kernels import OUR_THREADS, Kernel

WIDGET = "application/vnd.jupyter.widget-view+json"
#: A cell that keeps the kernel busy until a file is there.
BUSY = "import os\nprint('begun')\nwhile not listener.state.ended: time.sleep(0.01)"


@pytest.fixture
def kernel(any_kernel: Kernel) -> Iterator[Kernel]:
    """A kernel of each version: they differ in what a thread may send."""
    yield any_kernel
    any_kernel.run("finx_streamer.stop_all()")


@pytest.fixture
def model(kernel: Kernel) -> str:
    """The model of a live view, whose page has just said hello."""
    return opened(kernel)


def opened(kernel: Kernel, rest: str = "") -> str:
    cell = kernel.run(f"listener = StreamListener('BTC:USDC', 'ETH:USDC', **PLACE)\nlistener.live({rest})")
    [shown] = kernel.shown(cell)
    model = str(shown[WIDGET]["model_id"])  # type: ignore[index]
    kernel.say(model, kind="hello", page="p")
    kernel.wait(lambda: kernel.heard(model, "full"), "a full picture")
    return model


def frames(kernel: Kernel, model: str, key: str = "rows") -> list[dict[str, Any]]:
    return [frame for frame in kernel.heard(model, "frame") if frame.get(key)]


def redisplayed(kernel: Kernel, cell: str) -> list[str]:
    """The pictures that have taken the place of what was displayed by a cell."""
    [place] = [m["content"]["transient"] for m in kernel.messages[cell] if m["msg_type"] == "display_data"]
    found = [m["content"] for of_cell in tuple(kernel.messages.values()) for m in tuple(of_cell) if "content" in m]
    return [c["data"]["text/html"] for c in found if c.get("transient") == place][1:]


def test_a_view_starts_its_listener_and_shows_it(kernel: Kernel) -> None:
    """As a widget; and as a picture for those that have none, which stays in an exported notebook."""
    cell = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
    [shown] = kernel.shown(cell)
    assert {WIDGET, "text/html", "text/plain"} == set(shown)
    assert "BTC:USDC" in shown["text/html"]
    assert "<script" not in shown["text/html"]
    assert kernel.value("listener.state.ended") == "False"
    kernel.run("listener.stop()")
    kernel.wait(lambda: any("stopped" in html for html in redisplayed(kernel, cell)), "the picture that stays")


def test_frames_come_while_a_page_looks(kernel: Kernel, model: str) -> None:
    """With the last prices, the chart's points, and the counters."""
    kernel.wait(lambda: len(frames(kernel, model)) > 10, "frames")
    kernel.wait(lambda: frames(kernel, model, "points"), "points")
    counted = kernel.wait(lambda: [f for f in frames(kernel, model, "sums") if f["state"] == "streaming"], "counters")
    assert len(counted[-1]["streams"]) == 2
    assert [pair for frame in frames(kernel, model, "points")[:1] for pair in frame["points"]] == ["BTC:USDC"]


def test_nothing_is_sent_while_no_page_looks(kernel: Kernel, model: str) -> None:
    """Neither before a page has said hello, nor after it went away; and the past is there when it comes back."""
    kernel.wait(lambda: frames(kernel, model), "frames")
    kernel.say(model, kind="away", page="p")
    kernel.wait_idle(kernel.begin("view_quiet = True"))
    # One frame may have been on its way.
    before = len(kernel.comms)
    kernel.run("position = listener._recent.total\nwhile listener._recent.total < position + 100: time.sleep(0.01)")
    assert len(kernel.comms) <= before + 1
    pictures = len(kernel.heard(model, "full"))
    kernel.say(model, kind="look", page="p")
    full = kernel.wait(lambda: kernel.heard(model, "full")[pictures:], "a full picture")[0]
    assert full["charts"]["BTC:USDC"]["x"]


def test_a_page_that_is_loaded_again_gets_the_history(kernel: Kernel, model: str) -> None:
    """All of the chart, as it was."""
    kernel.wait(lambda: len(frames(kernel, model, "points")) > 10, "points")
    pictures = len(kernel.heard(model, "full"))
    kernel.say(model, kind="hello", page="q")
    full = kernel.wait(lambda: kernel.heard(model, "full")[pictures:], "a full picture")[0]
    first = kernel.heard(model, "full")[0]["charts"]["BTC:USDC"]
    again = full["charts"]["BTC:USDC"]
    assert len(again["x"]) >= len(first["x"])
    assert first["x"] == again["x"][: len(first["x"])]


def test_a_page_chooses_what_is_charted(kernel: Kernel, model: str) -> None:
    """Pairs that are listened to; nonsense is left out."""
    kernel.say(model, kind="chart", page="p", pairs=["ETH:USDC", "XXX:YYY"])
    kernel.wait(lambda: list(kernel.heard(model, "full")[-1]["charts"]) == ["ETH:USDC"], "the other chart")
    for nonsense in ("ETH:USDC", [1], None, {}):
        kernel.say(model, kind="chart", page="p", pairs=nonsense)
    kernel.say(model, kind=None)
    kernel.say(model, kind="chart", page="p", pairs=["BTC:USDC"])
    kernel.wait(lambda: list(kernel.heard(model, "full")[-1]["charts"]) == ["BTC:USDC"], "the first chart")


def test_the_button_stops_the_listener(kernel: Kernel, model: str) -> None:
    """It is answered, and then the last picture comes."""
    kernel.say(model, kind="stop", page="p")
    kernel.wait(lambda: kernel.heard(model, "stopping"), "an answer")
    kernel.wait(lambda: kernel.heard(model, "full")[-1]["state"] == "stopped", "the last picture")


def test_the_control_channel_stops_it_while_a_cell_is_running(kernel: Kernel, model: str) -> None:
    """Which would not end otherwise: it waits for the listener's end."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    kernel.control("finx_streamer_stop", view=model)
    kernel.wait(lambda: kernel.heard(model, "stopping"), "an answer")
    kernel.wait_idle(cell)
    assert kernel.errors(cell) == []


def test_a_view_goes_on_when_its_listener_is_started_again(kernel: Kernel, model: str) -> None:
    """It was told of the end, and is told of the new beginning."""
    kernel.run("listener.stop()")
    kernel.wait(lambda: kernel.heard(model, "full")[-1]["state"] == "stopped", "the last picture")
    before = len(frames(kernel, model))
    kernel.run("listener.start()")
    kernel.say(model, kind="look", page="p")
    kernel.wait(lambda: len(frames(kernel, model)) > before + 5, "frames")


def test_a_kernel_hears_a_talkative_page(kernel: Kernel, model: str) -> None:
    """Whose messages come just when replies are sent: some versions would hear nothing more from then on."""
    for _ in range(50):
        cell = kernel.begin("1")
        for _ in range(20):
            kernel.say(model, kind="look", page="p")
        kernel.wait_idle(cell)


def test_an_unknown_view_stops_nothing(kernel: Kernel, model: str) -> None:
    """Whatever the message has in it."""
    kernel.control("finx_streamer_stop", view="nobody")
    kernel.control("finx_streamer_stop")
    assert kernel.value("listener.state.ended") == "False"


def test_frames_come_while_a_cell_is_running(kernel: Kernel, model: str) -> None:
    """The kernel can't hear the page then, and draws all the same."""
    cell = kernel.begin(BUSY)
    kernel.wait(lambda: "begun" in kernel.text(cell), "begun")
    before = len(frames(kernel, model))
    kernel.wait(lambda: len(frames(kernel, model)) > before + 10, "frames")
    kernel.control("finx_streamer_stop", view=model)
    kernel.wait_idle(cell)


def test_a_rerun_closes_the_earlier_view(kernel: Kernel) -> None:
    """And its thread."""
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE).start()")
    code = "view = listener.live()\nview"
    kernel.run(code, cell="live")
    threads = kernel.value(OUR_THREADS)
    kernel.run("earlier = view")
    kernel.run(code, cell="live")
    assert kernel.value("(earlier._thread.is_alive(), view._thread.is_alive())") == "(False, True)"
    assert threads == kernel.value(OUR_THREADS)
    kernel.run("view.close()")
    assert kernel.value("view._thread.is_alive()") == "False"


def test_without_the_extra_a_table_is_shown(kernel: Kernel) -> None:
    """It moves, ends with its listener, and says what to install for more."""
    kernel.run("import sys\nsys.modules.pop('finx_streamer.notebook.widget', None)\nsys.modules['anywidget'] = None")
    try:
        cell = kernel.run("listener = StreamListener('BTC:USDC', **PLACE)\nlistener.live()")
        kernel.wait(lambda: len(redisplayed(kernel, cell)) > 2, "updates")
        kernel.run("listener.stop()")
        kernel.wait(lambda: "stopped" in redisplayed(kernel, cell)[-1], "the last picture")
    finally:
        kernel.run("del sys.modules['anywidget']")
    assert WIDGET not in kernel.shown(cell)[0]
    assert 'pip install "finx-streamer[notebook]"' in redisplayed(kernel, cell)[-1]


def test_prices_of_any_kind(kernel: Kernel) -> None:
    """Decimals and texts are shown as they are."""
    kernel.run("from decimal import Decimal")
    for kind in ("Decimal", "str"):
        cell = kernel.run(f"listener = StreamListener('BTC:USDC', parse_price={kind}, **PLACE)\nlistener.live()")
        model = str(kernel.shown(cell)[0][WIDGET]["model_id"])  # type: ignore[index]
        kernel.say(model, kind="hello", page="p")
        kernel.wait(lambda model=model: frames(kernel, model, "points"), "points")  # type: ignore[misc]
