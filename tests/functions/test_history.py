"""Paging through tick history, against a model that knows all ticks: exactly those asked for, or an error."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import CallTimeout, FunctionError, IncompleteHistory, Tick
from finx_streamer.functions.history import pages

PAIR = "BTC:USDC"
#: What answers hold in these tests, in the place of 1,000.
LIMIT = 4
DAY = datetime(2022, 7, 2, tzinfo=UTC)


def at(moment: datetime, digits: str = "", exchange: str = "X") -> Tick:
    """A tick; `digits` are put behind those of the microseconds, which a timestamp does not keep."""
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


def exact(tick: Tick) -> str:
    """Sorts as time does, to the last digit."""
    return f"{tick['date']} {tick['time'].rstrip('Z'):0<20}"


class Model:
    """A server that knows all ticks, and counts what it is asked. Its answers are shuffled."""

    def __init__(self, ticks: Iterable[Tick], limit: int = LIMIT, *, inclusive: bool = False, seed: int = 0) -> None:
        self.ticks = sorted(ticks, key=exact)
        self.limit = limit
        self.inclusive = inclusive
        self.fetches = self.snaps = 0
        self._random = random.Random(seed)

    def fetch(self, pair: str, date: str, time: str) -> list[Tick]:
        """The first so many of one day after a time."""
        assert pair == PAIR
        assert len(time) == 12, "milliseconds"
        self.fetches += 1
        after = f"{date} {time:0<20}"
        day = [tick for tick in self.ticks if tick["date"] == date]
        found = [tick for tick in day if exact(tick) > after or (self.inclusive and exact(tick) == after)]
        answer = found[: self.limit]
        self._random.shuffle(answer)
        return answer

    def snap(self, pair: str, date: str, time: str) -> Tick | None:
        """The last one at or before a time."""
        self.snaps += 1
        moment = f"{date} {time:0<20}"
        return max((tick for tick in self.ticks if exact(tick) <= moment), key=exact, default=None)

    def no_snap(self, pair: str, date: str, time: str) -> Tick | None:
        """What a server without that function says."""
        self.snaps += 1
        raise FunctionError("tickSnap", {}, "unknown function")

    def between(self, start: datetime, end: datetime | None) -> list[Tick]:
        """What history has to be."""
        return [t for t in self.ticks if start <= t["timestamp"] and (end is None or t["timestamp"] < end)]


def texts(ticks: Iterable[Tick]) -> Counter[tuple[str, str]]:
    """Ticks as a multiset."""
    return Counter((exact(tick), tick["exchange"]) for tick in ticks)


def checked(model: Model, start: datetime, end: datetime | None, *, snap: bool = True) -> list[list[Tick]]:
    """The pages, of which each is sorted and later than the one before."""
    found = list(pages(model.fetch, model.snap if snap else model.no_snap, PAIR, start, end, model.limit))
    last = datetime.min.replace(tzinfo=UTC)
    for page in found:
        times = [tick["timestamp"] for tick in page]
        assert times
        assert sorted(times) == times
        assert last < times[0]
        last = times[-1]
    return found


# Few different moments, so that they meet: at midnights, milliseconds, and among and between these.
_OFFSETS = st.one_of(
    st.integers(0, 5).map(lambda ms: timedelta(milliseconds=ms)),
    st.integers(0, 12).map(lambda n: timedelta(microseconds=n * 500 + n % 3)),
    st.integers(-6, -1).map(lambda n: timedelta(days=1, microseconds=n * 500)),
    st.sampled_from([timedelta(0), timedelta(hours=12), timedelta(hours=12, microseconds=1)]),
)
_DAYS = st.sampled_from([0, 0, 1, 2, 3, 9, 40, 41])
_MOMENTS = st.builds(lambda days, offset: DAY + timedelta(days=days) + offset, _DAYS, _OFFSETS)
_TICKS = st.lists(
    st.builds(at, _MOMENTS, st.sampled_from(["", "", "", "001", "9"]), st.sampled_from("XY")), max_size=40
)


def unknowable(model: Model, start: datetime, end: datetime | None) -> bool:
    """Whether some millisecond holds so many ticks that one answer does not show where they end."""
    cells: Counter[datetime] = Counter()
    for tick in model.between(start - timedelta(milliseconds=1), end):
        moment: datetime = tick["timestamp"]
        up = moment + timedelta(microseconds=-moment.microsecond % 1_000)
        for cell in {up, up if moment != up else up + timedelta(milliseconds=1)}:
            cells[cell] += 1
    return any(count >= model.limit for count in cells.values())


def without_repeated_midnights(ticks: list[Tick]) -> list[Tick]:
    """Of ticks at exactly midnight one is left: nobody can ask how many there are."""
    seen: set[str] = set()
    kept = []
    for tick in ticks:
        if not tick["time"].strip("0:.Z"):
            if tick["date"] in seen:
                continue
            seen.add(tick["date"])
        kept.append(tick)
    return kept


@given(_TICKS, _MOMENTS, st.one_of(st.none(), _MOMENTS), st.integers(2, 6), st.integers(0, 3))
def test_history_is_exact_or_an_error(
    ticks: list[Tick], start: datetime, end: datetime | None, limit: int, seed: int
) -> None:
    """Whatever the ticks: those of [start, end), each once, in order; or the error, where it can't be known."""
    model = Model(without_repeated_midnights(ticks), limit, seed=seed)
    try:
        found = checked(model, start, end)
    except IncompleteHistory:
        assert unknowable(model, start, end)
    else:
        assert texts(model.between(start, end)) == texts(tick for page in found for tick in page)


