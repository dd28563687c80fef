"""Feed a hub: play a source on one clock for all clients, or let a live source send its market."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, repeat
from typing import Any, cast

import attrs

from .contracts import ContractTicker, Played
from .hub import Hub
from .settings import is_live
from .source import LiveSource, Source
from .tape import Tape

#: The most ticks to publish before the event loop gets a turn.
MAX_BURST = 128


async def play_source(source: Source | LiveSource, hub: Hub, on_start: Callable[[], None]) -> None:
    """Play a source to its end, once `source.wait_for` streams are connected. A live source begins at once."""
    if is_live(source):
        on_start()
        await source.run(HubOutlet(hub))
    else:
        await _play(cast(Source, source), hub, on_start)


async def _play(source: Source, hub: Hub, on_start: Callable[[], None]) -> None:
    await _wait_until(hub, lambda: hub.streams >= source.wait_for)
    on_start()
    if source.paced:
        await _play_paced(source, hub)
    else:
        await _play_unpaced(source, hub)


@attrs.frozen
class HubOutlet:
    """The `Outlet` of a live source."""

    _hub: Hub

    async def publish(self, played: Sequence[Played]) -> None:
        hub = self._hub
        burst = min(MAX_BURST, hub.recorder.max_burst)
        for start in range(0, len(played), burst):
            some = played[start : start + burst]
            await _wait_until(hub, lambda: hub.recorder.has_room(burst))
            for each in some:
                hub.publish(each)
            hub.flush()
            if start + burst < len(played):
                await asyncio.sleep(0)

    def notify(self, pairs: Iterable[str], notice: Mapping[str, Any]) -> None:
        for pair in pairs:
            self._hub.notify_subscribers(pair, {**notice, "pair": pair})
        self._hub.flush()


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
            await _wait_until(hub, lambda: hub.recorder.has_room(burst))
            count = 0
        hub.publish(tick, position)
        count += 1
    hub.flush()


async def _play_unpaced(source: Source, hub: Hub) -> None:
    count, burst = 0, min(MAX_BURST, hub.recorder.max_burst)
    for position, (_, tick) in _played(source):
        if not count:
            await _wait_until(
                hub, lambda: hub.has_subscribers and not hub.is_backed_up and hub.recorder.has_room(burst)
            )
        hub.publish(tick, position, can_wait=True)
        count += 1
        if count >= burst:
            hub.flush()
            await asyncio.sleep(0)
            count = 0
    hub.flush()


async def _wait_until(hub: Hub, condition: Callable[[], bool]) -> None:
    while not condition():
        hub.changed.clear()
        await hub.changed.wait()
