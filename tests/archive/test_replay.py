"""`ReplayListener`: a recording reaches the callbacks as the stream did."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("pyarrow", reason="the extra `archive` is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from finx_streamer import (
    Bar,
    CallbackError,
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionClient,
    Gap,
    GapNotFilled,
    Instrument,
    Notice,
    Option,
    State,
    StreamListener,
    Tick,
    TicksDropped,
    bars,
)
from finx_streamer.archive import Archive, ArchiveWriter, ReplayListener
from finx_streamer.archive.events import fields_of
from finx_streamer.archive.layout import HOUR_NS, Layout
from finx_streamer.archive.replay_source import _Pace
from finx_streamer.archive.sealing import merge_days, seal
from finx_streamer.base_listener import BaseListener
from finx_streamer.server import LocalServer
from finx_streamer.values import Event
from tests.support.market import BEGIN, OTHER, PAIR, Market, begin, outage, send, tick
from tests.support.peers import PATIENCE, Seen
from tests.support.storm import bursts, storm, with_outages

SECOND = 1_000_000_000
#: When the first entry of a written archive was received. In the future, so that the writer uses the hours it names.
START = 600_000 * HOUR_NS


def at(seconds: float) -> int:
    """A received time."""
    return START + int(seconds * SECOND)


def put_ticks(writer: ArchiveWriter, seconds: float, *prices: object, pair: str = PAIR, exchange: str = "OKX") -> None:
    """Record ticks that were received at once, with times 0.1 s apart."""
    moments = [datetime(2038, 6, 13, tzinfo=UTC) + timedelta(seconds=seconds + n / 10) for n in range(len(prices))]
    ticks = [
        (pair, f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S.%f}"[:-3] + "Z", exchange, str(price))
        for moment, price in zip(moments, prices, strict=True)
    ]
    writer.put_backfilled(ticks, at(seconds))


def put_event(writer: ArchiveWriter, seconds: float, payload: Any, symbol: str | None = PAIR) -> None:
    """Record an event."""
    found = fields_of(Event(payload, symbol))
    assert found is not None
    writer.put_event(*found, symbol, at(seconds))


class Strategy:
    """A strategy that trades on bars, and notes everything that it gets."""

    def __init__(self, listener: BaseListener) -> None:
        self.seen: dict[str, list[Any]] = defaultdict(list)
        self.bars: dict[Any, Bar] = {}
        self.count = 0
        self._changed = threading.Condition()
        listener.on_tick(self.handle_tick)
        listener.on_gap(lambda gap: self.note(gap.symbol, gap))
        listener.on_state(self.note)
        listener.on_error(lambda error: self.note(str(error.symbol), (type(error), str(error))))
        listener.on_notice(lambda notice: self.note(str(notice.symbol), notice))
        listener.on_bar("1s", self.handle_bar, by_exchange=True)

    def note(self, symbol: str, what: Any) -> None:
        with self._changed:
            self.seen[symbol].append(what)
            self.count += 1
            self._changed.notify_all()

    def handle_tick(self, tick: Tick) -> None:
        self.note(tick["pair"], dict(tick))

    def handle_bar(self, bar: Bar) -> None:
        key = bar["pair"], bar["exchange"], bar["start"]
        self.bars[key] = {**bar, "revision": 0, "final": True}  # type: ignore[assignment]

    def signals(self, length: int = 3) -> list[tuple[Any, int]]:
        """The times at which the close crosses its moving average."""
        closes, found, position = [], [], 0
        for (pair, _, start), bar in sorted(self.bars.items(), key=lambda item: item[0]):
            closes.append(bar["close"])
            if len(closes) >= length:
                wanted = 1 if closes[-1] > sum(closes[-length:]) / length else -1
                if wanted != position:
                    position = wanted
                    found.append(((pair, start), position))
        return found

    def wait_price(self, pair: str, number: int) -> None:
        """Wait for a tick of the market."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(
                    isinstance(each, dict) and int(each["price"]) == 19_200 + number for each in self.seen[pair]
                ),
                PATIENCE,
            )


def result_of(strategy: Strategy) -> Any:
    """Everything that a strategy could use."""
    return strategy.seen, strategy.bars, strategy.signals()


def replayed(*arguments: Any, **options: Any) -> Strategy:
    """What a strategy makes of an archive."""
    listener = ReplayListener(*arguments, **options)
    strategy = Strategy(listener)
    with listener:
        assert listener.join(PATIENCE)
    return strategy