@given(_TICKS, _MOMENTS, _MOMENTS, st.integers(2, 6))
def test_without_snap_all_but_midnight_is_exact(ticks: list[Tick], start: datetime, end: datetime, limit: int) -> None:
    """A server without tick snap is asked for each day, and can't tell of ticks at exactly midnight."""
    model = Model([tick for tick in ticks if tick["time"].strip("0:.Z")], limit)
    try:
        found = checked(model, start, end, snap=False)
    except IncompleteHistory:
        assert unknowable(model, start, end)
    else:
        assert texts(model.between(start, end)) == texts(tick for page in found for tick in page)
    assert model.snaps <= 1


@given(_TICKS, _MOMENTS, _MOMENTS, st.integers(2, 6))
def test_a_server_that_includes_the_time_itself_gives_the_same(
    ticks: list[Tick], start: datetime, end: datetime, limit: int
) -> None:
    """Should "after" mean "at or after" somewhere, nothing comes twice, and midnight is known in full."""
    model = Model(ticks, limit, inclusive=True)
    try:
        found = checked(model, start, end)
    except IncompleteHistory:
        assert unknowable(model, start, end)
    else:
        assert texts(model.between(start, end)) == texts(tick for page in found for tick in page)


@pytest.mark.parametrize("start", [DAY, DAY - timedelta(hours=1)], ids=["from midnight", "over midnight"])
def test_a_tick_at_exactly_midnight_is_found(start: datetime) -> None:
    """No history has it, for it is after no time of its day; tick snap tells of it."""
    model = Model([at(DAY - timedelta(seconds=1)), at(DAY), at(DAY + timedelta(seconds=1))])
    found = checked(model, start, DAY + timedelta(hours=1))
    assert texts(model.between(start, None)) == texts(tick for page in found for tick in page)


def test_just_after_midnight_is_not_midnight() -> None:
    """Digits beyond the microseconds decide, which a timestamp does not have."""
    model = Model([at(DAY, "0001"), at(DAY, "0001")])
    found = checked(model, DAY, DAY + timedelta(hours=1))
    assert [tick["time"] for page in found for tick in page] == ["00:00:00.0000000001Z"] * 2


def test_a_millisecond_with_a_full_answer_is_an_error() -> None:
    """Nobody can know whether there are more, and how many: no loop, no loss, no guess."""
    model = Model([at(DAY + timedelta(hours=1))] * LIMIT)
    with pytest.raises(IncompleteHistory, match=r"2022-07-02.*00:59:59\.999.*within one millisecond"):
        checked(model, DAY + timedelta(hours=1), DAY + timedelta(hours=2))


def test_a_millisecond_with_one_less_is_not() -> None:
    """What fits an answer is known, even if a full answer had cut it."""
    hour = DAY + timedelta(hours=1)
    model = Model([at(hour - timedelta(minutes=1))] * 2 + [at(hour)] * (LIMIT - 1) + [at(hour + timedelta(minutes=1))])
    assert sum(map(len, checked(model, DAY, None))) == LIMIT + 2


def test_an_answer_that_is_beyond_the_end_is_enough() -> None:
    """A full answer that goes beyond the end is complete up to there, even within a millisecond."""
    hour = DAY + timedelta(hours=1)
    model = Model([at(hour + timedelta(microseconds=n)) for n in range(LIMIT)])
    assert sum(map(len, checked(model, hour, hour + timedelta(microseconds=LIMIT - 1)))) == LIMIT - 1


