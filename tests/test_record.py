"""`StreamListener(record=…)`: the archive has what the callbacks got, in the same order, as it was sent."""

from __future__ import annotations

import json
import random
import shutil
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("pyarrow", reason="the extra `archive` is not installed")

from finx_streamer import ConfigurationError, Endpoint, Gap, RecordingError, State, StreamListener, TicksDropped
from finx_streamer.archive import Archive
from finx_streamer.archive.events import payload_of
from finx_streamer.archive.recorder import Recorder
from finx_streamer.server import LocalServer
from finx_streamer.values import SENT
from tests.support.market import OTHER, PAIR, Market, begin, outage, send, tick, wait_held
from tests.support.peers import PATIENCE, Peer, Seen, frame, hang, leave_after, stay
from tests.support.storm import Feed, bursts, storm, with_outages

FIELDS = ("pair", "date", "time", "exchange", "price", "received_ns", "backfilled")


def values_of(each: Any) -> Any:
    """A gap, or what a tick and its recording have in common."""
    return tuple(each[name] for name in FIELDS) if isinstance(each, dict) else each


def recorded(path: Path, pair: str, parse_price: Any = str) -> list[Any]:
    """The ticks and gaps of a pair in recorded order."""
    found: list[Any] = []
    for entry in Archive(path).entries(parse_price=parse_price):
        if isinstance(entry, dict):
            if entry["pair"] == pair:
                found.append(values_of(entry))
        elif entry.kind == "gap" and entry.symbol == pair:
            found.append(payload_of(entry))
    return found


def entries(path: Path, kind: str) -> list[dict[str, Any]]:
    """The fields of all entries of a kind."""
    return [entry.fields for entry in Archive(path).entries() if not isinstance(entry, dict) and entry.kind == kind]


def line_of(tick: Any) -> tuple[str, ...]:
    """What was sent."""
    return tick["date"], tick["time"], tick["exchange"], tick["price"]


def flush(listener: StreamListener) -> None:
    """Have everything on disk that was received so far."""
    assert listener._run is not None
    assert isinstance(listener._run.recorder, Recorder)
    listener._run.recorder._writer.flush()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wire", ["url", "subscribe"])
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_a_recording_of_a_storm_has_what_the_callbacks_got(
    tmp_path: Path, wire: Literal["url", "subscribe"], resumable: bool, dispatch: str
) -> None:
    """Missed ticks, then the gap, then the live ones, and each tick as it was sent."""
    rng = random.Random(11)
    ticks = with_outages(bursts([PAIR, OTHER], 1_000, rng), rng)
    outcome = storm(ticks, 800.0, 12, 11, wire, resumable, record=tmp_path, dispatch=dispatch)
    print(outcome)
    assert not any(SENT in tick for tick in outcome.got)
    for pair in (PAIR, OTHER):
        of_pair = [each for each in outcome.order if (each.symbol if isinstance(each, Gap) else each["pair"]) == pair]
        assert recorded(tmp_path, pair) == list(map(values_of, of_pair))
        are_filled = all(gap.filled for gap in outcome.gaps if gap.symbol == pair)
        assert all(part.complete for part in Archive(tmp_path).coverage(pair)) == are_filled
    assert len(outcome.gaps) > 3


@pytest.fixture(params=[False, True], ids=["by history", "by ID"])
def server(request: pytest.FixtureRequest) -> Any:
    with LocalServer(Market(PAIR, OTHER), keys={"demo"}, close_timeout=0.2, resumable=request.param) as server:
        yield server