@pytest.mark.timeout(120)
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_a_strategy_has_the_same_result_live_and_in_a_replay(tmp_path: Path, resumable: bool, dispatch: str) -> None:
    """One class, with outages and gaps; from the journal, and from sealed hours."""
    seen = Seen()
    rng = random.Random(5)
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, resumable=resumable) as server:
        listener = seen.listener(server.url, PAIR, OTHER, backfill=True, record=tmp_path, dispatch=dispatch)
        live = Strategy(listener)
        with listener:
            server.wait_connected(2)
            number = 0
            for gaps in range(4):
                for pair in (PAIR, OTHER):
                    for _ in range(rng.randrange(20, 60)):
                        number += 1
                        send(server, number, number, pair=pair)
                live.wait_price(OTHER, number)
                with outage(server, seen):
                    send(server, number + 1, number + 2, number + 3)
                number += 4
                send(server, number)
                live.wait_price(PAIR, number)
                seen.wait_for(lambda before=gaps: len(seen.gaps) > before)  # type: ignore[misc]
    assert sum(isinstance(each, Gap) for each in live.seen[PAIR]) == 4
    assert len(live.bars) > 3
    assert result_of(replayed(tmp_path, dispatch=dispatch)) == result_of(live)
    for hour in Layout(tmp_path).find()[1]:
        seal(Layout(tmp_path), hour)
    assert result_of(replayed(tmp_path, dispatch=dispatch)) == result_of(live)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_a_storm_is_replayed_in_order(tmp_path: Path, wire: Literal["url", "subscribe"]) -> None:
    """Each pair has the same ticks and gaps in the same order."""
    rng = random.Random(3)
    ticks = with_outages(bursts([PAIR, OTHER], 1_000, rng), rng)
    outcome = storm(ticks, 800.0, 12, 11, wire, False, record=tmp_path)
    order: list[Any] = []
    replay = ReplayListener(tmp_path, parse_price=str, on_tick=order.append, on_gap=order.append)
    with replay:
        assert replay.join(PATIENCE)
    for pair in (PAIR, OTHER):
        live, again = (
            [each for each in found if (each.symbol if isinstance(each, Gap) else each["pair"]) == pair]
            for found in (outcome.order, order)
        )
        assert again == live
    assert len(outcome.gaps) > 3


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """A recording with ticks of two pairs, a gap, errors, messages and damage."""
    path = tmp_path / "night"
    with ArchiveWriter(path) as writer:
        writer.put_event("start", {"symbols": [PAIR, OTHER]}, None, at(0))
        put_event(writer, 0, State.CONNECTING)
        put_event(writer, 0.1, State.STREAMING)
        put_ticks(writer, 1, 1, 2, 3)
        put_ticks(writer, 2, 10, pair=OTHER, exchange="BINANCE")
        put_event(writer, 3, ConnectionFailed("the server closed the connection", will_retry=True, retry_in=1.0))
        put_event(writer, 3, State.RECONNECTING)
        writer.put_message(at(3), b'{"keepAlive":true}', OTHER)
        put_event(writer, 4, State.STREAMING)
        put_ticks(writer, 5, 4)
        put_event(writer, 5, Gap(PAIR, BEGIN, BEGIN, True, 1))
        writer.put_message(at(6), b"{broken", PAIR)
        put_ticks(writer, 7, 5)
        put_event(writer, 8, State.STOPPED)
        writer.put_event("stop", {}, None, at(8))
    return path


def seal_all(path: Path) -> None:
    """Seal and merge all hours."""
    layout = Layout(path)
    for hour in layout.find()[1]:
        seal(layout, hour)
    merge_days(layout, path / "date=9999-12-31")


@pytest.fixture(params=["journal", "sealed"])
def recording(request: pytest.FixtureRequest, night: Path) -> Path:
    """The same, in either tier."""
    if request.param == "sealed":
        seal_all(night)
    return night


