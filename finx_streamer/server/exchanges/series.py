"""`Series`: the trades of one pair on one exchange: their order, their gaps and their duplicates.

A state machine without a socket, clock or task.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Iterable

from .adapter import Gap, Trade

#: The most holes and gaps to remember. The oldest ones are forgotten first.
_MOST_HOLES = _MOST_GAPS = 1_000
#: After as many live trades in a row with IDs that are known, the exchange has started to count again.
_RESTARTED = 1_000
#: So has it at a known ID that is so much later than the last trade of an earlier run. In nanoseconds.
_LATER = 60 * 10**9


class State(enum.Enum):
    """What happens to a trade from the feed."""

    #: There is no position yet. The trades of a snapshot set it, and the first live trade is sent.
    NEW = "new"
    #: It is sent at once.
    LIVE = "live"
    #: It is held, because trades before it may be missing.
    HELD = "held"


class Holes:
    """Ranges of IDs below the newest one that haven't arrived. They are sent if they arrive late."""

    def __init__(self, forgotten: int = 0) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._forgotten = forgotten

    @property
    def size(self) -> int:
        """How many IDs haven't arrived."""
        return self._forgotten + sum(high - low + 1 for low, high in self._ranges)

    def add(self, low: int, high: int) -> None:
        """Add a range above all others."""
        self._ranges.append((low, high))
        if len(self._ranges) > 2 * _MOST_HOLES:
            self._forgotten += sum(high - low + 1 for low, high in self._ranges[:_MOST_HOLES])
            del self._ranges[:_MOST_HOLES]

    def take(self, low: int, high: int) -> bool:
        """Remove the IDs of a range. Returns whether there were any."""
        start, end = self._find(low, high)
        taken = self._ranges[start:end]
        rest = [(each, low - 1) for each, _ in taken[:1] if each < low]
        rest += [(high + 1, each) for _, each in taken[-1:] if each > high]
        self._ranges[start:end] = rest
        return bool(taken)

    def overlap(self, low: int, high: int) -> bool:
        """Whether an ID of a range hasn't arrived."""
        start, end = self._find(low, high)
        return start < end

    def _find(self, low: int, high: int) -> tuple[int, int]:
        start = bisect_left(self._ranges, (low,))
        if start and self._ranges[start - 1][1] >= low:
            start -= 1
        return start, bisect_left(self._ranges, (high + 1,), start)