def test_all_exchanges_are_recorded_but_only_the_wanted_ones_are_filled(
    tmp_path: Path, server: LocalServer, seen: Seen
) -> None:
    """Coverage says so."""
    other = {"exchange": "KRAKEN"}

    def emit(number: int) -> None:

        server.emit(tick(number), tick(number) | other)

    with seen.listener(server.url, record=tmp_path, exchanges=["BINANCE"], backfill=True):
        server.wait_connected(1)
        emit(1)
        seen.wait_ticks(1)
        with outage(server, seen):
            emit(2)
        emit(3)
        seen.wait_ticks(3)
        seen.wait_for(lambda: seen.gaps)
    found = [(tick["price"], tick["exchange"]) for tick in Archive(tmp_path).ticks()]
    assert found.count((19_201.5, "KRAKEN")) == found.count((19_203.5, "KRAKEN")) == 1
    assert [each for each in found if each[1] == "BINANCE"] == [(19_200.5 + each, "BINANCE") for each in (1, 2, 3)]
    assert [part.why for part in Archive(tmp_path).coverage(PAIR) if not part.complete] == [
        "filled with ticks of BINANCE only"
    ]


@pytest.mark.parametrize("wire", ["url", "subscribe"])
@pytest.mark.parametrize("ends", [False, True], ids=["stopped within the gap", "stopped after the gap"])
@pytest.mark.parametrize("what", ["another exchange", "a refused price"])
def test_ticks_that_are_not_delivered_do_not_end_a_gap(
    tmp_path: Path, seen: Seen, wire: Literal["url", "subscribe"], ends: bool, what: str
) -> None:
    """They are recorded with those that are held: the next start would begin behind the gap otherwise."""

    def parse_price(text: str) -> float:
        if text == "666":
            raise ValueError
        return float(text)

    wanted: dict[str, Any] = {"backfill": True, "record": tmp_path, "parse_price": parse_price}
    other = {"price": "666"}
    if what == "another exchange":
        wanted["exchanges"] = ["BINANCE"]
        other = {"exchange": "KRAKEN"}
    with LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, resumable=False) as server:
        endpoint = Endpoint(server.url, wire=wire)
        with seen.listener(endpoint, **wanted) as listener:
            begin(server, seen)
            with outage(server, seen):
                send(server, 2)
                server.stall_functions(None)
            send(server, 3)
            server.emit(tick(300) | other, tick(400) | other)
            send(server, 4)
            wait_held(listener, 2)
            if ends:
                server.stall_functions(0)
                seen.wait_ticks(4)
        server.stall_functions(0)
        again = Seen()
        with again.listener(endpoint, **wanted):
            server.wait_connected(1)
            send(server, 500)
            again.wait_for(lambda: 19_700 in again.prices)
    found = list(Archive(tmp_path).ticks(parse_price=str))
    assert not any(SENT in each for each in found)
    numbers = [int(float(each["price"])) - 19_200 for each in found if not other.items() <= each.items()]
    assert numbers == [1, 2, 3, 4, 500]
    if ends:
        assert len(found) == 7


def test_texts_come_back_byte_for_byte(tmp_path: Path, seen: Seen, dispatch: str) -> None:
    """Also those that `parse_price` refuses, and messages in another form. Others are kept as they came."""
    times = ["15:30:55.817Z", "15:30:55Z", "15:30:55.1234567Z", "15:30:55.810Z", "23:59:60.5Z", "15:30:56.Z"]
    texts = ["1.50", "0001", ".5", "1.", "12345678901234567890.123456789", "1e5", "666"]
    sent = [
        {"pair": PAIR, "date": "2022-07-02", "time": time, "exchange": exchange, "price": price}
        for time in times
        for price in texts
        for exchange in ("BINANCE", 'a"b', "Zürich")
    ]
    styles: list[Any] = [{"separators": (",", ":")}, {}, {"indent": 1}, {"ensure_ascii": False}]
    frames = [
        frame(json.dumps({"results": "streaming", "resultData": tick}, **style)) for tick in sent for style in styles
    ]
    odd = [b'{"keepAlive":true}', b"{broken", b'{"error":"slow down"}', b"[1]"]

    def parse_price(text: str) -> float:
        if text == "666":
            raise ValueError
        return float(text)

    with (
        Peer(stay(*frames, *map(frame, odd)), hang) as peer,
        seen.listener(peer.url, record=tmp_path, dispatch=dispatch, parse_price=parse_price),
    ):
        seen.wait_errors(len(times) * 3 * len(styles) + 3)
        seen.wait_for(lambda: seen.notices)
    names = ("pair", "date", "time", "exchange", "price")
    found = [
        {name: each[name] for name in names}  # type: ignore[literal-required]
        for each in Archive(tmp_path).entries(parse_price=str)
        if isinstance(each, dict)
    ]
    assert found == [tick for tick in sent for _ in styles]
    assert [each["text"].encode() for each in entries(tmp_path, "message")] == odd


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_dropped_ticks_are_recorded(
    tmp_path: Path, server: LocalServer, seen: Seen, overflow: Literal["drop_oldest", "latest"]
) -> None:
    """Slow callbacks are no loss for the archive."""
    dropped = threading.Event()

    with seen.listener(
        server.url, record=tmp_path, overflow=overflow, queue_size=2, on_tick=lambda _: None
    ) as listener:
        listener.on_tick(lambda _: dropped.wait(PATIENCE))
        server.wait_connected(1)
        send(server, *range(1, 101))
        while listener.stats.dropped < 50:
            assert not listener.join(0.01)
        dropped.set()
        seen.wait_for(lambda: seen.of_type(TicksDropped))
    assert [tick["price"] for tick in Archive(tmp_path).ticks()] == [19_200.5 + number for number in range(1, 101)]