@pytest.mark.parametrize("slab", [1, 2, 7, 1 << 19])
def test_slabs_have_no_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    """Ticks and events of several hours come in recorded order, however many are sorted at once."""
    monkeypatch.setattr("finx_streamer.archive.recorded._SLAB", slab)
    rng = random.Random(slab)
    with ArchiveWriter(tmp_path) as writer:
        for number in range(300):
            moment = number * 40.0
            if rng.random() < 0.3:
                writer.put_event("note", {"number": number}, rng.choice([PAIR, OTHER, None]), at(moment))
            else:
                put_ticks(writer, moment, *range(rng.randrange(1, 4)), pair=rng.choice([PAIR, OTHER]))

    def read(start: float, end: float) -> list[Any]:
        moments = [
            datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at(each) // 1_000) for each in (start, end)
        ]
        return list(Archive(tmp_path).entries(*moments))

    spans = [(0.0, 20_000.0), (3_000.0, 9_000.0), (7_210.0, 7_300.0)]
    before = [read(*span) for span in spans]
    assert len(before[0]) > 400
    for hour in Layout(tmp_path).find()[1]:
        seal(Layout(tmp_path), hour)
    assert [read(*span) for span in spans] == before
    seal_all(tmp_path)
    assert [read(*span) for span in spans] == before


def kinds(found: list[Any]) -> list[Any]:
    """A short form of what callbacks got."""
    return [
        each["price"] if isinstance(each, dict) else each if isinstance(each, State) else
        each[0] if isinstance(each, tuple) else type(each)
        for each in found
    ]  # fmt: skip


def test_everything_reappears_where_it_occurred(recording: Path, dispatch: str) -> None:
    """Ticks, gaps, errors, states, and messages that are decoded again."""
    strategy = replayed(recording, dispatch=dispatch)
    assert kinds(strategy.seen[PAIR]) == [
        *(State.CONNECTING, State.STREAMING, 1.0, 2.0, 3.0, ConnectionFailed, State.RECONNECTING, State.STREAMING),
        *(4.0, Gap, DecodeError, 5.0, State.STOPPED),
    ]
    assert kinds(strategy.seen[OTHER]) == [10.0, Notice]


def test_stats_count_what_the_stream_counted(recording: Path) -> None:
    """The state is that of the replay."""
    states: list[State] = []
    listener = ReplayListener(recording, on_tick=lambda tick: states.append(listener.state), on_error=str)
    assert listener.state is State.IDLE
    with listener:
        listener.join(PATIENCE)
    assert set(states) == {State.STREAMING}
    assert listener.state is State.STOPPED
    stats = listener.stats
    assert (stats.ticks, stats.gaps, stats.filled_ticks, stats.reconnects) == (6, 1, 1, 1)
    assert (stats.connection_errors, stats.decode_errors, stats.dropped) == (1, 1, 0)
    assert isinstance(stats.streams[PAIR].last_error, ConnectionFailed)
    assert sorted(listener.symbols) == sorted(stats.streams) == [PAIR, OTHER]
    assert [tick["price"] for tick in listener.recent()] == [1, 2, 3, 10, 4, 5]
    assert {pair: tick["price"] for pair, tick in listener.latest().items()} == {PAIR: 5, OTHER: 10}
    assert len(listener.to_pandas()) == 6
    assert "<ReplayListener" in repr(listener)
    assert str(recording) in repr(listener)


def test_only_what_is_wanted_is_replayed(recording: Path) -> None:
    """By symbol, exchange and received time."""
    assert kinds(replayed(recording, OTHER).seen[OTHER]) == [10.0, Notice]
    assert set(replayed(recording, OTHER).seen) == {OTHER}
    prices = [each for each in kinds(replayed(recording, exchanges=["OKX"]).seen[PAIR]) if isinstance(each, float)]
    assert prices == [1, 2, 3, 4, 5]
    assert not any(isinstance(each, dict) for each in replayed(recording, exchanges=["OKX"]).seen[OTHER])
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at(3) // 1_000)
    early = replayed(recording, end=start)
    late = replayed(recording, start=start)
    assert kinds(early.seen[PAIR])[-3:] == [1.0, 2.0, 3.0]
    assert kinds(late.seen[PAIR])[:2] == [ConnectionFailed, State.RECONNECTING]
    assert replayed(recording, "BTCN2202207").count == 0


def test_loops_work_as_with_a_stream(recording: Path, dispatch: Literal["thread", "inline"]) -> None:
    """`for`, `ticks()` and `async for`; each starts from the beginning."""
    listener = ReplayListener(recording, PAIR, dispatch=dispatch, on_error=str)
    assert [tick["price"] for tick in listener] == [1, 2, 3, 4, 5]
    assert [tick["price"] for tick in listener.ticks(timeout=PATIENCE)] == [1, 2, 3, 4, 5]

    async def collect() -> list[float]:
        return [tick["price"] async for tick in listener]

    assert asyncio.run(collect()) == [1, 2, 3, 4, 5]
    for _ in listener:
        break
    assert listener.state is State.STOPPED


