"""Tick history, page by page, exact at the seams. No socket, no key, no thread: two functions fetch for it.

The server gives at most 1,000 ticks of one UTC day after a time, and a time can be told to the millisecond. A full page
ends somewhere among ticks of the same moment, so it is trusted up to a whole millisecond that it goes beyond, and the
next page begins there: what lies in (after, upto] is taken from one page only, by the ticks' own times. Nothing is
compared with anything, for equal ticks are different trades.

Two things the protocol leaves in the dark. Where a full page lies within one millisecond, the rest of that millisecond
can't be asked for: `IncompleteHistory`. And "after midnight" leaves out a tick at exactly 00:00:00, which no other day
has either: it is looked for by tick snap, which knows one tick of that moment, and not how many there were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter

import attrs

from ..errors import CallTimeout, ConfigurationError, FunctionError, IncompleteHistory
from ..values import Tick

logger = logging.getLogger("finx_streamer")

#: The most ticks in an answer. Source: D.
PAGE = 1_000

#: Asks tick history: the ticks of a pair on a date (YYYY-MM-DD) after a time (HH:MM:SS.fff, UTC), in any order.
Fetch = Callable[[str, str, str], list[Tick]]
#: Asks tick snap: the last tick of a pair at or before a date and time; None where there is none. `FunctionError` where
#: that can't be known.
Snap = Callable[[str, str, str], Tick | None]

_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_DAY = timedelta(days=1)

_timestamp = itemgetter("timestamp")


def pages(
    fetch: Fetch,
    snap: Snap | None,
    pair: str,
    start: datetime,
    end: datetime | None,
    limit: int = PAGE,
    empty_days: int | None = None,
) -> Iterator[list[Tick]]:
    """The ticks of `start` <= time < `end` (aware datetimes), in lists that are never empty.

    Each list is sorted by time, and no tick of a later list is as early as one of an earlier list; the order among
    ticks of the same time is the server's whim. Days without ticks are leapt over with the help of `snap`; where that
    is None, or is refused (`FunctionError`, which is logged), they are asked for one by one.

    `end` None: up to the last tick there is when it is asked for, by the server's clock and not by ours. That takes
    `snap`; without it, days are asked for up to the day after today.

    `limit` is how many ticks a full answer has. One history call a list and at least one a day with ticks, and two snap
    calls a day at most, besides some where days are empty. `empty_days` is how many days in a row may be asked for in
    vain; None: any number. Raises `IncompleteHistory` beyond that, and where a full answer lies within one millisecond;
    and whatever `fetch` and `snap` raise.
    """
    until = end.astimezone(UTC) if end else None
    return _Walk(fetch, snap, pair, start.astimezone(UTC), until, limit, empty_days).pages()


@attrs.define
class _Walk:
    """One way from start to end."""

    fetch: Fetch
    snap: Snap | None
    pair: str
    start: datetime
    end: datetime | None
    limit: int
    empty_days: int | None
    #: The time of the last tick before the end, as far as snap has told.
    last: datetime | None = None
    #: The day that had been read when snap was last asked.
    asked: date | None = None

    @property
    def horizon(self) -> datetime:
        """Where to end at the latest. A clock may be wrong, but hardly by a day."""
        return self.end or max(self.start, datetime.now(UTC)) + _DAY

    def pages(self) -> Iterator[list[Tick]]:
        if self.start >= self.horizon:
            return
        day: date | None = self.start.date()
        in_vain = 0
        while day is not None:
            in_vain += 1
            for page in self._day(day):
                in_vain = 0
                yield page
            if in_vain and in_vain == self.empty_days:
                asked = {"pair": self.pair, "date": day.isoformat()}
                raise IncompleteHistory("tickHistory", asked, f"no tick on {in_vain} days in a row: that is far enough")
            day = self._next_day(day, in_vain == 0)

    # Within a day.

    def _day(self, day: date) -> Iterator[list[Tick]]:
        """The pages of one day."""
        midnight = _midnight(day)
        stop = min(midnight + _DAY, self.horizon)
        low = max(self.start, midnight)
        after = max(midnight, _ceil(low) - _MILLISECOND)
        while after < stop:
            over = stop < midnight + _DAY or self._is_over(day)
            answer = self._answer(day, after)
            if not over and len(answer) < self.limit and self._is_over(day, ask=True):
                # It ended while it was asked about: the last of its ticks may have come after the answer.
                answer = self._answer(day, after)
            upto = self._sure(answer, after, stop) if len(answer) >= self.limit else stop
            page = [tick for tick in answer if low <= tick["timestamp"] <= upto and tick["timestamp"] < stop]
            if low == midnight == after:
                page = self._at_midnight(day, page) + page
            if page:
                yield page
            after, low = upto, upto + _MICROSECOND

    def _answer(self, day: date, after: datetime) -> list[Tick]:
        return sorted(self.fetch(self.pair, day.isoformat(), _clock(after)), key=_timestamp)

    def _sure(self, answer: list[Tick], after: datetime, stop: datetime) -> datetime:
        """Up to which millisecond a full answer is all there is: there may be more ticks of its last moment."""
        last: datetime = answer[-1]["timestamp"]
        if last >= stop:
            return stop
        upto = _floor(last)
        if upto == last:
            upto -= _MILLISECOND
        if upto <= after:
            raise IncompleteHistory(
                "tickHistory",
                {"pair": self.pair, "date": after.date().isoformat(), "time": _clock(after)},
                f"{len(answer)} ticks within one millisecond: there may be more of them, and no way to ask for those",
            )
        return upto

    def _at_midnight(self, day: date, page: list[Tick]) -> list[Tick]:
        """The tick at exactly 00:00:00, of which no history tells; none where a server tells of it all the same."""
        if any(map(_is_midnight, page)):
            return []
        midnight = _midnight(day)
        tick = self._last_before(midnight)
        # Of times that are cut to microseconds, one just after midnight is at midnight, too.
        return [tick] if tick is not None and tick["timestamp"] == midnight and _is_midnight(tick) else []

    # From day to day.

    def _next_day(self, day: date, found: bool) -> date | None:
        """The next day that may have ticks; None where there is none before the end."""
        following = day + _DAY
        if _midnight(following) >= self.horizon:
            return None
        over = self._is_over(day, ask=True)
        if self.snap is None:
            return following
        if self.last is None or not over:
            return None
        return following if found else self._leap(following, self.last.date())

    def _is_over(self, day: date, ask: bool = False) -> bool:
        """Whether this day is complete, because there are later ticks.

        With `ask` the server is asked, once a day, if that is not known. True where snap is refused, for nothing better
        can be known then.
        """
        if ask and self.asked != day and (self.last is None or self.last.date() <= day):
            # Anew, where the last answer has been reached: more may have come.
            self.asked = day
            latest = self._last_before(_ceil(self.horizon))
            self.last = latest["timestamp"] if latest is not None else None
        return (ask and self.snap is None) or (self.last is not None and self.last.date() > day)

    def _leap(self, low: date, high: date) -> date:
        """The first day from `low` on that has ticks, or one before it. `high` has some."""
        step = _DAY
        while low < high:
            middle = min(low + step, low + (high - low) // 2)
            # Not the last millisecond of that day, for there may be ticks within it.
            tick = self._last_before(_midnight(middle + _DAY))
            if self.snap is None:
                break
            if tick is None or tick["timestamp"] < _midnight(low):
                low, step = middle + _DAY, 2 * step
            elif tick["timestamp"].date() < high:
                high = tick["timestamp"].date()
            else:
                break  # at exactly the beginning of `high`: of the days before it this says nothing
        return low

    def _last_before(self, moment: datetime) -> Tick | None:
        """The last tick at or before this, if there is one. A snap that is refused is not asked again."""
        if self.snap is None:
            return None
        try:
            return self.snap(self.pair, moment.date().isoformat(), _clock(moment))
        except FunctionError as refusal:
            if isinstance(refusal, CallTimeout):
                raise
            logger.warning("history goes on day by day, without ticks of exactly midnight: %s", refusal)
            self.snap = None
            return None


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _floor(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)


def _ceil(moment: datetime) -> datetime:
    floor = _floor(moment)
    return floor if floor == moment else floor + _MILLISECOND


def _clock(moment: datetime) -> str:
    """The time of day as requests have it: milliseconds are the finest they can say."""
    return moment.time().isoformat("milliseconds")


def _is_midnight(tick: Tick) -> bool:
    """Whether the wire's own text, which may be finer than a timestamp, says exactly 00:00:00."""
    return not tick["time"].strip("0:.Z")


def shown_by_time(pages: Iterator[list[Tick]], pair: str, start: datetime, end: datetime) -> Iterator[list[Tick]]:
    """The same pages, while a bar shows how much of the time from start to end is covered.

    Raises `ConfigurationError` at once where tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise ConfigurationError(
            'progress=True needs tqdm, which is not installed: pip install "finx-streamer[progress]"'
        ) from None

    def shown() -> Iterator[list[Tick]]:
        form = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
        ticks = 0
        with tqdm(total=(end - start).total_seconds(), desc=pair, bar_format=form) as bar:
            for page in pages:
                ticks += len(page)
                bar.set_postfix_str(f"{ticks:,} ticks", refresh=False)
                bar.update((page[-1]["timestamp"] - start).total_seconds() - bar.n)
                yield page
            bar.update((end - start).total_seconds() - bar.n)

    return shown()