def test_the_key_is_not_on_disk(tmp_path: Path, seen: Seen) -> None:
    """A server may quote the request, in messages and in errors."""
    key = "s3cret-k3y-of-mine"
    quotes = [f'{{"error":"no such key {key}"}}', f'{{"note":"{key}"}}', f"{key} is not JSON", f'{{"pair":"{key}"}}']
    with (
        Peer(leave_after(*map(frame, quotes)), stay()) as peer,
        seen.listener(peer.url, record=tmp_path, api_key=key),
    ):
        seen.wait_for(lambda: len(seen.errors) >= 3 and len(seen.notices) >= 2)
    texts = [line.line for line in Archive(tmp_path).entries() if not isinstance(line, dict)]
    assert len([text for text in texts if "***" in text]) >= len(quotes)
    assert key not in "".join(texts)


def test_no_error_has_the_key_of_a_path(tmp_path: Path, seen: Seen) -> None:
    """A user may name a directory after the key."""
    key = "s3cret-k3y-of-mine"
    path = tmp_path / key
    with Peer(stay()) as peer:
        with (
            seen.listener(peer.url, record=path, api_key=key),
            pytest.raises(ConfigurationError, match="another process records here") as refused,
        ):
            Seen().listener(peer.url, record=path, api_key=key).start()
        (journal,) = (path / "journal").iterdir()
        with open(journal, "ab") as file:
            file.write(b"half a block")
        with seen.listener(peer.url, record=path, api_key=key):
            seen.wait_for(lambda: seen.of_type(RecordingError))
        with pytest.raises(RecordingError, match="can't be written") as failed:
            seen.listener(peer.url, record=path / "lock" / "ticks", api_key=key).start()
    assert "***" in str(failed.value)
    assert key not in f"{refused.value}{failed.value}{seen.errors}"
    for error in (refused.value, failed.value):
        assert key not in "".join(traceback.format_exception(error))


def test_a_directory_has_one_recorder(tmp_path: Path, server: LocalServer, seen: Seen) -> None:
    """The second one is refused at its start. When the first one has stopped, the directory is free."""
    with seen.listener(server.url, record=str(tmp_path)) as listener:
        begin(server, seen)
        other = Seen().listener(server.url, record=Archive(tmp_path))
        with pytest.raises(ConfigurationError, match="another process records here"):
            other.start()
        assert len(list(Archive(tmp_path).ticks())) <= 1  # readers are welcome
        listener.stop()
        other.start()
        other.stop()
    assert len(entries(tmp_path, "start")) == 2


def test_a_directory_that_cannot_be_written(tmp_path: Path, server: LocalServer, seen: Seen) -> None:
    """The start fails."""
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match="can't be written"):
        seen.listener(server.url, record=tmp_path / "file" / "ticks").start()
    for wrong in ("", 5):
        with pytest.raises(ConfigurationError, match="expected a directory"):
            seen.listener(server.url, record=wrong)


