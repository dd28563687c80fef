"""The bounded queue between the network thread and the callback thread, with three overflow policies.

One thread puts, the other takes. Entries are ticks (plain dicts) and `Event`s. Only ticks are ever dropped.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from operator import itemgetter
from typing import Protocol

from ..values import NO_BOUND, Event, Tick

Entry = Tick | Event
_pair_of: Callable[[Tick], str] = itemgetter("pair")


class TickQueue(Protocol):
    """A queue of ticks and events.

    The producer calls `put_ticks`, `put_event` and `room`. The consumer calls `pop`. Any thread may call
    `depth` and `depths`, which take no lock: a signal handler may re-enter through stop().
    """

    #: The capacity, in ticks.
    size: int
    #: Whether a new tick replaces an older one of its pair, and doesn't go behind all others.
    replaces: bool

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        """Append one or more ticks, of any pairs. Return how many ticks of each pair were dropped."""

    def put_event(self, event: Event) -> None:
        """Append an event. The size limit doesn't apply."""

    def pop(self) -> Entry:
        """Remove and return the oldest entry. Raises IndexError if the queue is empty."""

    def room(self) -> int:
        """Return how many ticks fit. At 0 or less, reading must stop."""

    def depth(self) -> int:
        """Return the number of entries."""

    def depths(self) -> dict[str, int]:
        """Return the number of ticks of each pair that has any. Counts a copy, which no thread changes."""


class BlockQueue:
    """Drops nothing: when it is full, the network thread stops reading. Needs no lock, because `deque` is atomic."""

    replaces = False

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: deque[Entry] = deque()
        self.pop = self._entries.popleft

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        self._entries.extend(ticks)
        return {}

    def put_event(self, event: Event) -> None:
        self._entries.append(event)

    def room(self) -> int:
        return self.size - len(self._entries)

    def depth(self) -> int:
        return len(self._entries)

    def depths(self) -> dict[str, int]:
        return Counter(entry["pair"] for entry in self._entries.copy() if not isinstance(entry, Event))


class DropOldestQueue:
    """When full, drops the oldest ticks. Ticks and events are stored apart, so that dropping takes constant time."""

    replaces = False

    def __init__(self, size: int) -> None:
        self.size = size
        self._ticks: deque[Tick] = deque()
        #: Each with the value of `_put` when it was put, which is its place among the ticks.
        self._events: deque[tuple[int, Event]] = deque()
        #: How many ticks were ever put.
        self._put = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        with self._lock:
            self._put += len(ticks)
            self._ticks.extend(ticks)
            excess = len(self._ticks) - self.size
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
        return NO_BOUND if len(self._events) < self.size else 0

    def depth(self) -> int:
        return len(self._ticks) + len(self._events)

    def depths(self) -> dict[str, int]:
        return Counter(tick["pair"] for tick in self._ticks.copy())


class LatestQueue:
    """Keeps one tick per pair: a newer tick takes the older one's place in the queue."""

    replaces = True

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: deque[list[Tick] | Event] = deque()
        self._waiting: dict[str, list[Tick]] = {}
        self._events = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        newest = {tick["pair"]: tick for tick in ticks}
        dropped = Counter(map(_pair_of, ticks))
        with self._lock:
            for pair, tick in newest.items():
                slot = self._waiting.get(pair)
                if slot is None:
                    slot = self._waiting[pair] = [tick]
                    self._entries.append(slot)
                    dropped[pair] -= 1
                else:
                    slot[0] = tick
        return +dropped

    def put_event(self, event: Event) -> None:
        with self._lock:
            self._events += 1
            self._entries.append(event)
            # A tick put after this event must not overtake it by taking an older tick's place.
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
        return NO_BOUND if self._events < self.size else 0

    def depth(self) -> int:
        return len(self._entries)

    def depths(self) -> dict[str, int]:
        return Counter(slot[0]["pair"] for slot in self._entries.copy() if not isinstance(slot, Event))


QUEUES: dict[str, Callable[[int], TickQueue]] = {
    "block": BlockQueue,
    "drop_oldest": DropOldestQueue,
    "latest": LatestQueue,
}
