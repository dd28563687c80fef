"""Paging through tick history, compared with a simulated server that knows all ticks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finx_streamer import CallTimeout, DecodeError, IncompleteHistory, Tick
from finx_streamer.functions.history import FetchSnap, HistoryWalk, SnapsRefused
from finx_streamer.wire.tick_list import BadTick, TickList

PAIR = "BTC:USDC"
#: How many ticks a full answer has in these tests, instead of 1,000.
PAGE_SIZE = 4
MIDNIGHT = datetime(2022, 7, 2, tzinfo=UTC)
NOON = MIDNIGHT + timedelta(hours=12)
DAY = timedelta(days=1)


def tick_at(moment: datetime, digits: str = "", exchange: str = "X") -> Tick:
    """Return a tick. `digits` follow the microseconds in its `time`; a timestamp doesn't keep them."""
    return {
        "pair": PAIR,
        "date": moment.date().isoformat(),
        "time": f"{moment.time().isoformat('microseconds')}{digits}Z",
        "exchange": exchange,
        "price": 1.0,
        "timestamp": moment,
        "received_ns": 0,
        "backfilled": True,
    }


def exact_time(tick: Tick) -> str:
    """Return a text that sorts by time, to the last digit."""
    return f"{tick['date']} {tick['time'].rstrip('Z'):0<20}"


def is_at_midnight(tick: Tick) -> bool:
    return not tick["time"].strip("0:.Z")


#: Answers with the ticks of a pair on a date after a time.
FetchPage = Callable[[str, str, str], Sequence[Tick | BadTick]]


class Request:
    """A request that a simulated server has answered already."""

    def __init__(self, found: Sequence[Tick | BadTick], on_read: Callable[[], None]) -> None:
        self.found = found
        self.is_open = True
        self._on_read = on_read

    def answer(self) -> TickList:
        """Return the answer."""
        assert self.is_open
        self.is_open = False
        bad = [tick for tick in self.found if isinstance(tick, BadTick)]
        good = [tick for tick in self.found if not isinstance(tick, BadTick)]
        times = [tick["timestamp"] for tick in good] + [tick.timestamp for tick in bad if tick.timestamp]

        def read() -> tuple[list[Tick], list[BadTick]]:
            self._on_read()
            return good, bad

        return TickList(len(self.found), max(times, default=None), read)

    def cancel(self) -> None:
        """Give it up."""
        assert self.is_open
        self.is_open = False


class Requests:
    """Sends the requests of a walk, of which one at a time may be open."""

    def __init__(self, fetch_page: FetchPage) -> None:
        self.sent: list[Request] = []
        #: How many had been sent when the ticks of each answer were decoded.
        self.sent_at_decoding: list[int] = []
        self._fetch_page = fetch_page

    def __call__(self, pair: str, date: str, time: str) -> Request:
        assert not self.are_open
        found = self._fetch_page(pair, date, time)
        self.sent.append(Request(found, lambda: self.sent_at_decoding.append(len(self.sent))))
        return self.sent[-1]

    @property
    def are_open(self) -> bool:
        """Whether one was neither answered nor cancelled."""
        return any(request.is_open for request in self.sent[-1:])


