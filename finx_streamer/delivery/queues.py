"""The bounded queue between the loop's thread and the callback thread, with three overflow policies.

One thread puts, the other takes. Entries are ticks (plain dicts) and `Event`s. Only ticks and Greeks are ever dropped.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from operator import itemgetter
from typing import Protocol

from ..values import NO_BOUND, Event, Tick

Entry = Tick | Event
_pair_of: Callable[[Tick], str] = itemgetter("pair")


def symbol_of(entry: Entry) -> str | None:
    """Return the symbol of a tick or Greeks. None for other events."""
    if not isinstance(entry, Event):
        return entry["pair"]
    return entry.symbol if entry.greeks is not None else None


class TickQueue(Protocol):
    """A queue of ticks and events.

    The producer calls `put_ticks`, `put_event` and `room`. The consumer calls `pop`. Any thread may call
    `depth` and `depths`, which take no lock: a signal handler may re-enter through stop().
    """

    #: The capacity, in ticks.
    size: int
    #: Whether a new tick replaces an older one of its pair, and doesn't go behind all others.
    replaces: bool
    #: Whether nothing is ever dropped.
    keeps_all: bool

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        """Append one or more ticks, of any pairs. Return how many ticks and Greeks of each symbol were dropped."""

    def put_greeks(self, event: Event) -> dict[str, int]:
        """Append an event with Greeks. Return how many ticks and Greeks of each symbol were dropped."""

    def put_event(self, event: Event) -> None:
        """Append an event. The size limit doesn't apply."""

    def pop(self) -> Entry:
        """Remove and return the oldest entry. Raises IndexError if the queue is empty."""

    def room(self) -> int:
        """Return how many ticks fit. At 0 or less, reading must stop."""

    def space(self) -> int:
        """Return how many ticks fit that replace and drop no older ones, as far as that is known before."""

    def depth(self) -> int:
        """Return the number of entries."""

    def depths(self) -> dict[str, int]:
        """Return the number of ticks and Greeks of each symbol that has any. Counts a copy, which no thread changes."""


class BlockQueue:
    """Drops nothing: when it is full, the loop's thread stops reading. Needs no lock, because `deque` is atomic."""

    replaces, keeps_all = False, True

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: deque[Entry] = deque()
        # On the hot path: methods in C.
        self.pop, self.depth = self._entries.popleft, self._entries.__len__

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        self._entries.extend(ticks)
        return {}

    def put_greeks(self, event: Event) -> dict[str, int]:
        self._entries.append(event)
        return {}

    def put_event(self, event: Event) -> None:
        self._entries.append(event)

    def room(self) -> int:
        return self.size - len(self._entries)

    space = room

    def depths(self) -> dict[str, int]:
        return count_by_symbol(self._entries.copy())


class DropOldestQueue:
    """When full, drops the oldest ticks and Greeks. Other events are stored apart, so that dropping is fast."""

    replaces, keeps_all = False, False

    def __init__(self, size: int) -> None:
        self.size = size
        #: Ticks, and events with Greeks.
        self._ticks: deque[Entry] = deque()
        #: Each other event, with the value of `_put` when it was put, which is its place among the ticks.
        self._events: deque[tuple[int, Event]] = deque()
        #: How many ticks and Greeks were ever put.
        self._put = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        with self._lock:
            self._put += len(ticks)
            self._ticks.extend(ticks)
            return self._drop_excess()

    def put_greeks(self, event: Event) -> dict[str, int]:
        with self._lock:
            self._put += 1
            self._ticks.append(event)
            return self._drop_excess()

    def _drop_excess(self) -> dict[str, int]:
        excess = len(self._ticks) - self.size
        return count_by_symbol(self._ticks.popleft() for _ in range(excess)) if excess > 0 else {}

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

    def space(self) -> int:
        return self.size - max(len(self._ticks), len(self._events))

    def depth(self) -> int:
        return len(self._ticks) + len(self._events)

    def depths(self) -> dict[str, int]:
        return count_by_symbol(self._ticks.copy())


class LatestQueue:
    """Keeps a tick of each pair, and Greeks of each contract: newer ones take the older ones' place in the queue."""

    replaces, keeps_all = True, False

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: deque[list[Entry] | Event] = deque()
        #: The places of ticks by pair, and of Greeks by symbol and contract.
        self._waiting: dict[Hashable, list[Entry]] = {}
        self._events = 0
        self._lock = threading.Lock()

    def put_ticks(self, ticks: list[Tick]) -> dict[str, int]:
        newest = {tick["pair"]: tick for tick in ticks}
        dropped = Counter({next(iter(newest)): len(ticks)} if len(newest) == 1 else map(_pair_of, ticks))
        with self._lock:
            for pair, tick in newest.items():
                dropped[pair] -= not self._replace(pair, tick)
        return +dropped

    def put_greeks(self, event: Event) -> dict[str, int]:
        assert event.greeks is not None
        with self._lock:
            replaced = self._replace((event.symbol, event.greeks["instrument"]), event)
        return {str(event.symbol): 1} if replaced else {}

    def _replace(self, key: Hashable, entry: Entry) -> bool:
        """Put an entry in the place of an older one, or at the end. Return whether there was an older one."""
        slot = self._waiting.get(key)
        if slot is not None:
            slot[0] = entry
            return True
        slot = self._waiting[key] = [entry]
        self._entries.append(slot)
        return False

    def put_event(self, event: Event) -> None:
        with self._lock:
            self._events += 1
            self._entries.append(event)
            # A tick put after this event must not overtake it by taking an older tick's place.
            self._waiting.clear()

    def pop(self) -> Entry:
        with self._lock:
            slot = self._entries.popleft()
            if isinstance(slot, Event):
                self._events -= 1
                return slot
            entry = slot[0]
            key = _key_of(entry)
            if self._waiting.get(key) is slot:
                del self._waiting[key]
            return entry

    def room(self) -> int:
        return NO_BOUND if self._events < self.size else 0

    # One read may bring several ticks of a pair. Only the newest one of them is wanted.
    space = room

    def depth(self) -> int:
        return len(self._entries)

    def depths(self) -> dict[str, int]:
        return count_by_symbol(slot[0] for slot in self._entries.copy() if not isinstance(slot, Event))


def _key_of(entry: Entry) -> Hashable:
    """Return what identifies the values that a newer entry replaces."""
    if not isinstance(entry, Event):
        return entry["pair"]
    return entry.symbol, entry.greeks and entry.greeks["instrument"]


def count_by_symbol(entries: Iterable[Entry]) -> dict[str, int]:
    """Return the number of ticks and Greeks of each symbol that has any."""
    names = map(symbol_of, entries)
    return Counter(name for name in names if name is not None)


QUEUES: dict[str, Callable[[int], TickQueue]] = {
    "block": BlockQueue,
    "drop_oldest": DropOldestQueue,
    "latest": LatestQueue,
}
