"""Read tick history page by page, without duplicates and without holes.

No socket, key or thread: two functions make the requests.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Protocol

import attrs

from ..errors import ConfigurationError, DecodeError, IncompleteHistory
from ..values import Tick
from ..wire.tick_list import BadTick, TickList

logger = logging.getLogger("finx_streamer")

#: The most ticks in one answer. Source: D.
PAGE_SIZE = 1_000


class PageRequest(Protocol):
    """A request for a page of history that was sent."""

    def answer(self) -> TickList:
        """Wait for the answer. Raises any `FinxStreamerError`."""

    def cancel(self) -> None:
        """Give it up. Returns at once."""


#: Requests tick history: the ticks of a pair on a date (YYYY-MM-DD) after a time (HH:MM:SS.fff, UTC), in any order.
RequestPage = Callable[[str, str, str], PageRequest]
#: Requests a tick snap: the last tick of a pair at or before a date and time, or None if there is none. Raises
#: `SnapsRefused` if the server doesn't offer snaps.
FetchSnap = Callable[[str, str, str], Tick | BadTick | None]
#: Decides about a tick that can't be read: it may raise. Otherwise the tick is left out.
OnBad = Callable[[DecodeError], object]

_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)

_timestamp: Callable[[Tick], datetime] = itemgetter("timestamp")


def raise_error(error: DecodeError) -> None:
    """Raise it."""
    raise error


class SnapsRefused(Exception):
    """The server doesn't offer tick snaps. The argument is its error."""