class SimulatedServer:
    """Knows all ticks, shuffles its answers and counts the requests.

    With `inclusive`, history "after" a time includes that time. Without `snaps`, tick snap is an unknown function.
    """

    def __init__(
        self,
        ticks: Iterable[Tick],
        page_size: int = PAGE_SIZE,
        *,
        inclusive: bool = False,
        snaps: bool = True,
        seed: int = 0,
    ) -> None:
        self.ticks = sorted(ticks, key=exact_time)
        self.page_size = page_size
        self.page_requests = self.snap_requests = 0
        self._inclusive = inclusive
        self._snaps = snaps
        self._random = random.Random(seed)

    def fetch_page(self, pair: str, date: str, time: str) -> list[Tick]:
        """Answer with the first ticks of one day after a time."""
        assert pair == PAIR
        assert len(time) == len("00:00:00.000")
        self.page_requests += 1
        after = f"{date} {time:0<20}"
        of_day = [tick for tick in self.ticks if tick["date"] == date]
        found = [tick for tick in of_day if exact_time(tick) > after or (self._inclusive and exact_time(tick) == after)]
        answer = found[: self.page_size]
        self._random.shuffle(answer)
        return answer

    def fetch_snap(self, pair: str, date: str, time: str) -> Tick | None:
        """Answer with the last tick at or before a time."""
        self.snap_requests += 1
        if not self._snaps:
            raise SnapsRefused("unknown function")
        moment = f"{date} {time:0<20}"
        return max((tick for tick in self.ticks if exact_time(tick) <= moment), key=exact_time, default=None)

    def ticks_between(self, start: datetime, end: datetime | None) -> list[Tick]:
        """Return the history that the client should find."""
        return [t for t in self.ticks if start <= t["timestamp"] and (end is None or t["timestamp"] < end)]

    def may_be_incomplete(self, start: datetime, end: datetime | None) -> bool:
        """Return whether the ticks of some millisecond fill an answer, so that it doesn't show where they end."""
        in_millisecond: Counter[datetime] = Counter()
        for tick in self.ticks_between(start - timedelta(milliseconds=1), end):
            moment: datetime = tick["timestamp"]
            up = moment + timedelta(microseconds=-moment.microsecond % 1_000)
            for millisecond in {up, up if moment != up else up + timedelta(milliseconds=1)}:
                in_millisecond[millisecond] += 1
        return any(count >= self.page_size for count in in_millisecond.values())


def walk(
    server: SimulatedServer,
    start: datetime,
    end: datetime | None,
    *,
    max_empty_days: int | None = None,
    fetch_page: FetchPage | None = None,
    fetch_snap: FetchSnap | None = None,
) -> Iterator[list[Tick]]:
    """Return the pages of a walk through the server's history."""
    fetch_page = fetch_page or server.fetch_page
    fetch_snap = fetch_snap or server.fetch_snap
    return HistoryWalk(Requests(fetch_page), fetch_snap, PAIR, start, end, server.page_size, max_empty_days).pages()


def read(server: SimulatedServer, start: datetime, end: datetime | None) -> list[Tick]:
    """Return the ticks of all pages, after checking that each page is sorted and later than the one before."""
    ticks: list[Tick] = []
    for page in walk(server, start, end):
        times = [tick["timestamp"] for tick in page]
        assert times
        assert times == sorted(times)
        assert not ticks or ticks[-1]["timestamp"] < times[0]
        ticks += page
    return ticks


def multiset(ticks: Iterable[Tick]) -> Counter[tuple[str, str]]:
    return Counter((exact_time(tick), tick["exchange"]) for tick in ticks)


def check_exact_or_refused(server: SimulatedServer, start: datetime, end: datetime | None) -> None:
    """Check that the client finds exactly the right ticks, or raises because it can't know them."""
    try:
        found = read(server, start, end)
    except IncompleteHistory:
        assert server.may_be_incomplete(start, end)
    else:
        assert multiset(found) == multiset(server.ticks_between(start, end))


def times(pages: Iterable[list[Tick]]) -> list[datetime]:
    return [tick["timestamp"] for page in pages for tick in page]


# Few different moments, so that ticks often share one: at midnight, on whole milliseconds, and between these.
_OFFSETS = st.one_of(
    st.integers(0, 5).map(lambda ms: timedelta(milliseconds=ms)),
    st.integers(0, 12).map(lambda n: timedelta(microseconds=n * 500 + n % 3)),
    st.integers(-6, -1).map(lambda n: timedelta(days=1, microseconds=n * 500)),
    st.sampled_from([timedelta(0), timedelta(hours=12), timedelta(hours=12, microseconds=1)]),
)
_DAYS = st.sampled_from([0, 0, 1, 2, 3, 9, 40, 41])
_MOMENTS = st.builds(lambda days, offset: MIDNIGHT + timedelta(days=days) + offset, _DAYS, _OFFSETS)
_TICKS = st.lists(
    st.builds(tick_at, _MOMENTS, st.sampled_from(["", "", "", "001", "9"]), st.sampled_from("XY")), max_size=40
)
_PAGE_SIZES = st.integers(2, 6)


