"""Feed a hub: play a source on one clock for all clients, or let a live source send its market."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from typing import cast

from .contracts import ContractTicker, Played
from .hub import Hub
from .outlets import MAX_BURST, HubOutlet, LogOutlet, wait_until
from .settings import is_live
from .source import LiveSource, Source, as_log
from .tape import Tape


async def play_source(source: Source | LiveSource, hub: Hub, on_start: Callable[[], None]) -> None:
    """Play a source to its end, once `source.wait_for` streams are connected. A live source begins at once."""
    if is_live(source):
        on_start()
        outlet = HubOutlet(hub) if as_log(source) is None else LogOutlet(hub)
        await source.run(outlet)
    else:
        await _play(cast(Source, source), hub, on_start)


async def _play(source: Source, hub: Hub, on_start: Callable[[], None]) -> None:
    await wait_until(hub, lambda: hub.streams >= source.wait_for)
    on_start()
    if source.paced:
        await _play_paced(source, hub)
    else:
        await _play_unpaced(source, hub)


def _played(source: Source) -> Iterator[tuple[int | None, tuple[float, Played]]]:
    """Play a source. Add to each tick its position in the tape; None for contracts and other sources."""
    recording = source.recording if isinstance(source, Tape) else None
    positions = repeat(None) if recording is None else cycle(range(len(recording)))
    played = source.play(time.time)
    if recording is None or not recording.contracts:
        return zip(positions, played, strict=False)
    return ((None if isinstance(each[1], ContractTicker) else next(positions), each) for each in played)


async def _play_paced(source: Source, hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    count, burst = 0, min(MAX_BURST, hub.recorder.max_burst)
    for position, (due, tick) in _played(source):
        wait = start + due - loop.time()
        if wait > 0 or count >= burst:
            hub.flush()
            await asyncio.sleep(max(0.0, wait))
            # Bound the ticks that are sent but not yet stored: a market that outpaces the store runs late.
            await wait_until(hub, lambda: hub.recorder.has_room(burst))
            count = 0
        hub.publish(tick, position)
        count += 1
    hub.flush()


async def _play_unpaced(source: Source, hub: Hub) -> None:
    count, burst = 0, min(MAX_BURST, hub.recorder.max_burst)
    for position, (_, tick) in _played(source):
        if not count:
            await wait_until(hub, lambda: hub.has_subscribers and not hub.is_backed_up and hub.recorder.has_room(burst))
        hub.publish(tick, position, can_wait=True)
        count += 1
        if count >= burst:
            hub.flush()
            await asyncio.sleep(0)
            count = 0
    hub.flush()