@attrs.define
class HistoryWalk:
    """The walk through a pair's history, from `start` up to, but not including, `end`.

    An answer holds at most 1,000 ticks of one UTC day after a time, and a request can't be finer than a millisecond. A
    full answer may have cut its last moment short. It is therefore used only up to the last millisecond that it surely
    covers, and the next request starts there. Each millisecond comes from one answer, so ticks needn't be compared:
    equal ticks are different trades. That start is known before the answer's ticks are decoded, so the next request is
    sent first, and the server works while they are decoded and used.

    The protocol leaves two limits. If one millisecond fills an answer, the rest of it can't be requested:
    `IncompleteHistory`. And "after midnight" excludes a tick at exactly 00:00:00, which no other day includes. A tick
    snap finds one such tick, but can't tell how many there were.

    Args:
        request_page: Requests tick history.
        fetch_snap: Requests a tick snap, which is used to skip days without ticks. If it is None, or the server refuses
            it, each day is requested.
        pair: The pair, such as "BTC:USDC".
        start: A datetime in UTC.
        end: A datetime in UTC, or None for the last tick there is, by the server's clock. Without snaps, None means the
            end of the day after today.
        page_size: How many ticks a full answer has.
        max_empty_days: How many days in a row may be requested without finding a tick. None: no limit.
        on_bad: Called once with the error of each tick that can't be read. If it returns, the tick is left out.
    """

    request_page: RequestPage
    fetch_snap: FetchSnap | None
    pair: str
    start: datetime
    end: datetime | None
    page_size: int = PAGE_SIZE
    max_empty_days: int | None = None
    on_bad: OnBad = raise_error
    #: The time of the last tick before the end, according to the newest snap of it.
    _latest: datetime | None = attrs.field(init=False, default=None)
    #: The day that had been read when that snap was requested.
    _latest_requested_on: date | None = attrs.field(init=False, default=None)
    #: The bad ticks without a time that were reported: answers may overlap there.
    _reported: set[str | bytes] = attrs.field(init=False, factory=set)
    #: The request for the next page of the day, if it was sent already.
    _ahead: PageRequest | None = attrs.field(init=False, default=None)

    def pages(self) -> Generator[list[Tick], None, None]:
        """Yield sorted, non-empty lists of ticks, each later than the one before.

        While you use a page, the next one may have been requested. Closing the iterator cancels that.

        A page takes one history call, and a day at least one. Besides, a day takes at most two snap calls, and a run of
        empty days a few.

        Raises:
            IncompleteHistory: A full answer lies within one millisecond, or there were `max_empty_days` empty days.
            FinxStreamerError: Anything that `request_page`, `fetch_snap` and `on_bad` raise.
        """
        if self.start >= self._horizon:
            return
        # A leap second's ticks have the date before, and times within the first second of this one.
        try:
            early = self._leap_second_before(self.start)
            for page in self._pages():
                if page[0]["timestamp"].date().isoformat() > page[0]["date"]:
                    early += page
                    continue
                merged = sorted(early + page, key=_timestamp) if early else page
                early = [tick for tick in early if tick["timestamp"] > page[-1]["timestamp"]]
                yield merged[: len(merged) - len(early)]
            if early:
                yield sorted(early, key=_timestamp)
        finally:
            if self._ahead is not None:
                self._ahead.cancel()

    def _pages(self) -> Iterator[list[Tick]]:
        """As `pages`, but leap seconds come as pages of their own, before the day whose first second they share."""
        day: date | None = self.start.date()
        empty_days = 0
        while day is not None:
            empty_days += 1
            for page in self._pages_of_day(day):
                empty_days = 0
                yield page
            if empty_days and empty_days == self.max_empty_days:
                reason = f"no tick on {empty_days} days in a row; gave up"
                raise IncompleteHistory("tickHistory", {"pair": self.pair, "date": day.isoformat()}, reason)
            day = self._next_day(day, skip_empty_days=empty_days > 0)

    @property
    def _horizon(self) -> datetime:
        """The time at which the walk ends at the latest. This machine's clock may be wrong, but hardly by a day."""
        return self.end or max(self.start, datetime.now(UTC)) + _DAY

    def _pages_of_day(self, day: date) -> Iterator[list[Tick]]:
        midnight = _midnight(day)
        stop = min(midnight + _DAY, self._horizon)
        low = max(self.start, midnight)
        after = max(midnight, _last_millisecond_before(low))
        while after < stop:
            complete = stop < midnight + _DAY or self._has_later_ticks(day)
            answer = self._answer(day, after)
            if not complete and answer.size < self.page_size and self._ask_for_later_ticks(day):
                # The day ended between the two requests: its last ticks may be missing from the answer.
                answer = self._answer(day, after)
            upto = self._last_complete_millisecond(answer, after, stop)
            # At midnight, a snap comes first: it might have to wait for the connection.
            if upto < stop and low != midnight:
                self._ahead = self._request(day, upto)
            page = self._read(answer, low, min(upto, stop - _MICROSECOND))
            if low == midnight:
                page = self._tick_at_midnight(day, page) + page
                if upto < stop:
                    self._ahead = self._request(day, upto)
            if page:
                yield page
            has_leap_second = answer.reached is not None and answer.reached >= midnight + _DAY == stop
            if has_leap_second and (leap := self._leap_second(day)):
                yield leap
            after, low = upto, upto + _MICROSECOND

    def _leap_second_before(self, start: datetime) -> list[Tick]:
        """Return the ticks of a leap second that share the first second of an interval."""
        # All leap seconds since the first one, in 1972, were inserted before these days (source: IERS).
        if start.year < 1972 or (start.month, start.day) not in ((1, 1), (7, 1)) or start >= _midnight(start) + _SECOND:
            return []
        return self._leap_second(start.date() - _DAY)

    def _leap_second(self, day: date) -> list[Tick]:
        """Return the ticks of the leap second at the end of a day, from `start` up to `end`."""
        midnight = _midnight(day) + _DAY
        answer = self._answer(day, _last_millisecond_before(midnight))
        if answer.size >= self.page_size and answer.reached and answer.reached >= midnight:
            raise self._incomplete(midnight - _MILLISECOND, f"{answer.size} ticks in a leap second: there may be more")
        low, high = max(midnight, self.start), min(midnight + _SECOND, self._horizon)
        return self._read(answer, low, high - _MICROSECOND)

    def _request(self, day: date, after: datetime) -> PageRequest:
        return self.request_page(self.pair, day.isoformat(), _time_of_day(after))

    def _answer(self, day: date, after: datetime) -> TickList:
        """Return the answer to the request that is ahead, or to a new one."""
        request, self._ahead = self._ahead or self._request(day, after), None
        return request.answer()

    def _read(self, answer: TickList, low: datetime, high: datetime) -> list[Tick]:
        """Return the ticks of an answer from `low` to `high`, sorted by time, and report the bad ones."""
        ticks, bad = answer.read()
        ticks.sort(key=_timestamp)
        self._report(bad, low, high)
        begin, end = bisect_left(ticks, low, key=_timestamp), bisect_right(ticks, high, key=_timestamp)
        return ticks[begin:end]

    def _last_complete_millisecond(self, answer: TickList, after: datetime, stop: datetime) -> datetime:
        """Return the time up to which an answer is complete: a full one may have cut its last moment short."""
        if answer.size < self.page_size or (answer.reached and answer.reached >= stop):
            return stop
        if answer.reached is None:
            raise self._incomplete(after, f"{answer.size} ticks whose time can't be read: there may be more")
        upto = _last_millisecond_before(answer.reached)
        if upto <= after:
            reason = f"{answer.size} ticks within one millisecond: there may be more, and they can't be requested"
            raise self._incomplete(after, reason)
        return upto

    def _incomplete(self, after: datetime, reason: str) -> IncompleteHistory:
        arguments = {"pair": self.pair, "date": after.date().isoformat(), "time": _time_of_day(after)}
        return IncompleteHistory("tickHistory", arguments, reason)

    def _report(self, bad: list[BadTick], low: datetime, high: datetime) -> None:
        """Report the bad ticks of a time range, and those without a time once."""
        for tick in bad:
            if tick.timestamp is None and tick.error.payload not in self._reported:
                self._reported.add(tick.error.payload)
                self.on_bad(tick.error)
            elif tick.timestamp is not None and low <= tick.timestamp <= high:
                self.on_bad(tick.error)

    def _tick_at_midnight(self, day: date, page: list[Tick]) -> list[Tick]:
        """Return the tick at exactly 00:00:00, unless the page has it already."""
        if any(map(_is_at_midnight, page)):
            return []
        midnight = _midnight(day)
        tick = self._snap(midnight)
        if isinstance(tick, BadTick):
            self._report([tick], midnight, midnight)
            return []
        # The timestamp alone doesn't decide: it is cut to microseconds.
        return [tick] if tick and tick["timestamp"] == midnight and _is_at_midnight(tick) else []

    def _next_day(self, day: date, *, skip_empty_days: bool) -> date | None:
        """Return the next day that may have ticks, or None at the end."""
        following = day + _DAY
        if _midnight(following) >= self._horizon or not self._ask_for_later_ticks(day):
            return None
        if self._latest is None or not skip_empty_days:
            return following
        return self._first_day_with_ticks(following, self._latest.date())

    def _has_later_ticks(self, day: date) -> bool:
        """Return whether ticks of a later day are known, so that this day is complete."""
        return self._latest is not None and self._latest.date() > day

    def _ask_for_later_ticks(self, day: date) -> bool:
        """As `_has_later_ticks`, but ask the server once a day if none are known. Without snaps, assume so."""
        if self._latest_requested_on != day and not self._has_later_ticks(day):
            self._latest_requested_on = day
            latest = self._snap(_last_millisecond_before(self._horizon) + _MILLISECOND)
            self._latest = _time_of(latest) if latest else None
        return self.fetch_snap is None or self._has_later_ticks(day)

    def _first_day_with_ticks(self, low: date, high: date) -> date:
        """Return the first day from `low` on that has ticks, or an earlier one. `high` has ticks."""
        step = _DAY
        while low < high:
            middle = low + min(step, (high - low) // 2)
            # Not one millisecond earlier: that millisecond may have ticks, too.
            tick = self._snap(_midnight(middle + _DAY))
            if self.fetch_snap is None:
                break
            time = _time_of(tick) if tick else None
            if time is None or time < _midnight(low):
                # Holes are short, but the time before the first tick of all may be long.
                step = high - low if tick is None else min(2 * step, high - low)
                low = middle + _DAY
            elif time.date() < high:
                high = time.date()
            else:
                break  # A tick at the first moment of `high` hides those of the days before.
        return low

    def _snap(self, moment: datetime) -> Tick | BadTick | None:
        """Return the last tick at or before a moment. If the server refuses, or its time is bad, don't ask again."""
        if self.fetch_snap is None:
            return None
        try:
            tick = self.fetch_snap(self.pair, moment.date().isoformat(), _time_of_day(moment))
            if isinstance(tick, BadTick) and tick.timestamp is None:
                raise SnapsRefused(tick.error)
            return tick
        except SnapsRefused as refusal:
            logger.warning(
                "%s: tick snaps can't be used, so every day of history is requested, and ticks at exactly "
                "midnight UTC are left out: %s",
                self.pair,
                refusal,
            )
            self.fetch_snap = None
            return None


def with_progress_bar(pages: Iterator[list[Tick]], pair: str, start: datetime, end: datetime) -> Iterator[list[Tick]]:
    """Return the same pages, and show on stderr how much of the time from start to end they cover.

    Raises:
        ConfigurationError: tqdm is not installed. Raised by the call itself, not by the first `next`.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise ConfigurationError(
            'progress=True needs tqdm, which is not installed: pip install "finx-streamer[progress]"'
        ) from None

    def show() -> Iterator[list[Tick]]:
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
        ticks = 0
        with tqdm(total=(end - start).total_seconds(), desc=pair, bar_format=bar_format) as bar:
            for page in pages:
                ticks += len(page)
                bar.set_postfix_str(f"{ticks:,} ticks", refresh=False)
                bar.update((page[-1]["timestamp"] - start).total_seconds() - bar.n)
                yield page
            bar.update((end - start).total_seconds() - bar.n)

    return show()


def _time_of(tick: Tick | BadTick) -> datetime:
    found = tick.timestamp if isinstance(tick, BadTick) else tick["timestamp"]
    assert found is not None, "`_snap` refuses it"
    return found


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _last_millisecond_before(moment: datetime) -> datetime:
    """Return the last whole millisecond that is earlier than a moment."""
    earlier = moment - _MICROSECOND
    return earlier.replace(microsecond=earlier.microsecond // 1_000 * 1_000)


def _time_of_day(moment: datetime) -> str:
    """Return the time as requests have it, in milliseconds."""
    return moment.time().isoformat("milliseconds")


def _is_at_midnight(tick: Tick) -> bool:
    """Return whether the server's own text, which may be finer than the timestamp, says exactly 00:00:00."""
    return not tick["time"].strip("0:.Z")
