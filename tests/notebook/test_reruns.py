"""Reruns of a cell replace the listeners and callbacks of its earlier run. Scripts are unaffected."""

from __future__ import annotations

import threading

import pytest

from finx_streamer import StreamListener, listeners, stop_all
from tests.support.kernels import OUR_THREADS, Kernel
from tests.support.peers import PAIR, Peer, Seen, stay, ticks


@pytest.mark.parametrize("name", ["", ", name='mine'"])
@pytest.mark.parametrize("last", ["None", "listener", "listener.live()"])
def test_a_rerun_leaves_one_listener(kernel: Kernel, name: str, last: str) -> None:
    """The threads of the earlier listeners end, too."""
    code = f"listener = StreamListener('BTC:USDC', **PLACE{name}).start()\n{last}"
    kernel.run(code, cell="a")
    threads = kernel.value(OUR_THREADS)
    for _ in range(3):
        kernel.run(code, cell="a")
    assert kernel.value("finx_streamer.listeners() == [listener]") == "True"
    assert kernel.value(OUR_THREADS) == threads


def test_an_edited_cell_replaces_its_earlier_listener(kernel: Kernel) -> None:
    """The front end's ID of the cell stays the same."""
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE).start()", cell="b")
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE, queue_size=9).start()", cell="b")
    assert kernel.value("len(finx_streamer.listeners())") == "1"


def test_a_rerun_without_a_cell_id_leaves_one_listener(kernel: Kernel) -> None:
    """If the front end sends no ID, cells are identified by their code."""
    for _ in range(2):
        run = kernel.begin("listener = StreamListener('BTC:USDC', **PLACE).start()", cellId=None)
        kernel.wait_idle(run)
    assert kernel.value("len(finx_streamer.listeners())") == "1"


def test_unrelated_listeners_keep_running(kernel: Kernel) -> None:
    """Listeners from the same run, from other cells, and with other names or symbols replace nothing."""
    kernel.run("a, b = (StreamListener('BTC:USDC', **PLACE).start() for _ in range(2))", cell="c")
    kernel.run("c = StreamListener('BTC:USDC', **PLACE).start()", cell="d")
    kernel.run("d = StreamListener('BTC:USDC', **PLACE, name='d').start()", cell="d")
    kernel.run("e = StreamListener('ETH:USDC', **PLACE).start()", cell="c")
    assert kernel.value("finx_streamer.listeners() == [a, b, c, d, e]") == "True"


def test_the_earlier_callbacks_stop_before_the_new_ones_start(kernel: Kernel) -> None:
    """A replaced listener calls no callback any more."""
    code = (
        "def register(number):\n"
        "    called = globals()[f'called_{number}'] = threading.Event()\n"
        "    def note(tick):\n        order.append(number); called.set()\n"
        "    return StreamListener('BTC:USDC', on_tick=note, **PLACE).start()\n"
        "run = globals().get('run', 0) + 1\n"
        "listener = register(run)\nassert globals()[f'called_{run}'].wait(20)"
    )
    kernel.run("order = []\nrun = 0")
    kernel.run(code, cell="e")
    kernel.run(code, cell="e")
    assert kernel.value("order == sorted(order)") == "True"


@pytest.mark.parametrize(
    "code",
    [
        "@listener.on_tick\ndef show(tick):\n    count()",
        "listener.on_tick(lambda tick: count())\nNone",
        "def outer():\n    def show(tick):\n        count()\n    return show\nlistener.on_tick(outer())\nNone",
        "listener.on_tick(Counting().show)\nNone",
        "listener.on_tick(functools.partial(count_for, 1))\nNone",
    ],
)
def test_a_redefined_callback_replaces_the_earlier_one(kernel: Kernel, code: str) -> None:
    """Only the last definition is called."""
    kernel.run(
        "import functools\n"
        "listener = StreamListener('BTC:USDC', **PLACE)\n"
        "def count(): pass\n"
        "def count_for(number, tick): pass\n"
        "class Counting:\n    def show(self, tick): count()\n"
    )
    for _ in range(3):
        kernel.run(code, cell="f")
    assert kernel.value("len(listener._callbacks.of('tick'))") == "1"


def test_different_callbacks_are_kept(kernel: Kernel) -> None:
    """Other pairs, events, objects and lambdas don't replace each other, and each can be removed."""
    kernel.run(
        "listener = StreamListener('BTC:USDC', **PLACE)\n"
        "def show(*_): pass\n"
        "class Counting:\n    def show(self, tick): pass\n"
        "one, two = Counting(), Counting()\n"
        "listener.on_tick(show); listener.on_tick(show, pair='BTC:USDC'); listener.on_error(show)\n"
        "listener.on_tick(one.show); listener.on_tick(two.show)\n"
        "listener.on_tick(lambda tick: 1); listener.on_tick(lambda tick: 2)\nNone"
    )
    assert kernel.value("len(listener._callbacks.of('tick'))") == "6"
    kernel.run("listener.remove_callback(show); listener.remove_callback(one.show)")
    assert kernel.value("(len(listener._callbacks.of('tick')), len(listener._callbacks.of('error')))") == "(3, 0)"


def test_scripts_replace_nothing(seen: Seen) -> None:
    """Listeners with the same name run side by side, and a callback registered twice is called twice."""
    with Peer(stay(ticks(1, 1))) as peer:
        both = [seen.listener(peer.url, name="mine").start() for _ in range(2)]
        assert listeners() == both
        for _ in range(2):
            both[0].on_tick(print)
        assert both[0]._callbacks.of("tick").count(print) == 2
        assert stop_all()
    assert listeners() == []
    assert [listener.state.ended for listener in both] == [True, True]


def test_stop_all_returns_whether_all_have_stopped(seen: Seen) -> None:
    """It waits no longer than its timeout for a callback that doesn't return."""
    begun, leave = threading.Event(), threading.Event()

    def hold(tick: object) -> None:
        begun.set()
        leave.wait()

    with Peer(stay(ticks(1, 1))) as peer:
        listener = StreamListener(PAIR, endpoint=peer.url, api_key="demo", on_tick=hold).start()
        assert begun.wait(20)
        assert not stop_all(0.01)
        leave.set()
        assert listener.join(20)
        assert stop_all(0.0)