def test_a_torn_tail_is_reported(tmp_path: Path, server: LocalServer, seen: Seen) -> None:
    """A crash may leave half a block."""
    with seen.listener(server.url, record=tmp_path):
        begin(server, seen)
    (journal,) = (tmp_path / "journal").iterdir()
    with open(journal, "ab") as file:
        file.write(b"half a block")
    with seen.listener(server.url, record=tmp_path):
        seen.wait_for(lambda: seen.of_type(RecordingError))
    assert "cut off 12 bytes that a crash left" in str(seen.of_type(RecordingError)[0])


def test_states_and_errors_are_recorded(tmp_path: Path, server: LocalServer, seen: Seen) -> None:
    """In the order in which the callbacks get them."""
    with seen.listener(server.url, record=tmp_path):
        begin(server, seen)
        with outage(server, seen):
            pass
    found = [
        payload_of(entry)
        for entry in Archive(tmp_path).entries()
        if not isinstance(entry, dict) and entry.kind in ("state", "error")
    ]
    states = [each for each in found if isinstance(each, State)]
    assert states == [state for _, state in seen.states]
    assert [str(each) for each in found if not isinstance(each, State)] == list(map(str, seen.errors))


def test_a_recording_of_raw_messages(tmp_path: Path, shared_data: Path, seen: Seen) -> None:
    """What FinX really sends comes back as it was sent."""
    lines = [json.loads(line) for line in (shared_data / "tape-small.jsonl").read_text().splitlines()][:2_000]
    pairs = sorted({line["pair"] for line in lines})
    with (
        LocalServer(Market(*pairs), keys={"demo"}, close_timeout=0.2) as server,
        seen.listener(server.url, *pairs, record=tmp_path),
    ):
        server.wait_connected(len(pairs))
        server.emit(*lines)
        seen.wait_ticks(len(lines))
    for pair in pairs:
        found = [tick for tick in Archive(tmp_path).entries(parse_price=str) if isinstance(tick, dict)]
        assert (
            [[tick[name] for name in FIELDS[:5]] for tick in found if tick["pair"] == pair]
            == [  # type: ignore[literal-required]
                [line[name] for name in FIELDS[:5]] for line in lines if line["pair"] == pair
            ]
        )


# A restart is an outage like any other.


def test_a_recorder_that_starts_again_goes_on(tmp_path: Path, server: LocalServer, dispatch: str) -> None:
    """From the last recorded tick of each pair, with equal trades on both sides of the seam."""
    order: list[Any] = []
    for start in (1, 11, 21):
        seen = Seen()
        with seen.listener(server.url, PAIR, OTHER, record=tmp_path, backfill=True, dispatch=dispatch) as listener:
            listener.on_tick(lambda tick: order.append(values_of(tick)) if tick["pair"] == PAIR else None)
            listener.on_gap(lambda gap: order.append(gap) if gap.symbol == PAIR else None)
            server.wait_connected(2)
            for pair in (PAIR, OTHER):
                send(server, start, start, start + 1, pair=pair)
            seen.wait_ticks(6 if start == 1 else 6 + 2 * 4)
        for pair in (PAIR, OTHER):
            send(server, start + 1, start + 2, start + 3, start + 3, pair=pair)
    assert recorded(tmp_path, PAIR, float) == order
    numbers = [
        number for start in (1, 11, 21) for number in [start, start, start + 1, start + 1, start + 2, *[start + 3] * 2]
    ]
    for pair in (PAIR, OTHER):
        ticks = list(Archive(tmp_path).ticks(pair))
        assert [int(tick["price"]) - 19_200 for tick in ticks] == numbers[:-4]
        assert [tick["backfilled"] for tick in ticks] == [False] * 3 + ([True] * 4 + [False] * 3) * 2
        assert all(part.complete for part in Archive(tmp_path).coverage(pair))
    assert Archive(tmp_path).verify().ok


