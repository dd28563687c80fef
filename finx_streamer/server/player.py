"""Plays a source on a hub: one clock for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .hub import Hub
from .source import Source

#: After so many ticks the loop gets its turn, however many are due.
BATCH = 128


async def play(source: Source, hub: Hub, started: Callable[[], None]) -> None:
    """Play the source to its end, once so many streams as it waits for are connected."""
    await _until(hub, lambda: hub.streams >= source.wait_for)
    started()
    if source.paced:
        await _by_the_clock(source, hub)
    else:
        await _as_taken(source, hub)


async def _by_the_clock(source: Source, hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    count, turn = 0, min(BATCH, hub.recorder.turn)
    for due, tick in source.play(time.time):
        wait = start + due - loop.time()
        if wait > 0 or count >= turn:
            hub.flush()
            await asyncio.sleep(max(0.0, wait))
            # What is sent before it is stored has a bound: a market that is too fast for the store runs late.
            await _until(hub, lambda: hub.recorder.has_room(turn))
            count = 0
        hub.emit(tick)
        count += 1
    hub.flush()


async def _as_taken(source: Source, hub: Hub) -> None:
    count, turn = 0, min(BATCH, hub.recorder.turn)
    for _, tick in source.play(time.time):
        if not count:
            await _until(hub, lambda: hub.listening and not hub.full and hub.recorder.has_room(turn))
        hub.emit(tick, patient=True)
        count += 1
        if count >= turn:
            hub.flush()
            await asyncio.sleep(0)
            count = 0
    hub.flush()


async def _until(hub: Hub, condition: Callable[[], bool]) -> None:
    while not condition():
        hub.changed.clear()
        await hub.changed.wait()