class Series:
    """The trades of one pair on one exchange.

    The methods that return trades return those that can be sent now, in the order in which to send them.
    """

    def __init__(self, *, consecutive: bool) -> None:
        self.state = State.NEW
        #: What is being asked for, in order.
        self.gaps: list[Gap] = []
        #: Total gaps.
        self.gap_count = 0
        self.holes = Holes()
        self._consecutive = consecutive
        #: The known trade with the highest ID, and the highest ID that was sent.
        self._top: Trade | None = None
        self._newest = -1
        #: The last trade that was known at the start.
        self._began_after: Trade | None = None
        #: Sorted.
        self._held: list[Trade] = []
        self._known_in_a_row = 0

    @property
    def held(self) -> int:
        """How many trades are held."""
        return len(self._held)

    @property
    def lost(self) -> int:
        """How many trades are known to be missing, as far as IDs tell."""
        return self.holes.size if self._consecutive else 0

    def begin_after(self, known: Iterable[Trade], epoch: float) -> None:
        """Go on after trades that an earlier run has sent. The first connection has to `interrupt`.

        Args:
            known: At least one trade. What is missing between them is asked for, too.
            epoch: The event loop's time in 1970.
        """
        # By time, because the exchange may have started to count again. REST may have whole seconds.
        newest = max(known, key=lambda each: (each.nanoseconds // 10**9, each.last))
        ordered = sorted(each for each in known if each.last <= newest.last)
        after, self._newest = ordered[0], ordered[0].first - 1
        for trade in ordered:
            if trade.first <= after.last + 1:
                after = max(after, trade)
            self._send(trade)
        self._top = self._began_after = newest
        self.gaps.append(Gap(after.last + 1, None, after, after.nanoseconds / 1e9 + epoch))

    def add(self, trade: Trade, now: float, *, old: bool = False) -> list[Trade]:
        """Take a trade from the feed. `old` ones are part of a snapshot. `now` is the event loop's time."""
        if self.state is State.LIVE and trade.first == self._newest + 1 and not self.gaps:
            self._top, self._newest, self._known_in_a_row = trade, trade.last, 0
            return [trade]
        top = self._top
        if top is None or (old and self.state is State.NEW):
            return self._set_position(trade, old)
        if self.state is State.NEW:
            self.state = State.LIVE
        if trade.last <= self._newest or self._is_held(trade):
            return self._add_known(trade, old)
        self._known_in_a_row = 0
        self._note_gap(trade, top, now)
        self._top = max(top, trade)
        if self.state is State.HELD:
            insort(self._held, trade)
            return self._shrink_gap(trade)
        self._send(trade)
        return [trade]

    def interrupt(self, began: float) -> None:
        """Hold what arrives from now on: trades may be missing since `began`."""
        if self._top is None:
            return
        self.gap_count += 1
        self.state = State.HELD
        gap = self._open_gap
        if gap is None:
            self.gaps.append(gap := Gap(self._top.last + 1, None, self._top, began))
        gap.late = False

    def fill(self, gap: Gap, trades: Iterable[Trade]) -> tuple[list[Trade], int]:
        """Take trades that the exchange returned for a gap. Also returns how many were missing."""
        sent, count = [], 0
        for trade in trades:
            if trade.last <= self._newest:
                if self.holes.take(trade.first, trade.last):
                    sent.append(trade)
                    count += 1
                continue
            # The feed sends what comes after the gap.
            if (gap.high is None or trade.last <= gap.high) and not self._is_held(trade):
                self._top = max(self._top or trade, trade)
                count += 1
                if self.state is State.HELD:
                    insort(self._held, trade)
                else:
                    self._send(trade)
                    sent.append(trade)
        return sent, count

    def answer(self, gap: Gap, upto: int, *, more: bool = False) -> list[Trade]:
        """Note that the exchange has returned all that it knows up to an ID, and whether it knows more."""
        gap.low = max(gap.low, upto + 1)
        gap.answered = gap.answered or not more
        # If IDs have no holes, the next trade from the feed tells whether there was more in an open gap.
        is_over = self._consecutive and not more if gap.high is None else upto >= gap.high
        return self.close(gap) if is_over else self._advance()

    def close(self, gap: Gap) -> list[Trade]:
        """Stop asking for a gap."""
        if gap in self.gaps:
            self.gaps.remove(gap)
        return self._advance()

    def is_filled(self, gap: Gap) -> bool:
        """Whether nothing of a closed gap is missing."""
        if not self._consecutive:
            return gap.answered
        end = self._top.last if gap.high is None and self._top is not None else gap.high or -1
        expected = max(gap.start, self._newest + 1)
        for trade in self._held:
            expected = trade.last + 1 if trade.first <= expected <= trade.last else expected
        # If it ends before its start, the exchange has started to count again.
        return gap.start - 1 <= end < expected and not self.holes.overlap(gap.start, end)

    def release(self) -> list[Trade]:
        """Stop holding. What is still missing is sent late."""
        for gap in self.gaps:
            gap.late = True
        return self._advance()

    def _set_position(self, trade: Trade, old: bool) -> list[Trade]:
        self._top = max(self._top or trade, trade)
        self._newest = self._top.last
        if old:
            return []
        self.state = State.LIVE
        return [trade]

    def _add_known(self, trade: Trade, old: bool) -> list[Trade]:
        if trade.last <= self._newest and self.holes.take(trade.first, trade.last):
            return [trade]
        if not old and self._is_renumbered(trade):
            return self._restart(trade)
        gap = self._open_gap
        if gap is not None and not self._consecutive and not old:
            # The exchange has returned this trade from the feed, and so all before it.
            gap.high = trade.last
            return self.close(gap) if gap.low > gap.high else []
        self._known_in_a_row += not old
        return self._restart(trade) if self._known_in_a_row >= _RESTARTED else []

    def _is_renumbered(self, trade: Trade) -> bool:
        """Whether the exchange has started to count again while this program didn't run."""
        last = self._began_after
        return last is not None and last is self._top and trade.nanoseconds > last.nanoseconds + _LATER

    def _restart(self, trade: Trade) -> list[Trade]:
        """Begin again with a trade of a new numbering."""
        sent = self.release()
        self.gaps.clear()
        self.holes = Holes(self.holes.size)
        self._top, self._known_in_a_row = None, 0
        return [*sent, *self._set_position(trade, old=False)]

    @property
    def _open_gap(self) -> Gap | None:
        """The gap whose end isn't known yet."""
        return self.gaps[-1] if self.gaps and self.gaps[-1].high is None else None

    def _note_gap(self, trade: Trade, top: Trade, now: float) -> None:
        """Find out whether trades are missing before a new one."""
        gap = self._open_gap
        if gap is not None:
            # Where IDs don't tell, the gap ends once the exchange returns this trade, too.
            gap.high = max(gap.low, trade.first - 1 if self._consecutive else trade.last)
            if self._consecutive and trade.first <= gap.start:
                self.gaps.remove(gap)
        elif self._consecutive and trade.first > top.last + 1:
            self.gap_count += 1
            self.state = State.HELD
            self.gaps.append(Gap(top.last + 1, trade.first - 1, top, now))
            if len(self.gaps) > _MOST_GAPS:
                del self.gaps[0]

    def _shrink_gap(self, trade: Trade) -> list[Trade]:
        """Look whether a held trade is the next one, and whether it ends a gap."""
        gap = self._blocking
        if self._consecutive and gap is not None and trade.first <= gap.low <= trade.last:
            gap.low = trade.last + 1
            if gap.high is not None and gap.low > gap.high:
                self.gaps.remove(gap)
            return self._advance()
        return self._advance() if gap is None else []

    @property
    def _blocking(self) -> Gap | None:
        """The first gap that holds trades back."""
        return next((gap for gap in self.gaps if not gap.late), None)

    def _is_held(self, trade: Trade) -> bool:
        position = bisect_left(self._held, (trade.last + 1,)) if self._held else 0
        return position > 0 and self._held[position - 1].last >= trade.first

    def _advance(self) -> list[Trade]:
        """Send what is held, up to the first gap that holds trades back."""
        if self.state is not State.HELD:
            return []
        gap = self._blocking
        end = len(self._held) if gap is None else bisect_left(self._held, (gap.low,))
        sent, self._held = self._held[:end], self._held[end:]
        for trade in sent:
            self._send(trade)
        if gap is None:
            self.state = State.LIVE
        return sent

    def _send(self, trade: Trade) -> None:
        if trade.first > self._newest + 1:
            self.holes.add(self._newest + 1, trade.first - 1)
        self._newest = max(self._newest, trade.last)