def test_a_server_that_does_not_advance_is_no_loop() -> None:
    """Should it answer with the same ticks whatever the time, that is an error."""
    same = [at(DAY + timedelta(seconds=n)) for n in range(LIMIT)]
    with pytest.raises(IncompleteHistory):
        list(pages(lambda pair, date, time: list(same), None, PAIR, DAY, DAY + timedelta(days=1), LIMIT))


def test_years_without_ticks_are_leapt_over() -> None:
    """A handful of questions for each stretch, not one for each of 4,000 days."""
    day = timedelta(days=1)
    model = Model([at(DAY), at(DAY + 1_500 * day), at(DAY + 4_000 * day)])
    found = checked(model, DAY - 1_000 * day, DAY + 5_000 * day)
    assert sum(map(len, found)) == 3
    assert model.fetches + model.snaps < 120


@pytest.mark.parametrize("patience", [49, 50, None])
def test_days_that_are_asked_for_in_vain_are_bounded_on_request(patience: int | None) -> None:
    """Where snap does not tell of the next tick: `IncompleteHistory` after so many."""
    noons = [DAY + timedelta(days=days, hours=12) for days in (0, 50)]
    model = Model(map(at, noons))
    found = pages(model.fetch, model.no_snap, PAIR, DAY, DAY + timedelta(days=60), LIMIT, patience)
    assert noons[0] == next(found)[0]["timestamp"]
    if patience == 49:
        with pytest.raises(IncompleteHistory, match="no tick on 49 days in a row"):
            next(found)
        assert model.fetches <= 2 * 50  # without snap each day is asked for twice, for it may have ended meanwhile
    else:
        assert noons[1:] == [tick["timestamp"] for page in found for tick in page]


def test_a_gap_of_some_minutes_takes_few_calls() -> None:
    """One call, and one to learn whether a day follows; none where the end is on the same day."""
    hour = DAY + timedelta(hours=1)
    model = Model([at(hour + timedelta(seconds=n)) for n in range(LIMIT - 1)])
    assert len(checked(model, hour, hour + timedelta(minutes=5))) == 1
    assert (model.fetches, model.snaps) == (1, 0)
    assert len(checked(model, hour, None)) == 1
    assert (model.fetches, model.snaps) == (2, 1)


def test_an_open_end_does_not_ask_our_clock() -> None:
    """Ticks of a server whose clock is ahead are there, up to a day beyond our time."""
    ahead = datetime.now(UTC) + timedelta(hours=20)
    model = Model([at(ahead - timedelta(days=3)), at(ahead)])
    assert sum(map(len, checked(model, ahead - timedelta(days=4), None))) == 2


@pytest.mark.parametrize("snap", [True, False])
def test_a_day_that_ends_while_it_is_asked_about_is_whole(snap: bool) -> None:
    """Ticks that come between the last answer of one day and the first of the next are in one of them."""
    evening, late, morning = DAY + timedelta(hours=23), DAY + timedelta(hours=23.9), DAY + timedelta(hours=25)
    model = Model([at(evening)])

    def fetch(pair: str, date: str, time: str) -> list[Tick]:
        answer = model.fetch(pair, date, time)
        if model.fetches == 1:
            # The market goes on.
            model.ticks += [at(late), at(morning)]
        return answer

    found = pages(fetch, model.snap if snap else model.no_snap, PAIR, evening, DAY + timedelta(days=2), LIMIT)
    assert [evening, late, morning] == [tick["timestamp"] for page in found for tick in page]


def test_pages_are_fetched_one_at_a_time() -> None:
    """The next one is asked for when the last one has been taken."""
    model = Model([at(DAY + timedelta(seconds=n)) for n in range(100)])
    found = pages(model.fetch, model.snap, PAIR, DAY, DAY + timedelta(days=1), LIMIT)
    assert model.fetches == 0
    next(found)
    assert model.fetches == 1


def test_a_timeout_is_not_taken_for_a_refusal() -> None:
    """A snap that was not answered says nothing of the function: the error is the caller's."""

    def silent(pair: str, date: str, time: str) -> Tick | None:
        raise CallTimeout("tickSnap", {}, "no answer")

    with pytest.raises(CallTimeout):
        list(pages(Model([]).fetch, silent, PAIR, DAY, None, LIMIT))


def test_nothing_between_equal_times() -> None:
    """An empty interval takes no call."""
    model = Model([at(DAY)])
    assert checked(model, DAY, DAY) == []
    assert model.fetches + model.snaps == 0