def test_wait_async_waits_for_the_end(recording: Path) -> None:
    """In an event loop."""
    seen: list[Tick] = []

    async def run() -> bool:
        with ReplayListener(recording, on_tick=seen.append, on_error=str) as listener:
            return await listener.wait_async(PATIENCE)

    assert asyncio.run(run())
    assert len(seen) == 6


def test_a_full_queue_waits_for_callbacks(tmp_path: Path, dispatch: Literal["thread", "inline"]) -> None:
    """No tick is dropped, even from a queue of seven."""
    with ArchiveWriter(tmp_path) as writer:
        put_ticks(writer, 0, *range(3_000))
    prices: list[Decimal] = []
    listener = ReplayListener(
        tmp_path,
        queue_size=7,
        dispatch=dispatch,
        parse_price=Decimal,
        on_tick=lambda tick: prices.append(tick["price"]),
    )
    with listener:
        assert listener.join(PATIENCE)
    assert prices == list(map(Decimal, range(3_000)))
    assert [tick["price"] for tick in ReplayListener(tmp_path, queue_size=7, dispatch=dispatch)] == list(range(3_000))
    assert listener.stats.queue_peak <= 7


def test_stop_ends_a_replay_inside_a_callback(tmp_path: Path, dispatch: Literal["thread", "inline"]) -> None:
    """The rest isn't delivered."""
    with ArchiveWriter(tmp_path) as writer:
        put_ticks(writer, 0, *range(20_000))
    count = 0
    errors: list[FinxStreamerError] = []

    def stop(tick: Tick) -> None:
        nonlocal count
        count += 1
        if count == 10:
            listener.stop()

    listener = ReplayListener(tmp_path, on_tick=stop, dispatch=dispatch, on_error=errors.append)
    listener.start()
    assert listener.join(PATIENCE)
    assert count == 10
    assert all(isinstance(error, TicksDropped) and error.at_end for error in errors)
    count = -20_000
    assert listener.start().join(PATIENCE)
    assert count == 0


def test_prices_that_are_refused_become_errors(tmp_path: Path) -> None:
    """As in a stream: the other ticks are delivered, in order."""
    with ArchiveWriter(tmp_path) as writer:
        put_ticks(writer, 0, 1, 666, 2, "1e999", 3)

    def parse_price(text: str) -> float:
        if text == "666":
            raise ValueError("unlucky")
        return float(text)

    for parse, expected in (
        (parse_price, [1.0, DecodeError, 2.0, DecodeError, 3.0]),
        (float, [1.0, 666.0, 2.0, DecodeError, 3.0]),
        (str, ["1", "666", "2", "1e999", "3"]),
    ):
        order: list[Any] = []
        with ReplayListener(tmp_path, parse_price=parse, on_tick=order.append, on_error=order.append) as listener:
            assert listener.join(PATIENCE)
        assert [each["price"] if isinstance(each, dict) else type(each) for each in order] == expected


def test_errors_of_callbacks_are_reported(recording: Path) -> None:
    """And the replay goes on."""
    errors: list[FinxStreamerError] = []
    ticks: list[Tick] = []
    with ReplayListener(recording, OTHER, on_error=errors.append) as listener:
        listener.on_tick(lambda tick: 1 / 0)
        listener.join(PATIENCE)
    assert [type(error) for error in errors] in ([CallbackError], [])
    listener = ReplayListener(recording, OTHER, on_error=errors.append, on_tick=lambda tick: 1 / 0)
    listener.on_tick(ticks.append)
    listener.start().join(PATIENCE)
    assert isinstance(errors[-1], CallbackError)
    assert len(ticks) == 1


