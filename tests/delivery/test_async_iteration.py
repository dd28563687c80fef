"""`async for tick in listener` and `wait_async`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from finx_streamer import ConfigurationError, ConnectionFailed, State, StreamListener, StreamNotFound, Tick
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Seen, refuse, stay, tick, ticks


def test_a_loop_starts_the_listener_and_stops_it_at_the_end(seen: Seen, dispatch: str) -> None:
    """It gets the same ticks as `for`, and leaves no thread behind."""

    async def take(listener: StreamListener) -> list[int]:
        got = []
        async for received in listener:
            got.append(int(received["price"]))
            if len(got) == 500:
                break
        assert await listener.wait_async(PATIENCE)
        return got

    with Peer(stay(ticks(1, 1_000))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        assert asyncio.run(take(listener)) == list(range(1, 501))
        assert listener.state is State.STOPPED
        # Check by name, because the peer's own threads end later.
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(listener.name)] == []


def test_a_loop_does_not_stop_a_running_listener(seen: Seen, dispatch: str) -> None:
    """The loop stops only a listener that it started."""

    async def take_one(listener: StreamListener) -> None:
        async for _ in listener:
            break

    with Peer(stay(ticks(1, 10))) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        asyncio.run(take_one(listener))
        assert listener.state is not State.STOPPED


def test_a_loop_that_was_left_can_be_followed_by_another(seen: Seen, dispatch: str) -> None:
    """The second loop doesn't join the run that the first one ends."""

    async def take_first_ticks(listener: StreamListener) -> list[int]:
        firsts = []
        for _ in range(5):
            async for received in listener:
                firsts.append(int(received["price"]))
                break
        return firsts

    with Peer(stay(ticks(1, 10))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        assert asyncio.run(take_first_ticks(listener)) == [1] * 5


def test_a_loop_that_was_left_can_be_followed_by_start(seen: Seen, dispatch: str) -> None:
    """`start` waits for the end of the run that the loop has left, and begins its own."""

    async def take_one_and_start(listener: StreamListener) -> None:
        async for _ in listener:
            break
        before = len(seen.ticks)
        listener.start()
        seen.wait_ticks(before + 10)

    with Peer(stay(ticks(1, 10))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        asyncio.run(take_one_and_start(listener))
        assert listener.stop()
    assert seen.prices[-10:] == list(range(1, 11))


def test_aclose_ends_the_run(seen: Seen, dispatch: str) -> None:
    """As `contextlib.aclosing` does. The next tick ends the iteration."""

    async def close_early(listener: StreamListener) -> list[Tick]:
        loop = aiter(listener)
        await anext(loop)
        await loop.aclose()
        assert listener.state is State.STOPPED
        return [tick async for tick in loop]

    with Peer(stay(ticks(1, 10))) as peer:
        assert asyncio.run(close_early(seen.listener(peer.url, dispatch=dispatch))) == []


def test_a_quiet_pair_raises_timeout_error(seen: Seen, dispatch: str) -> None:
    """Other loops over the listener go on."""
    more = threading.Event()

    def script(caller: Caller) -> None:
        caller.welcome(tick(1))
        assert more.wait(PATIENCE)
        caller.send(tick(2))
        caller.wait_until_left()

    async def take(listener: StreamListener) -> list[int]:
        first, quiet = aiter(listener), aiter(listener.ticks(timeout=0.2))
        got = [await anext(first)]
        with pytest.raises(TimeoutError, match=r"no tick came within 0.2 s"):
            await anext(quiet)
        more.set()
        return [int(tick["price"]) for tick in [*got, await anext(first)]]

    with Peer(script) as peer:
        # The first loop starts the listener: it would miss a tick that came before it.
        assert asyncio.run(take(seen.listener(peer.url, dispatch=dispatch))) == [1, 2]


def test_other_tasks_get_their_turn(seen: Seen, dispatch: str) -> None:
    """They run even if there are always ticks and the loop's body awaits nothing."""

    async def both(listener: StreamListener) -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        got = 0
        async for _ in listener:
            got += 1
            if got == 10_000:
                break
        counting.cancel()
        return turns

    with Peer(stay(ticks(1, 10_000))) as peer:
        assert asyncio.run(both(seen.listener(peer.url, dispatch=dispatch))) >= 10_000 // 64


def test_a_cancelled_loop_stops_its_listener(seen: Seen, dispatch: str) -> None:
    """A task that waits for a tick can be cancelled."""

    async def cancel(listener: StreamListener) -> None:
        first = asyncio.Event()

        async def take() -> None:
            async for _ in listener:
                first.set()

        taking = asyncio.create_task(take())
        await first.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking

    with Peer(stay(ticks(1, 1))) as peer:
        listener = seen.listener(peer.url, dispatch=dispatch)
        asyncio.run(cancel(listener))
        assert listener.join(PATIENCE)
        assert listener.state is State.STOPPED


def test_a_loop_raises_the_error_that_ended_the_listener(seen: Seen) -> None:
    """It raises the same error as `join`."""

    async def take(listener: StreamListener) -> None:
        async for _ in listener:
            pass

    with Peer(refuse("404 Not Found")) as peer, pytest.raises(StreamNotFound):
        asyncio.run(take(seen.listener(peer.url)))


def test_a_loop_ends_when_another_thread_stops_the_listener(seen: Seen, dispatch: str) -> None:
    """The ticks received until then are delivered first."""

    async def take(listener: StreamListener) -> int:
        got = 0
        async for _ in listener:
            got += 1
            if got == 3:
                threading.Thread(target=listener.stop).start()
        return got

    with Peer(stay(ticks(1, 3))) as peer:
        assert asyncio.run(take(seen.listener(peer.url, dispatch=dispatch))) == 3


def test_wait_async_times_out(seen: Seen) -> None:
    """It returns False, and the listener keeps running."""
    with Peer(stay()) as peer, seen.listener(peer.url) as listener:
        assert asyncio.run(listener.wait_async(0.01)) is False
        assert not listener.state.ended


def test_wait_async_ends_with_the_listener(seen: Seen) -> None:
    """Any thread may stop the listener."""

    async def wait(listener: StreamListener) -> bool:
        threading.Thread(target=listener.stop).start()
        return await listener.wait_async()

    with Peer(stay()) as peer, seen.listener(peer.url) as listener:
        assert asyncio.run(wait(listener)) is True


def test_wait_async_raises_the_error_that_ended_the_listener() -> None:
    """It raises the same error as `join`."""
    listener = StreamListener(PAIR, endpoint="ws://127.0.0.1:9/", api_key="demo", reconnect=None, on_error=id).start()
    with pytest.raises(ConnectionFailed):
        asyncio.run(listener.wait_async())


def test_wait_async_returns_at_once_before_the_start() -> None:
    """There is nothing to wait for."""
    assert asyncio.run(StreamListener(PAIR).wait_async()) is True


def test_rejects_an_invalid_timeout() -> None:
    """The message names the argument."""
    with pytest.raises(ConfigurationError, match=r"^timeout: "):
        asyncio.run(StreamListener(PAIR).wait_async(-1))
