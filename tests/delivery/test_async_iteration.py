"""`async for tick in listener` and `wait_async`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from finx_streamer import ConfigurationError, ConnectionFailed, State, StreamListener, StreamNotFound
from tests.support.peers import PAIR, PATIENCE, Peer, Seen, refuse, stay, ticks


def test_a_loop_starts_the_listener_and_stops_it_at_the_end(seen: Seen, dispatch: str) -> None:
    """It gets the same ticks as `for`, and leaves no thread behind."""

    async def take(listener: StreamListener) -> list[int]:
        got = []
        async for tick in listener:
            got.append(int(tick["price"]))
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