def test_damage_is_reported_and_the_rest_follows(tmp_path: Path) -> None:
    """A flipped bit in a sealed file costs a row group, and one in a journal a block."""
    for name, hours in (("journal", 1), ("sealed", 3)):
        path = tmp_path / name
        with ArchiveWriter(path) as writer:
            for hour in range(hours):
                for number in range(3):
                    put_ticks(writer, hour * 3_600 + number, *(hour * 1_000 + n for n in range(200)))
                    writer.flush()
        if name == "sealed":
            layout = Layout(path)
            for hour in layout.find()[1]:
                seal(layout, hour)
            file = layout.sealed(START // HOUR_NS + 1)
        else:
            file = Layout(path).journal(START // HOUR_NS)
        data = bytearray(file.read_bytes())
        place = len(data) // 2 if name == "journal" else 200
        data[place] ^= 0xFF
        file.write_bytes(data)
        strategy = replayed(path)
        (error,) = strategy.seen["None"]
        assert error[0] is GapNotFilled
        assert "damaged" in error[1]
        assert len(strategy.seen[PAIR]) == (400 if name == "journal" else 1_200)
        shutil.rmtree(path)


def test_a_file_that_is_no_parquet_is_reported(night: Path) -> None:
    """Each of them."""
    seal_all(night)
    files = list(night.rglob("*.parquet"))
    for file in files:
        file.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    strategy = replayed(night)
    assert [error[0] for error in strategy.seen.pop("None")] == [GapNotFilled] * len(files)
    assert not strategy.seen


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([PAIR, OTHER])), min_size=1, max_size=30),
    st.sampled_from(["1s", "5s"]),
    st.booleans(),
)
@settings(deadline=None)
def test_bars_of_a_replay_are_those_of_its_ticks(moments: list[tuple[int, str]], interval: str, empty: bool) -> None:
    """Late ticks included: the last revision of each bar is what `bars` makes of the sorted ticks."""
    found: dict[Any, Any] = {}

    def keep(bar: Bar) -> None:
        found[bar["pair"], bar["start"]] = {**bar, "revision": 0, "final": True}

    with tempfile.TemporaryDirectory() as folder:
        received = 0
        with ArchiveWriter(folder) as writer:
            for number, (second, pair) in enumerate(moments):
                received = max(received, second)
                moment = BEGIN + timedelta(seconds=second)
                tick = (pair, f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}Z", "OKX", str(number))
                writer.put_backfilled([tick], at(received))
        listener = ReplayListener(folder, dispatch="inline")
        listener.on_bar(interval, keep, empty=empty)
        with listener:
            assert listener.join(PATIENCE)
        sorted_ticks = list(Archive(folder).ticks())
        expected = {
            (bar["pair"], bar["start"]): {**bar, "revision": 0, "final": True} for bar in bars(sorted_ticks, interval)
        }
    assert {key: bar for key, bar in found.items() if bar["ticks"]} == expected


@pytest.mark.timeout(120)
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
@pytest.mark.parametrize("seed", range(3))
def test_live_bars_are_those_of_the_replay_and_of_the_archive(tmp_path: Path, seed: int, resumable: bool) -> None:
    """With late, equal and backfilled ticks, and equal times with different prices."""
    rng = random.Random(seed)
    number = 0

    def some() -> list[dict[str, str]]:
        nonlocal number
        sent = []
        for _ in range(rng.randrange(10, 40)):
            number += rng.choice([0, 0, 1, 3])
            at = max(number - rng.choice([0, 0, 0, 5, 40]), 1)
            line = tick(at, exchange=rng.choice(["BINANCE", "OKX"])) | {"price": f"{rng.randrange(1, 5)}.50"}
            sent += [line] * rng.choice([1, 1, 2])
        return sent

    def last_values(found: list[Bar]) -> dict[Any, Any]:
        return {(bar["exchange"], bar["start"]): {**bar, "revision": 0, "final": True} for bar in found}

    live, replayed_bars, seen = list[Bar](), list[Bar](), Seen()
    with LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, resumable=resumable) as server:
        listener = seen.listener(server.url, backfill=True, record=tmp_path)
        listener.on_bar("1s", live.append, by_exchange=True)
        with listener:
            begin(server, seen)
            for gaps in range(1, 4):
                server.emit(*some())
                with outage(server, seen):
                    server.emit(*some())
                number += 150  # not late: the gap begins before it in any case
                server.emit(tick(number) | {"price": f"{100 + gaps}"})
                seen.wait_for(lambda last=gaps: (100 + last) in seen.prices)  # type: ignore[misc]
    replay = ReplayListener(tmp_path)
    replay.on_bar("1s", replayed_bars.append, by_exchange=True)
    with replay:
        assert replay.join(PATIENCE)
    ticks = list(Archive(tmp_path).ticks())
    assert any(each["backfilled"] for each in ticks)
    assert len(ticks) == len(seen.ticks)
    expected = last_values(list(bars(ticks, "1s", by_exchange=True)))
    assert last_values(live) == expected
    assert last_values(replayed_bars) == expected