def with_one_tick_per_midnight(ticks: list[Tick]) -> list[Tick]:
    """Drop all but one of the ticks at the same midnight: the protocol can't tell how many there are."""
    seen: set[str] = set()
    kept = []
    for tick in ticks:
        if is_at_midnight(tick):
            if tick["date"] in seen:
                continue
            seen.add(tick["date"])
        kept.append(tick)
    return kept


@given(_TICKS, _MOMENTS, st.one_of(st.none(), _MOMENTS), _PAGE_SIZES, st.integers(0, 3))
def test_history_is_exact_or_an_error(
    ticks: list[Tick], start: datetime, end: datetime | None, page_size: int, seed: int
) -> None:
    """The client finds each tick of [start, end) once, in order, or raises `IncompleteHistory`."""
    check_exact_or_refused(SimulatedServer(with_one_tick_per_midnight(ticks), page_size, seed=seed), start, end)


@given(_TICKS, _MOMENTS, st.one_of(st.none(), _MOMENTS), _PAGE_SIZES, st.booleans())
def test_bad_ticks_are_left_out_and_reported_once(
    ticks: list[Tick], start: datetime, end: datetime | None, page_size: int, timed: bool
) -> None:
    """Ticks of the exchange Y can't be read. All others are found, or the answers are refused."""
    errors: list[str] = []

    def spoil(tick: Tick) -> Tick | BadTick:
        if tick["exchange"] == "X":
            return tick
        return BadTick(DecodeError("bad", exact_time(tick)), tick["timestamp"] if timed else None)

    server = SimulatedServer(with_one_tick_per_midnight(ticks), page_size)
    pages = HistoryWalk(
        Requests(lambda *request: [spoil(tick) for tick in server.fetch_page(*request)]),
        lambda *request: spoil(found) if (found := server.fetch_snap(*request)) else None,
        PAIR,
        start,
        end,
        page_size,
        on_bad=lambda error: errors.append(str(error.payload)),
    ).pages()
    try:
        found = [tick for page in pages for tick in page]
    except IncompleteHistory:
        assert not timed or server.may_be_incomplete(start, end)
        return
    wanted = server.ticks_between(start, end)
    good = [tick for tick in wanted if tick["exchange"] == "X"]
    if timed:
        assert multiset(found) == multiset(good)
        assert Counter(errors) == Counter(exact_time(tick) for tick in wanted if tick["exchange"] == "Y")
    else:
        # Without snaps, ticks at exactly midnight can't be found.
        assert multiset(t for t in good if not is_at_midnight(t)) <= multiset(found) <= multiset(good)
        assert len(set(errors)) == len(errors)


def leap_tick(microsecond: int) -> Tick:
    """A tick in the leap second at the end of 2016."""
    tick = tick_at(datetime(2017, 1, 1, microsecond=microsecond, tzinfo=UTC))
    return {**tick, "date": "2016-12-31", "time": f"23:59:60.{microsecond:06}Z"}


_MICROSECONDS = st.sampled_from([1, 999, 1_000, 250_000, 500_000, 999_999])
_NEW_YEAR = datetime(2017, 1, 1, tzinfo=UTC)
_AROUND_LEAP_SECOND = st.builds(
    lambda seconds, micros: _NEW_YEAR + timedelta(seconds=seconds, microseconds=micros),
    st.integers(-2, 2),
    _MICROSECONDS,
)