@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_a_pair_that_is_removed_and_added_again_goes_on(
    tmp_path: Path, server: LocalServer, seen: Seen, wire: Literal["url", "subscribe"], dispatch: str
) -> None:
    """Also in a callback, while more of its ticks are being read."""
    again = {5, 45}

    def remove_and_add(tick: Any) -> None:
        number = int(tick["price"]) - 19_200
        if number in again:
            again.discard(number)
            listener.remove(PAIR)
            listener.add(PAIR)

    endpoint = Endpoint(server.url, wire=wire)
    with seen.listener(endpoint, record=tmp_path, backfill=True, dispatch=dispatch) as listener:
        begin(server, seen)
        listener.on_tick(remove_and_add)
        for last in (40, 80):
            send(server, *range(last - 38, last + 2))
            seen.wait_for(lambda last=last: 19_201 + last in seen.prices)
    # The second time, the end may have come within the gap.
    last_run = Seen()
    with last_run.listener(endpoint, record=tmp_path, backfill=True):
        last_run.wait_for(lambda: last_run.gaps)
    assert not again
    assert [int(tick["price"]) - 19_200 for tick in Archive(tmp_path).ticks()] == list(range(1, 82))
    assert seen.prices == list(range(19_201, 19_282))
    assert all(part.complete for part in Archive(tmp_path).coverage(PAIR))


def test_nothing_is_missing_after_a_crash_within_a_gap(tmp_path: Path, seen: Seen) -> None:
    """Held ticks aren't recorded before the gap is filled, so the next start fills all of it."""
    with LocalServer(Market(PAIR), keys={"demo"}, close_timeout=0.2, resumable=False) as server:
        with seen.listener(server.url, record=tmp_path / "a", backfill=True) as listener:
            begin(server, seen)
            with outage(server, seen):
                send(server, 2)
                server.stall_functions(None)
            send(server, 3)
            wait_held(listener, 1)
            flush(listener)
            shutil.copytree(tmp_path / "a", tmp_path / "b")  # as a crash would leave it
            server.stall_functions(0)
        again = Seen()
        with again.listener(server.url, record=tmp_path / "b", backfill=True):
            again.wait_ticks(2)
    assert [(tick["price"], tick["backfilled"]) for tick in Archive(tmp_path / "b").ticks()] == [
        (19_201.5, False),
        (19_202.5, True),
        (19_203.5, True),
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wire", ["url", "subscribe"])
@pytest.mark.parametrize("resumable", [False, True], ids=["by history", "by ID"])
def test_restarts_lose_nothing(tmp_path: Path, wire: Literal["url", "subscribe"], resumable: bool) -> None:
    """A recorder that is stopped and started at random moments has each tick once, in order."""
    rng = random.Random(5)
    feed = Feed(bursts([PAIR, OTHER], 1_500, rng), 800.0)
    with LocalServer(feed, keys={"demo"}, close_timeout=0.2, resumable=resumable) as server:
        endpoint = Endpoint(server.url, wire=wire)
        seen = Seen()
        starts = 0
        while not server.stats.finished:
            with seen.listener(endpoint, PAIR, OTHER, record=tmp_path, backfill=True, parse_price=str) as listener:
                if not starts:
                    seen.wait_for(lambda: {tick["pair"] for tick in seen.ticks} == feed.pairs)
                listener.join(rng.choice([0.0, 0.05, 0.2]))
                listener.stop(drain=rng.random() < 0.5)
            starts += 1
        last = Seen()
        with last.listener(endpoint, PAIR, OTHER, record=tmp_path, backfill=True):
            last.wait_for(lambda: len(last.gaps) == 2)
    assert starts > 5
    for pair in (PAIR, OTHER):
        found = [line_of(tick) for tick in Archive(tmp_path).ticks(pair, parse_price=str)]
        sent = [line_of(tick) for tick in feed.ticks if tick["pair"] == pair]
        assert Counter(found) == Counter(sent)
        assert [line[:2] for line in found] == [line[:2] for line in sent]
        assert [part for part in Archive(tmp_path).coverage(pair) if not part.complete] == []
