"""The bounded queue between the network side and the callback side, in three overflow policies.

One thread puts, one takes. Entries are ticks (plain dicts) and `Event`s, and leave in the order in which they came;
under `latest` a pair's newest tick takes the place of its older one. Ticks alone are ever dropped, never events.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from ..values import NO_BOUND, Event, Tick

Entry = Tick | Event


class TickQueue(Protocol):
    """What the dispatch needs of a queue.

    `put_ticks`, `put_event` and `room` are for the thread that puts, `pop` and `clear` for the one that takes, `depth`
    and `depths` for any. These two take no lock: a signal handler that strikes within them may stop the listener, and
    what that waits for must not wait for them.
    """

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        """Append ticks of one pair, at least one. Returns how many were dropped for it, a pair."""

    def put_event(self, event: Event) -> None:
        """Append an event, whatever the bound."""

    def pop(self) -> Entry:
        """The oldest entry. Raises IndexError where there is none."""

    def room(self) -> int:
        """How many more ticks may be put before reading has to stop."""

    def clear(self) -> None:
        """Forget everything."""

    def depth(self) -> int:
        """How many entries wait."""

    def depths(self) -> dict[str, int]:
        """How many ticks of each pair wait, where there are any."""


class BlockQueue:
    """Nothing is dropped: with no room left, the network side stops reading. Needs no lock: `deque` is atomic."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: deque[Entry] = deque()
        self.pop = self._entries.popleft

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        self._entries.extend(ticks)
        return {}

    def put_event(self, event: Event) -> None:
        self._entries.append(event)

    def room(self) -> int:
        return self._size - len(self._entries)

    def clear(self) -> None:
        self._entries.clear()

    def depth(self) -> int:
        return len(self._entries)

    def depths(self) -> dict[str, int]:
        return _count(self._entries.copy())


class DropOldestQueue:
    """With no room left, the oldest ticks make place for the newest. Ticks and events lie apart, so that to drop ticks
    costs the same however many events wait among them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ticks: deque[Tick] = deque()
        #: Each behind how many ticks of all time it was put.
        self._events: deque[tuple[int, Event]] = deque()
        #: How many ticks were ever put.
        self._put = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        with self._lock:
            self._put += len(ticks)
            self._ticks.extend(ticks)
            excess = len(self._ticks) - self._size
            return Counter(self._ticks.popleft()["pair"] for _ in range(excess))

    def put_event(self, event: Event) -> None:
        with self._lock:
            self._events.append((self._put, event))

    def pop(self) -> Entry:
        with self._lock:
            if self._events and self._events[0][0] <= self._put - len(self._ticks):
                return self._events.popleft()[1]
            return self._ticks.popleft()

    def room(self) -> int:
        return NO_BOUND if len(self._events) < self._size else 0

    def clear(self) -> None:
        with self._lock:
            self._ticks.clear()
            self._events.clear()

    def depth(self) -> int:
        return len(self._ticks) + len(self._events)

    def depths(self) -> dict[str, int]:
        return _count(self._ticks.copy())


class LatestQueue:
    """One tick a pair: the newest takes the place of the one that waits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: deque[list[Tick] | Event] = deque()
        self._waiting: dict[str, list[Tick]] = {}
        self._events = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        newest, pair = ticks[-1], ticks[-1]["pair"]
        dropped = len(ticks) - 1
        with self._lock:
            slot = self._waiting.get(pair)
            if slot is None:
                slot = self._waiting[pair] = [newest]
                self._entries.append(slot)
            else:
                dropped += 1
                slot[0] = newest
        return {pair: dropped} if dropped else {}

    def put_event(self, event: Event) -> None:
        with self._lock:
            self._events += 1
            self._entries.append(event)
            # What comes after the event must not overtake it in an older tick's place.
            self._waiting.clear()

    def pop(self) -> Entry:
        with self._lock:
            entry = self._entries.popleft()
            if isinstance(entry, Event):
                self._events -= 1
                return entry
            tick = entry[0]
            if self._waiting.get(tick["pair"]) is entry:
                del self._waiting[tick["pair"]]
            return tick

    def room(self) -> int:
        return NO_BOUND if self._events < self._size else 0

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._waiting.clear()
            self._events = 0

    def depth(self) -> int:
        return len(self._entries)

    def depths(self) -> dict[str, int]:
        return _count(entry if isinstance(entry, Event) else entry[0] for entry in self._entries.copy())


QUEUES: dict[str, Callable[[int], TickQueue]] = {
    "block": BlockQueue,
    "drop_oldest": DropOldestQueue,
    "latest": LatestQueue,
}


def _count(entries: Iterable[Entry]) -> dict[str, int]:
    """Of a copy, which is made in one step: the other side goes on meanwhile."""
    return Counter(entry["pair"] for entry in entries if not isinstance(entry, Event))
