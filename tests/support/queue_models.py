"""Models of the three overflow policies, and steps for property tests of queues."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st

from finx_streamer.delivery.queues import Entry, TickQueue
from finx_streamer.values import NO_BOUND, Event, Tick

PAIRS = ("A:X", "B:X", "C:X")


def taken(queue: TickQueue) -> Entry | None:
    """Take the oldest entry. None if the queue is empty."""
    try:
        return queue.pop()
    except IndexError:
        return None


def ticks_of(pair: str, first: int, count: int) -> list[Tick]:
    """Ticks with consecutive numbers as prices."""
    return mixed([pair] * count, first)


def mixed(pairs: list[str], first: int) -> list[Tick]:
    """Ticks of these pairs, with consecutive numbers as prices."""
    return [{"pair": pair, "price": number} for number, pair in enumerate(pairs, first)]  # type: ignore[typeddict-item]


def shown(entry: Entry) -> str:
    """An entry as short text: the pair and number of a tick, or the symbol of an event."""
    return f"event {entry.symbol}" if isinstance(entry, Event) else f"{entry['pair']} {entry['price']}"


class Block:
    """The model of a queue that drops nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[Entry] = []

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        self.entries += ticks
        return {}

    def room(self) -> int:
        return self.size - len(self.entries)

    def events(self) -> int:
        return sum(isinstance(entry, Event) for entry in self.entries)


class DropOldest(Block):
    """The model of a queue that drops the oldest ticks until `size` are left."""

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        self.entries += ticks
        dropped: Counter[str] = Counter()
        while len(self.entries) - self.events() > self.size:
            oldest = next(entry for entry in self.entries if not isinstance(entry, Event))
            self.entries.remove(oldest)
            dropped[oldest["pair"]] += 1
        return dropped

    def room(self) -> int:
        return NO_BOUND if self.events() < self.size else 0


class Latest(DropOldest):
    """The model of a queue in which a tick replaces its pair's older one, unless an event came in between."""

    def put(self, ticks: list[Tick]) -> dict[str, int]:
        dropped: Counter[str] = Counter()
        for tick in ticks:
            for at in reversed(range(len(self.entries))):
                entry = self.entries[at]
                if isinstance(entry, Event):
                    self.entries.append(tick)
                    break
                if entry["pair"] == tick["pair"]:
                    self.entries[at] = tick
                    dropped[tick["pair"]] += 1
                    break
            else:
                self.entries.append(tick)
        return dropped


MODELS: dict[str, type[Block]] = {"block": Block, "drop_oldest": DropOldest, "latest": Latest}
#: The pairs of the ticks to put, an event to put (None), or how many entries to take.
Step = list[str] | int | None
pairs_to_put = st.lists(st.sampled_from(PAIRS), min_size=1, max_size=6)
one_pair_to_put = st.tuples(st.sampled_from(PAIRS), st.integers(1, 6)).map(lambda of: [of[0]] * of[1])
steps = st.lists(st.one_of(pairs_to_put, one_pair_to_put, st.none(), st.integers(1, 6)), max_size=40)
