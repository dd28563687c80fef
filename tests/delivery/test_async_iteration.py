"""Listeners in an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from finx_streamer import ConfigurationError, ConnectionFailed, State, StreamListener, StreamNotFound
from tests.support.peers import PAIR, PATIENCE, Peer, Seen, refuse, stay, ticks


def test_a_loop_starts_the_listener_and_stops_what_it_started(seen: Seen, dispatch: str) -> None:
    """Its ticks are those of `for`, and no thread is left behind."""

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
        assert list(range(1, 501)) == asyncio.run(take(listener))
        assert State.STOPPED is listener.state
        # The peer has threads of its own, which take their time to notice.
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(listener.name)] == []


def test_a_loop_leaves_a_listener_running_that_ran_before(seen: Seen, dispatch: str) -> None:
    """Who started it stops it."""

    async def take_one(listener: StreamListener) -> None:
        async for _ in listener:
            break

    with Peer(stay(ticks(1, 10))) as peer, seen.listener(peer.url, dispatch=dispatch) as listener:
        asyncio.run(take_one(listener))
        assert State.STOPPED is not listener.state


def test_other_tasks_have_their_turn(seen: Seen, dispatch: str) -> None:
    """Though ticks be there all the time, and the body of the loop awaits nothing."""

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
    """A task that waits for a tick can be cancelled at once."""

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
        assert State.STOPPED is listener.state


def test_a_loop_ends_with_the_listener_and_raises_what_ended_it(seen: Seen) -> None:
    """As `join` does."""

    async def take(listener: StreamListener) -> None:
        async for _ in listener:
            pass

    with Peer(refuse("404 Not Found")) as peer, pytest.raises(StreamNotFound):
        asyncio.run(take(seen.listener(peer.url)))


def test_a_loop_ends_when_the_listener_is_stopped_from_elsewhere(seen: Seen, dispatch: str) -> None:
    """By another task, or by a callback."""

    async def take(listener: StreamListener) -> int:
        got = 0
        async for _ in listener:
            got += 1
            if got == 3:
                threading.Thread(target=listener.stop).start()
        return got

    with Peer(stay(ticks(1, 3))) as peer:
        assert asyncio.run(take(seen.listener(peer.url, dispatch=dispatch))) == 3


def test_waiting_gives_up_in_time(seen: Seen) -> None:
    """And says that it did; the listener runs on."""
    with Peer(stay()) as peer, seen.listener(peer.url) as listener:
        assert asyncio.run(listener.wait_async(0.01)) is False
        assert not listener.state.ended


def test_waiting_ends_with_the_listener(seen: Seen) -> None:
    """Whoever stops it."""

    async def wait(listener: StreamListener) -> bool:
        threading.Thread(target=listener.stop).start()
        return await listener.wait_async()

    with Peer(stay()) as peer, seen.listener(peer.url) as listener:
        assert asyncio.run(wait(listener)) is True


def test_waiting_raises_what_ended_the_listener() -> None:
    """As `join` does."""
    listener = StreamListener(PAIR, endpoint="ws://127.0.0.1:9/", api_key="demo", reconnect=None, on_error=id).start()
    with pytest.raises(ConnectionFailed):
        asyncio.run(listener.wait_async())


def test_what_was_never_started_has_ended() -> None:
    """There is nothing to wait for."""
    assert asyncio.run(StreamListener(PAIR).wait_async()) is True


def test_a_wrong_timeout_is_refused() -> None:
    """At once, and with what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^timeout: "):
        asyncio.run(StreamListener(PAIR).wait_async(-1))