@given(
    st.lists(st.builds(leap_tick, _MICROSECONDS), max_size=6),
    st.lists(st.builds(tick_at, _AROUND_LEAP_SECOND), max_size=20),
    _AROUND_LEAP_SECOND,
    st.one_of(st.none(), _AROUND_LEAP_SECOND),
    st.integers(3, 8),
)
def test_a_leap_second_is_read_as_the_next_second(
    leap: list[Tick], others: list[Tick], start: datetime, end: datetime | None, page_size: int
) -> None:
    """Its ticks have the date before it, and are delivered among those of the first second after it."""
    server = SimulatedServer(leap + others, page_size)
    wanted = server.ticks_between(start, end)
    try:
        found = read(server, start, end)
    except IncompleteHistory:
        # The request for the leap second also finds the ticks of the millisecond before it.
        before = _NEW_YEAR - timedelta(milliseconds=1)
        found = leap + [tick for tick in others if before < tick["timestamp"] < _NEW_YEAR]
        assert len(found) >= page_size or server.may_be_incomplete(start, end)
    else:
        assert multiset(found) == multiset(wanted)


@given(_TICKS, _MOMENTS, _MOMENTS, _PAGE_SIZES)
def test_history_without_snaps_is_exact_except_at_midnight(
    ticks: list[Tick], start: datetime, end: datetime, page_size: int
) -> None:
    """Without tick snap, each day is requested, and only ticks at exactly midnight are left out."""
    server = SimulatedServer([tick for tick in ticks if not is_at_midnight(tick)], page_size, snaps=False)
    check_exact_or_refused(server, start, end)
    assert server.snap_requests <= 1


@given(_TICKS, _MOMENTS, _MOMENTS, _PAGE_SIZES)
def test_history_is_exact_if_after_includes_the_time_itself(
    ticks: list[Tick], start: datetime, end: datetime, page_size: int
) -> None:
    """If "after" means "at or after", no tick is returned twice, and all ticks at midnight are found."""
    check_exact_or_refused(SimulatedServer(ticks, page_size, inclusive=True), start, end)


@pytest.mark.parametrize("start", [MIDNIGHT, MIDNIGHT - timedelta(hours=1)], ids=["from midnight", "over midnight"])
def test_finds_a_tick_at_exactly_midnight(start: datetime) -> None:
    """No history includes that tick, since it isn't after any time of its day; tick snap returns it."""
    around = [MIDNIGHT - timedelta(seconds=1), MIDNIGHT, MIDNIGHT + timedelta(seconds=1)]
    server = SimulatedServer(map(tick_at, around))
    found = read(server, start, MIDNIGHT + timedelta(hours=1))
    assert multiset(found) == multiset(server.ticks_between(start, None))


def test_a_tick_just_after_midnight_is_not_at_midnight() -> None:
    """Digits beyond the microseconds decide, although a timestamp doesn't have them."""
    server = SimulatedServer([tick_at(MIDNIGHT, "0001"), tick_at(MIDNIGHT, "0001")])
    found = read(server, MIDNIGHT, MIDNIGHT + timedelta(hours=1))
    assert [tick["time"] for tick in found] == ["00:00:00.0000000001Z"] * 2


def test_a_full_answer_within_one_millisecond_is_an_error() -> None:
    """The client neither loops, nor guesses, nor returns a shorter history."""
    hour = MIDNIGHT + timedelta(hours=1)
    server = SimulatedServer([tick_at(hour)] * PAGE_SIZE)
    with pytest.raises(IncompleteHistory, match=r"2022-07-02.*00:59:59\.999.*within one millisecond"):
        read(server, hour, hour + timedelta(hours=1))


def test_a_millisecond_that_almost_fills_an_answer_is_complete() -> None:
    """A millisecond whose ticks fit one answer is found, even if a full answer had cut it short."""
    minute = timedelta(minutes=1)
    before, during, after = [tick_at(NOON - minute)] * 2, [tick_at(NOON)] * (PAGE_SIZE - 1), [tick_at(NOON + minute)]
    assert len(read(SimulatedServer(before + during + after), MIDNIGHT, None)) == PAGE_SIZE + 2


