"""The ticks that were received last, for whoever wants to look back: `listener.recent()`."""

from __future__ import annotations

from collections import deque

from ..values import Tick

_FIELDS = frozenset(Tick.__annotations__)


class Recent:
    """A ring of at least the last `size` ticks of a listener, in order of receipt.

    Runs of ticks are kept as they come, so that a run costs as much as a tick. One thread extends; any may look.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        #: Each run, behind how many ticks had come with its end.
        self._runs: deque[tuple[int, list[Tick]]] = deque()
        self._total = 0
        self._count = 0

    def extend(self, ticks: list[Tick]) -> None:
        """Ticks in order, at least one. The list is kept, not copied."""
        self._total += len(ticks)
        self._count += len(ticks)
        self._runs.append((self._total, ticks))
        while self._count - len(self._runs[0][1]) >= self.size:
            self._count -= len(self._runs.popleft()[1])

    @property
    def total(self) -> int:
        """How many ticks have ever come."""
        return self._total

    def last(self, count: int, pair: str | None = None) -> list[Tick]:
        """The last `count` ticks (of a pair), oldest first; fewer where there are not so many."""
        found: list[Tick] = []
        # The last `size` of all, and not what happens to be kept beyond it: the bound does not depend on the runs.
        left = self.size
        for _, run in reversed(self._runs.copy()):
            of_run = run[-left:]
            left -= len(of_run)
            found += (tick for tick in reversed(of_run) if _whole(tick) and pair in {None, tick["pair"]})
            if len(found) >= count or left <= 0:
                break
        return found[:count][::-1]

    def since(self, position: int, limit: int) -> tuple[list[Tick], int]:
        """What has come since a position, the last `limit` of it; and the position to ask from next time."""
        runs = self._runs.copy()
        end = runs[-1][0] if runs else position
        wanted = min(end - position, limit)
        newest: list[list[Tick]] = []
        for _, run in reversed(runs):
            if wanted <= 0:
                break
            newest.append(run[-wanted:])
            wanted -= len(newest[-1])
        return [tick for run in reversed(newest) for tick in run if _whole(tick)], end


def _whole(tick: Tick) -> bool:
    """Whether a callback has left it a tick: they are the users' to change."""
    return tick.keys() >= _FIELDS