def test_bars_are_due_by_the_time_of_the_recording(tmp_path: Path, dispatch: Literal["thread", "inline"]) -> None:
    """A bar comes `grace` after its end, in order with the ticks; open ones at the end, as the stream had them."""
    with ArchiveWriter(tmp_path) as writer:
        put_ticks(writer, 0.2, 1, 2)
        put_ticks(writer, 1.9, 3, pair=OTHER)
        put_ticks(writer, 2.1, 4, pair=OTHER)
        put_ticks(writer, 5.5, 5)
    order: list[Any] = []
    listener = ReplayListener(tmp_path, on_tick=lambda tick: order.append(tick["price"]), dispatch=dispatch)

    @listener.on_bar("1s", pair=PAIR)
    def note(bar: Bar) -> None:
        order.append((bar["start"].second, bar["ticks"], bar["final"], bar["revision"]))

    for _ in range(2):
        order.clear()
        listener.start()
        assert listener.join(PATIENCE)
        assert order == [1, 2, 3, (0, 2, True, 0), 4, 5, (5, 1, False, 0)]


def test_speed_paces_a_replay(tmp_path: Path) -> None:
    """Pauses are as long as in the recording, but no longer than `max_pause`."""
    with ArchiveWriter(tmp_path) as writer:
        put_ticks(writer, 0, 1)
        put_ticks(writer, 10, 2)
        put_ticks(writer, 3_600, 3)
    with ReplayListener(tmp_path, speed=100, max_pause=0.2) as listener:
        assert listener.join(PATIENCE)
        assert listener.stats.ticks == 3
    listener = ReplayListener(tmp_path, speed=1, start="2038-06-01")
    for each in listener:
        assert each["price"] == 1
        break
    assert listener.state is State.STOPPED


def test_a_pace_skips_what_is_too_long() -> None:
    """In the time of the recording, and of the replay."""
    pace = _Pace(2.0, None)
    assert pace.pause(at(0), 5.0) == 0
    assert pace.pause(at(10), 5.0) == pytest.approx(5.0)
    assert pace.pause(at(10), 9.0) == pytest.approx(1.0)
    assert pace.pause(at(10), 11.0) < 0
    capped = _Pace(2.0, 3.0)
    capped.pause(at(0), 5.0)
    assert capped.pause(at(100), 5.0) == 3.0
    assert capped.pause(at(100), 6.0) == pytest.approx(2.0)
    assert capped.pause(at(101), 8.0) == pytest.approx(0.5)


def test_a_growing_archive_ends_at_its_present_end(tmp_path: Path, seen: Seen) -> None:
    """While a listener records into it."""
    with (
        LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2) as server,
        seen.listener(server.url, record=tmp_path) as listener,
    ):
        begin(server, seen)
        assert listener._run is not None
        listener._run.recorder._writer.flush()  # type: ignore[union-attr, attr-defined]
        assert kinds(replayed(tmp_path).seen[PAIR])[-1] == 19_201.5


def test_wrong_arguments_are_refused(night: Path, tmp_path: Path) -> None:
    """At once, and with what is expected."""
    with pytest.raises(ConfigurationError, match="not an archive"):
        ReplayListener(tmp_path / "missing")
    for arguments, text in (
        ({"speed": 0}, "speed"), ({"speed": "fast"}, "speed"), ({"max_pause": -1}, "max_pause"),
        ({"start": "x"}, "start"), ({"overflow": "x"}, "overflow"), ({"parse_price": 3}, "parse_price"),
        ({"dispatch": "inline", "overflow": "latest"}, "overflow"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=text):
            ReplayListener(night, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="pair"):
        ReplayListener(night, "BTC-USDC")
    listener = ReplayListener(Archive(night))
    with pytest.raises(ConfigurationError, match="an assigned callback"):
        listener.on_tick = print  # type: ignore[method-assign, assignment]


def test_greeks_are_replayed(tmp_path: Path) -> None:
    """Contracts are decoded as when they were received."""
    got: list[Any] = []
    done = threading.Event()

    def keep(greeks: Any) -> None:
        got.append(greeks)
        if len(got) == 20:
            done.set()

    with FunctionClient(endpoint="demo") as client:
        contracts = [Instrument.parse(each) for each in client.list_contracts()]
    option = next(each for each in contracts if each.strike is not None)
    month = str(Option.of(option))
    with StreamListener(month, endpoint="demo", record=tmp_path, on_greeks=keep):
        assert done.wait(PATIENCE)
    again: list[Any] = []
    listener = ReplayListener(tmp_path, on_greeks=again.append)
    with listener:
        assert listener.join(PATIENCE)
    assert again[: len(got)] == got
    assert listener.greeks()