def test_a_full_answer_that_reaches_beyond_the_end_is_complete() -> None:
    """Such an answer is complete up to the end, even within a millisecond."""
    server = SimulatedServer([tick_at(NOON + timedelta(microseconds=n)) for n in range(PAGE_SIZE)])
    assert len(read(server, NOON, NOON + timedelta(microseconds=PAGE_SIZE - 1))) == PAGE_SIZE - 1


def test_a_server_that_repeats_its_answer_is_an_error() -> None:
    """If the server answers with the same ticks at any time, the client doesn't loop."""
    same = [tick_at(MIDNIGHT + timedelta(seconds=n)) for n in range(PAGE_SIZE)]
    requests = Requests(lambda pair, date, time: list(same))
    pages = HistoryWalk(requests, None, PAIR, MIDNIGHT, MIDNIGHT + DAY, PAGE_SIZE).pages()
    with pytest.raises(IncompleteHistory):
        list(pages)


@given(_TICKS, _MOMENTS, _PAGE_SIZES, st.integers(0, 4))
def test_one_page_is_requested_ahead_and_cancelled_at_the_end(
    ticks: list[Tick], start: datetime, page_size: int, used: int
) -> None:
    """After any number of pages, closing the walk leaves no request open. Each request is for another time."""
    server = SimulatedServer(with_one_tick_per_midnight(ticks), page_size)
    asked: list[tuple[str, str, str]] = []

    def fetch_page(*request: str) -> list[Tick]:
        asked.append(request)
        return server.fetch_page(*request)

    requests = Requests(fetch_page)
    pages = HistoryWalk(requests, server.fetch_snap, PAIR, start, start + 60 * DAY, page_size).pages()
    try:
        for _ in range(used):
            next(pages, None)
    except IncompleteHistory:
        pass
    pages.close()
    assert not requests.are_open
    # A request may be repeated once, when the day has ended meanwhile.
    assert max(Counter(asked).values(), default=0) <= 2


def test_the_next_page_is_requested_before_the_ticks_are_decoded() -> None:
    """The server works on the next page in the meantime."""
    server = SimulatedServer([tick_at(NOON + timedelta(seconds=n)) for n in range(4 * PAGE_SIZE)])
    requests = Requests(server.fetch_page)
    pages = HistoryWalk(requests, server.fetch_snap, PAIR, NOON, NOON + DAY / 4, PAGE_SIZE).pages()
    assert multiset(tick for page in pages for tick in page) == multiset(server.ticks)
    count = len(requests.sent)
    assert requests.sent_at_decoding == [*range(2, count + 1), count]


def test_skips_years_without_ticks() -> None:
    """An empty stretch takes a few requests, not one for each of 4,000 days."""
    server = SimulatedServer([tick_at(MIDNIGHT), tick_at(MIDNIGHT + 1_500 * DAY), tick_at(MIDNIGHT + 4_000 * DAY)])
    found = read(server, MIDNIGHT - 1_000 * DAY, MIDNIGHT + 5_000 * DAY)
    assert len(found) == 3
    assert server.page_requests + server.snap_requests < 120


@given(st.dates(date(1970, 1, 1), date(2030, 1, 1)), st.dates(date(1970, 1, 1), date(2030, 1, 1)), st.booleans())
@example(date(2009, 1, 3), date(2026, 3, 1), True)
@example(date(1970, 1, 1), date(2030, 1, 1), False)
def test_any_start_takes_a_handful_of_requests(start: date, first: date, dense: bool) -> None:
    """The first tick is found, however long before it the interval starts."""
    start, first = min(start, first), max(start, first)
    noon = datetime.combine(first, time(12), UTC)
    ticks = [tick_at(noon + n * DAY) for n in range(20 if dense else 1)]
    server = SimulatedServer(ticks)
    pages = walk(server, datetime.combine(start, time(), UTC), noon + 400 * DAY)
    assert times([next(pages)]) == [noon]
    assert server.page_requests + server.snap_requests <= 22


