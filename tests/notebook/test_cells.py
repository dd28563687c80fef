"""Output of callbacks in the right cell, and interrupts and shutdowns, in every supported kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kernels import SERVED, Kernel

LISTEN = """
from IPython.display import display, HTML
listener = StreamListener("BTC:USDC", **PLACE)
go, shown = threading.Event(), threading.Event()

@listener.on_tick
def show(tick):
    if go.is_set() and not shown.is_set():
        print("printed")
        display(HTML("<b>displayed</b>"))
        shown.set()

listener.start()
None
"""


@pytest.fixture(autouse=True)
def stop_all_afterwards(any_kernel: Kernel) -> object:
    """Each test finds a kernel without running listeners."""
    yield
    any_kernel.run("finx_streamer.stop_all()")


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_output_of_a_callback_goes_to_its_cell(any_kernel: Kernel, dispatch: str) -> None:
    """Printed and displayed output goes there, even while another cell runs."""
    registering = any_kernel.run(f"PLACE['dispatch'] = {dispatch!r}\n" + LISTEN)
    later = any_kernel.run("print('later')")
    running = any_kernel.run("go.set(); assert shown.wait(20); print('running')")
    any_kernel.wait(lambda: any_kernel.text(registering) and any_kernel.shown(registering), "output")
    assert any_kernel.text(registering) == "printed\n"
    assert [shown["text/html"] for shown in any_kernel.shown(registering)] == ["<b>displayed</b>"]
    assert (any_kernel.text(later), any_kernel.shown(later)) == ("later\n", [])
    assert (any_kernel.text(running), any_kernel.shown(running)) == ("running\n", [])


def test_several_cells_share_a_listener_and_keep_their_own_output(any_kernel: Kernel) -> None:
    """Each callback's output appears in the cell that registered it."""
    any_kernel.run("listener = StreamListener('BTC:USDC', **PLACE)")
    cells = []
    for number in range(3):
        cells.append(
            any_kernel.run(
                f"done_{number} = threading.Event()\n"
                f"def once_{number}(tick):\n"
                f"    if not done_{number}.is_set():\n"
                f"        print('from {number}'); done_{number}.set()\n"
                f"listener.on_tick(once_{number})\nNone"
            )
        )
    any_kernel.run("listener.start(); assert all(d.wait(20) for d in (done_0, done_1, done_2))")
    for number, cell in enumerate(cells):
        any_kernel.wait(lambda cell=cell: any_kernel.text(cell), "output")  # type: ignore[misc]
        assert any_kernel.text(cell) == f"from {number}\n"


def test_a_callback_error_is_shown_in_its_cell(any_kernel: Kernel) -> None:
    """The traceback has only the user's own lines, and appears the 1st and 10th time but not in between."""
    cell = any_kernel.run(
        "failing = StreamListener('BTC:USDC', **PLACE)\n"
        "calls, enough = 0, threading.Event()\n"
        "@failing.on_tick\n"
        "def broken(tick):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls > 12: enough.set()\n"
        "    raise ValueError('no such price')\n"
    )
    starting = any_kernel.run("failing.start(); assert enough.wait(20)")
    any_kernel.wait(lambda: "(10 times so far)" in any_kernel.text(cell, "stderr"), "the tenth")
    any_kernel.run("failing.stop()")
    shown = any_kernel.text(cell, "stderr")
    assert shown.count("Traceback") == 2
    assert shown.count("CallbackError: BTC:USDC: callback broken raised ValueError: no such price") == 2
    assert "in broken" in shown
    assert "finx_streamer/" not in shown
    assert any_kernel.text(starting, "stderr") == ""


def test_other_errors_are_shown_in_the_cell_that_started_the_listener(any_kernel: Kernel) -> None:
    """A rejected key would otherwise go unnoticed in a notebook."""
    any_kernel.run("refused = StreamListener('BTC:USDC', endpoint=server.url, api_key='wrong-key')")
    starting = any_kernel.run("refused.start()\nNone")
    any_kernel.wait(lambda: any_kernel.text(starting, "stderr"), "the error")
    assert "finx_streamer: AuthenticationError" in any_kernel.text(starting, "stderr")
    assert "wrong-key" not in any_kernel.text(starting, "stderr")


def test_errors_are_logged_where_logging_is_configured(any_kernel: Kernel) -> None:
    """They aren't shown in the cell as well."""
    any_kernel.run(
        "import logging\nrecords = []\n"
        "class Keep(logging.Handler):\n    def emit(self, record): records.append(record.getMessage())\n"
        "logging.getLogger().addHandler(keeper := Keep())\nenough = threading.Event()"
    )
    cell = any_kernel.run(
        "@(failing := StreamListener('BTC:USDC', **PLACE)).on_tick\n"
        "def broken(tick):\n    enough.set(); raise ValueError('to the log')\n"
        "failing.start()\nassert enough.wait(20)"
    )
    any_kernel.run("failing.stop(); logging.getLogger().removeHandler(keeper)")
    assert any_kernel.value("any('to the log' in record for record in records)") == "True"
    assert any_kernel.text(cell, "stderr") == ""


@pytest.mark.parametrize(
    "waiting",
    [
        "listener.join()",
        "for tick in listener: pass",
        "await listener.wait_async()",
        "async for tick in listener: pass",
        "async for tick in quiet: pass",
    ],
)
def test_an_interrupt_ends_a_waiting_cell(any_kernel: Kernel, waiting: str) -> None:
    """A listener that ran before keeps running."""
    any_kernel.run("listener = StreamListener('BTC:USDC', **PLACE).start()")
    any_kernel.run("quiet = StreamListener('ETH:USDC', **PLACE, exchanges=['NONE']).start()")
    cell = any_kernel.begin(f"print('begun')\n{waiting}")
    any_kernel.wait(lambda: "begun" in any_kernel.text(cell), "begun")
    any_kernel.interrupt()
    any_kernel.wait_idle(cell)
    [error] = any_kernel.errors(cell)
    assert "KeyboardInterrupt" in error or "CancelledError" in error
    assert any_kernel.value("[l.state.ended for l in (listener, quiet)]") == "[False, False]"


@pytest.mark.parametrize("dispatch", ["thread", "inline"])
def test_a_kernel_with_running_listeners_shuts_down_cleanly(version_path: Path | None, dispatch: str) -> None:
    """It exits on request and doesn't have to be killed."""
    with Kernel(version_path) as kernel:
        kernel.run(SERVED + f"PLACE['dispatch'] = {dispatch!r}\n")
        kernel.run("listener = StreamListener('BTC:USDC', on_tick=lambda tick: time.sleep(0.01), **PLACE).start()")
        kernel.run("listener.live()")
        assert kernel.shut_down() == 0
