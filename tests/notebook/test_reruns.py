"""A rerun of a cell replaces what its earlier run has made, and a script knows nothing of it."""

from __future__ import annotations

import pytest

from finx_streamer import StreamListener, listeners, stop_all
from tests.notebook.kernels import OUR_THREADS, Kernel
from tests.support.peers import PAIR, Peer, Seen, stay, ticks


@pytest.mark.parametrize("name", ["", ", name='mine'"])
@pytest.mark.parametrize("last", ["None", "listener", "listener.live()"])
def test_a_rerun_leaves_one_listener(kernel: Kernel, name: str, last: str) -> None:
    """Named or not, shown as the last expression or not; with the threads of one. (The kernel's own come and go.)"""
    code = f"listener = StreamListener('BTC:USDC', **PLACE{name}).start()\n{last}"
    kernel.run(code, cell="a")
    threads = kernel.value(OUR_THREADS)
    for _ in range(3):
        kernel.run(code, cell="a")
    assert kernel.value("finx_streamer.listeners() == [listener]") == "True"
    assert threads == kernel.value(OUR_THREADS)


def test_an_edited_cell_replaces_what_it_had_started_before(kernel: Kernel) -> None:
    """It is the same cell, as front ends name it."""
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE).start()", cell="b")
    kernel.run("listener = StreamListener('BTC:USDC', **PLACE, queue_size=9).start()", cell="b")
    assert kernel.value("len(finx_streamer.listeners())") == "1"


def test_a_front_end_that_does_not_name_cells(kernel: Kernel) -> None:
    """There the code tells them apart."""
    for _ in range(2):
        name = kernel.begin("listener = StreamListener('BTC:USDC', **PLACE).start()", cellId=None)
        kernel.wait_idle(name)
    assert kernel.value("len(finx_streamer.listeners())") == "1"


def test_what_does_not_belong_together_is_left_alone(kernel: Kernel) -> None:
    """Several in one run of a cell, the same in other cells, and other names."""
    kernel.run("a, b = (StreamListener('BTC:USDC', **PLACE).start() for _ in range(2))", cell="c")
    kernel.run("c = StreamListener('BTC:USDC', **PLACE).start()", cell="d")
    kernel.run("d = StreamListener('BTC:USDC', **PLACE, name='d').start()", cell="d")
    kernel.run("e = StreamListener('ETH:USDC', **PLACE).start()", cell="c")
    assert kernel.value("finx_streamer.listeners() == [a, b, c, d, e]") == "True"


def test_the_earlier_callbacks_stop_before_the_new_ones_start(kernel: Kernel) -> None:
    """The replaced listener calls nobody any more."""
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
def test_a_callback_that_is_defined_again_replaces_the_earlier(kernel: Kernel, code: str) -> None:
    """Each tick is handed to one of them, the last."""
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


def test_callbacks_that_are_not_the_same_are_kept(kernel: Kernel) -> None:
    """Other pairs, other events, other objects' methods, two lambdas of one cell; what is removed is gone."""
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


def test_a_script_sees_none_of_this(seen: Seen) -> None:
    """Listeners of one name live side by side, and a callback that is registered twice is called twice."""
    with Peer(stay(ticks(1, 1))) as peer:
        both = [seen.listener(peer.url, name="mine").start() for _ in range(2)]
        assert both == listeners()
        for _ in range(2):
            both[0].on_tick(print)
        assert both[0]._callbacks.of("tick").count(print) == 2
        assert stop_all()
    assert listeners() == []
    assert [listener.state.ended for listener in both] == [True, True]


def test_stopping_all_says_whether_all_have_stopped(seen: Seen) -> None:
    """A callback that does not return is waited for so long, and no longer; it may stop all, too."""
    import threading

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