@pytest.mark.parametrize("max_empty_days", [49, 50, None])
def test_gives_up_after_too_many_empty_days(max_empty_days: int | None) -> None:
    """Without snaps, the client requests at most that many empty days in a row."""
    noons = [NOON, NOON + 50 * DAY]
    server = SimulatedServer(map(tick_at, noons), snaps=False)
    pages = walk(server, MIDNIGHT, MIDNIGHT + 60 * DAY, max_empty_days=max_empty_days)
    assert times([next(pages)]) == noons[:1]
    if max_empty_days == 49:
        with pytest.raises(IncompleteHistory, match="no tick on 49 days in a row"):
            next(pages)
        # Without snaps each day is requested twice, because it may have ended in between.
        assert server.page_requests <= 2 * 50
    else:
        assert times(pages) == noons[1:]


def test_a_short_interval_takes_few_requests() -> None:
    """It takes one page; and, if the end is open, one snap to learn whether another day follows."""
    server = SimulatedServer([tick_at(NOON + timedelta(seconds=n)) for n in range(PAGE_SIZE - 1)])
    assert len(list(walk(server, NOON, NOON + timedelta(minutes=5)))) == 1
    assert (server.page_requests, server.snap_requests) == (1, 0)
    assert len(list(walk(server, NOON, None))) == 1
    assert (server.page_requests, server.snap_requests) == (2, 1)


def test_an_open_end_does_not_depend_on_our_clock() -> None:
    """Ticks of a server whose clock is ahead are found, up to a day beyond our time."""
    ahead = datetime.now(UTC) + timedelta(hours=20)
    server = SimulatedServer([tick_at(ahead - 3 * DAY), tick_at(ahead)])
    assert len(read(server, ahead - 4 * DAY, None)) == 2


@pytest.mark.parametrize("snaps", [True, False])
def test_a_day_that_ends_between_two_requests_is_complete(snaps: bool) -> None:
    """Ticks that arrive between the last request of one day and the first of the next are found."""
    evening, late, morning = (MIDNIGHT + timedelta(hours=hours) for hours in (23, 23.9, 25))
    server = SimulatedServer([tick_at(evening)], snaps=snaps)

    def fetch_page(pair: str, date: str, time: str) -> list[Tick]:
        answer = server.fetch_page(pair, date, time)
        if server.page_requests == 1:
            server.ticks += [tick_at(late), tick_at(morning)]
        return answer

    pages = walk(server, evening, MIDNIGHT + 2 * DAY, fetch_page=fetch_page)
    assert times(pages) == [evening, late, morning]


def test_pages_are_fetched_on_demand() -> None:
    """While a page is used, only the next one is requested."""
    server = SimulatedServer([tick_at(MIDNIGHT + timedelta(seconds=n)) for n in range(100)])
    pages = walk(server, MIDNIGHT, MIDNIGHT + DAY)
    assert server.page_requests == 0
    next(pages)
    assert server.page_requests == 2


def test_a_timeout_is_not_a_refusal() -> None:
    """A snap without an answer says nothing about the function, so the caller gets the error."""

    def time_out(pair: str, date: str, time: str) -> Tick | None:
        raise CallTimeout("tickSnap", {}, "no answer")

    with pytest.raises(CallTimeout):
        list(walk(SimulatedServer([]), MIDNIGHT, None, fetch_snap=time_out))


def test_an_empty_interval_takes_no_request() -> None:
    """There is nothing to ask for between equal times."""
    server = SimulatedServer([tick_at(MIDNIGHT)])
    assert read(server, MIDNIGHT, MIDNIGHT) == []
    assert server.page_requests + server.snap_requests == 0
