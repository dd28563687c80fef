"""Reading recordings, and scheduling their ticks."""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import StreamListener, to_pandas, to_polars
from finx_streamer.cli.formats import CSV
from finx_streamer.errors import ConfigurationError
from finx_streamer.server import LocalServer, SimulatedMarket, Tape
from finx_streamer.wire.decoder import Decoder
from tests.support.effort import examples


def at(*times: str) -> list[dict[str, str]]:
    return [
        {"pair": "BTC:USDC", "date": "2022-07-02", "time": time, "exchange": "BINANCE", "price": str(number)}
        for number, time in enumerate(times)
    ]


def dues(tape: Tape, count: int | None = None) -> list[float]:
    return [round(due, 6) for due, _ in islice(tape.play(lambda: 0.0), count)]


def played(tape: Tape) -> list[dict[str, str]]:
    return [tick for _, tick in tape.play(lambda: 0.0)]


def test_pace_follows_the_recorded_times() -> None:
    """The pace is that of the recording times the speed."""
    ticks = at("00:00:00.000Z", "00:00:00.500Z", "00:00:00.500Z", "00:00:01.000Z")
    assert dues(Tape(ticks)) == [0.0, 0.5, 0.5, 1.0]
    assert dues(Tape(ticks, speed=10.0)) == [0.0, 0.05, 0.05, 0.1]


def test_late_tick_is_due_at_once() -> None:
    """The pace follows the latest time so far, and the order is that of the tape."""
    ticks = at("00:00:01.000Z", "00:00:00.200Z", "00:00:01.300Z", "00:00:00.900Z", "00:00:01.400Z")
    tape = Tape(ticks)
    assert dues(tape) == [0.0, 0.0, 0.3, 0.3, 0.4]
    assert played(tape) == ticks


def test_long_pauses_are_shortened() -> None:
    """Pauses are at most `max_pause` long."""
    ticks = at("00:00:00Z", "00:00:00.5Z") + [tick | {"date": "2022-07-09"} for tick in at("00:00:00Z")]
    assert dues(Tape(ticks)) == [0.0, 0.5, 1.5]
    assert dues(Tape(ticks, max_pause=0.25)) == [0.0, 0.25, 0.5]
    assert dues(Tape(ticks, max_pause=None)) == [0.0, 0.5, 7 * 86_400.0]


def test_loop_starts_again() -> None:
    """Rounds are `max_pause` apart."""
    tape = Tape(at("00:00:00Z", "00:00:00.5Z"), loop=True, max_pause=2.0)
    assert dues(tape, 5) == [0.0, 0.5, 2.5, 3.0, 5.0]
    assert dues(Tape(at("00:00:00Z"), speed=None, loop=True), 4) == [0.0, 0.0, 0.0, 0.0]
    assert dues(Tape(at("00:00:00Z"), loop=True, max_pause=None), 3) == [0.0, 1.0, 2.0]


def test_unpaced_ticks_are_due_at_once() -> None:
    """Without a speed, no tick waits."""
    tape = Tape(at("00:00:00Z", "01:00:00Z"), speed=None)
    assert not tape.paced
    assert dues(tape) == [0.0, 0.0]


def test_ticks_are_unchanged() -> None:
    """Ticks are played as recorded, equal ones included."""
    ticks = at("00:00:00.1Z", "00:00:00.12Z") * 2
    assert played(Tape(ticks)) == ticks


def test_shifted_times_are_due_times() -> None:
    """Shifted ticks have their due time, and late ones stay late."""
    tape = Tape(at("05:00:01.000Z", "05:00:00.400Z", "05:00:01.500Z"), shift=True)
    times = [tick["time"] for _, tick in tape.play(lambda: 3_600.0)]
    assert times == ["01:00:00.000Z", "00:59:59.400Z", "01:00:00.500Z"]


def test_shifted_times_without_pace() -> None:
    """Without a speed, a shifted tick has the time of reading it."""
    tape = Tape(at("05:00:01.000Z", "05:00:02.000Z"), speed=None, shift=True)
    clock = iter([0.0, 10.0, 20.0])
    assert [tick["time"] for _, tick in tape.play(lambda: next(clock))] == ["00:00:10.000Z", "00:00:20.000Z"]


def test_pairs_are_those_of_the_ticks() -> None:
    """Clients can subscribe to the pairs in the tape."""
    ticks = [*at("00:00:00Z"), at("00:00:00Z")[0] | {"pair": "ETH:USDC"}]
    assert Tape(ticks).pairs == {"BTC:USDC", "ETH:USDC"}


@pytest.mark.parametrize("name", ["ticks.jsonl", "ticks.jsonl.gz"])
def test_reads_files(tmp_path: Path, name: str) -> None:
    """A file can be played repeatedly, and blank lines are skipped."""
    ticks = at("00:00:00Z", "00:00:01Z")
    path = tmp_path / name
    text = "\n\n".join(map(json.dumps, ticks)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    for tape in (Tape(path), Tape(str(path))):
        assert played(tape) == played(tape) == ticks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "Expecting"),
        (b"[]", "JSON object"),
        (b"{}", "'pair' is missing"),
        (b"\xff", "utf-8"),
        (json.dumps(at("25:00:00Z")[0]).encode(), "not a time"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_error_names_the_malformed_line(tmp_path: Path, line: bytes, message: str) -> None:
    """The error names the file and the line."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(at("00:00:00Z")[0]).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ConfigurationError, match=rf"bad\.jsonl, line 3: .*{message}"):
        Tape(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """Missing and damaged files are errors that name the file."""
    whole = bytearray(gzip.compress(json.dumps(at("00:00:00Z")[0]).encode()))
    (tmp_path / "empty.jsonl.gz").write_bytes(whole[:5])
    whole[-8] ^= 1  # the checksum
    (tmp_path / "damaged.jsonl.gz").write_bytes(whole)
    for name in ("missing.jsonl", "empty.jsonl.gz", "damaged.jsonl.gz", "."):
        with pytest.raises(ConfigurationError, match=f"cannot read the tape .*{name}"):
            Tape(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello\nworld\n", "line 1: not JSON: Expecting value"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1: 'utf-8' codec"),
        (json.dumps(at("00:00:00Z")).encode(), "line 1: a tick must be a JSON object, not list"),
        (b"\n{}\n", "line 2: 'pair' is missing"),
        (b"time,price\n15:30:55.817Z,1\n", "line 1: not JSON: Expecting value"),
        (json.dumps(at("00:00:00Z")[0]).encode()[:-1], "line 1: not JSON: Expecting ',' delimiter"),
        (b"x" * 2_000_000, "line 1: not JSON: Expecting value"),
    ],
)
def test_says_what_a_tape_is(tmp_path: Path, content: bytes, reason: str) -> None:
    """If the first tick can't be read, the file is probably something else."""
    path = tmp_path / "ticks.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        Tape(path)
    assert str(caught.value).startswith(f"{path} is not a tape: {reason}")
    assert 'A tape has one tick per line: JSON such as {"pair": "BTC:USDC", ' in str(caught.value)
    assert "or CSV with a header" in str(caught.value)


def write_csv(ticks: list[dict[str, str]]) -> bytes:
    """Ticks in CSV, as `finx-streamer` writes them."""
    own = [Decoder("", tick["pair"], str).decode_tick(tick, 5) for tick in ticks]
    return (CSV.header + "".join(map(CSV.format_tick, own))).encode()


def as_csv(ticks: list[dict[str, str]]) -> bytes:
    """CSV with only the fields of the wire."""
    return "".join(",".join(row) + "\n" for row in [list(ticks[0]), *(list(tick.values()) for tick in ticks)]).encode()


def as_json(ticks: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(tick) + "\n" for tick in ticks).encode()


SIX = at(*(f"00:00:0{second}.817Z" for second in range(6)))


@given(st.sampled_from([as_json, write_csv, as_csv]), st.booleans(), st.data())
@examples(200)
def test_plays_a_tape_up_to_the_point_where_it_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[..., bytes], packed: bool, data: st.DataObject
) -> None:
    """Wherever that is, the complete ticks are played, and a warning says where."""
    text = write(SIX)
    whole = gzip.compress(text) if packed else text
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    path = tmp_path_factory.mktemp("cut") / "tape"
    path.write_bytes(cut)
    left = zlib.decompressobj(wbits=31).decompress(cut) if packed else cut
    header = 0 if write is as_json else 1
    # A closing brace is as good as a line break. Of our own CSV's columns, the last one doesn't matter.
    last = left.rpartition(b"\n")[2]
    complete = left + b"\n" if last.endswith(b"}") or last.count(b",") == 7 else left
    count = complete.count(b"\n") - header
    clean = not packed and complete.endswith(b"\n")
    if count <= 0:
        with pytest.raises(ConfigurationError, match=r"no ticks|not a tape|cannot read"):
            Tape(path)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert played(Tape(path)) == SIX[:count]
    ticks = "first tick was read" if count == 1 else f"first {count} ticks were read"
    partial = f"in line {header + count + 1}"
    where = partial if not complete.endswith(b"\n") else f"in its gzip data, after line {header + count}"
    text = f"the tape {path} is cut off {where}, probably by a crash; only the {ticks}"
    assert [str(warning.message) for warning in caught] == ([] if clean else [text])


def test_a_power_failure_leaves_null_bytes(tmp_path: Path) -> None:
    """Some file systems fill the last block with them."""
    path = tmp_path / "tape.jsonl"
    path.write_bytes(as_json(SIX)[:-20] + bytes(4_096))
    with pytest.warns(RuntimeWarning, match="is cut off in line 6"):
        assert played(Tape(path)) == SIX[:5]


def test_plays_a_tape_that_is_being_recorded(tmp_path: Path) -> None:
    """It plays what was there at first, in each round."""
    path = tmp_path / "tape.jsonl"
    path.write_bytes(as_json(SIX[:2]))
    tape = Tape(path, speed=None, loop=True)
    with path.open("ab") as file:
        file.write(as_json(SIX[2:])[:-9])
    assert [tick for _, tick in islice(tape.play(lambda: 0.0), 5)] == [*SIX[:2], *SIX[:2], SIX[0]]


def test_a_tape_that_lost_ticks_is_an_error(tmp_path: Path) -> None:
    """A round doesn't end early without a word."""
    path = tmp_path / "tape.jsonl"
    path.write_bytes(as_json(SIX))
    tape = Tape(path, loop=True)
    path.write_bytes(as_json(SIX[:2]))
    with pytest.raises(ConfigurationError, match="was changed: it has 2 ticks now, and had 6"):
        played(tape)


def test_plays_our_own_csv(tmp_path: Path) -> None:
    """Prices and times are as they were; the content decides about the format, not the name."""
    ticks = [*at("00:00:00Z", "00:00:00.123456789Z"), SIX[5] | {"exchange": 'A,"B"', "price": "9.2E-7"}]
    for content in (write_csv(ticks), gzip.compress(write_csv(ticks))):
        (tmp_path / "tape").write_bytes(content)
        assert played(Tape(tmp_path / "tape")) == ticks


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("BTC:USDC,2022-07-02,00:00:00Z,BINANCE", "4 cells; expected 5, as in the header"),
        ("BTC:USDC,2022-07-02,00:00:00Z,BINANCE,1,2", "6 cells; expected 5, as in the header"),
        ("BTC:USDC,2022-07-02,00:00:00Z,BINANCE,x", "not a price"),
        ('BTC:USDC,2022-07-02,00:00:00Z,"BINANCE,1', "not CSV: unexpected end of data"),
    ],
)
def test_error_names_the_malformed_row(tmp_path: Path, row: str, reason: str) -> None:
    """The lines are counted with the header."""
    path = tmp_path / "tape.csv"
    path.write_bytes(as_csv(SIX[:1]) + row.encode() + b"\n" + as_csv(SIX[:1]))
    with pytest.raises(ConfigurationError, match=f"tape.csv, line 3: {reason}"):
        Tape(path)


def test_plays_csv_that_was_edited(tmp_path: Path) -> None:
    """A spreadsheet writes a byte order mark and CRLF; the columns may be in any order."""
    path = tmp_path / "tape.csv"
    path.write_text("\ufeffprice,note,exchange,pair,date,time\r\n1,x,FTX,BTC:USDC,2022-07-02,00:00:00Z\r\n", newline="")
    tick = {"pair": "BTC:USDC", "date": "2022-07-02", "time": "00:00:00Z", "exchange": "FTX", "price": "1"}
    assert played(Tape(path)) == [tick]


def test_numbers_stay_as_they_were_written(tmp_path: Path) -> None:
    """Other programs write prices as numbers."""
    path = tmp_path / "tape.jsonl"
    path.write_text(json.dumps(SIX[0] | {"price": "X"}).replace('"X"', "21865.0100000000020"))
    assert played(Tape(path)) == [SIX[0] | {"price": "21865.0100000000020"}]


def test_plays_what_a_listener_received() -> None:
    """`recent()` and tables can be played, and a client receives the same ticks again."""
    with LocalServer(Tape(SIX, speed=None), keys={"demo"}) as server:
        listener = StreamListener("BTC:USDC", endpoint=server.url, api_key="demo", keep=10)
        assert len(list(islice(listener, 6))) == 6
        recent = listener.recent()
        listener.stop()
    frame = to_pandas(recent)
    for ticks in (recent, frame, frame.to_dict("records"), to_polars(recent)):
        assert played(Tape(ticks)) == [tick | {"price": f"{float(tick['price'])}"} for tick in SIX]


def test_plays_a_table_that_pandas_wrote(tmp_path: Path) -> None:
    """Its timestamps are text."""
    ticks = [Decoder("", "BTC:USDC").decode_tick(tick, 5) for tick in SIX]
    to_pandas(ticks).to_csv(tmp_path / "tape.csv")
    assert played(Tape(tmp_path / "tape.csv")) == [tick | {"price": f"{float(tick['price'])}"} for tick in SIX]


def test_error_names_the_malformed_tick() -> None:
    """The error gives the number of the tick."""
    with pytest.raises(ConfigurationError, match=r"tick 2 of the tape: 'price' is missing"):
        Tape([*at("00:00:00Z"), {"pair": "BTC:USDC", "date": "2022-07-02", "time": "00:00:00Z", "exchange": "FTX"}])


@pytest.mark.parametrize(
    "arguments",
    [
        {"speed": 0},
        {"speed": -1.0},
        {"speed": float("inf")},
        {"speed": float("nan")},
        {"wait_for": -1},
        {"wait_for": 1.5},
        {"max_pause": -0.1},
    ],
)
def test_rejects_arguments_out_of_range(arguments: dict[str, float]) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Tape(at("00:00:00Z"), **arguments)


def test_accepts_numbers_of_numpy() -> None:
    """As arguments of a tape and of a server."""
    tape = Tape(SIX, speed=np.float32(10), wait_for=np.int64(0), max_pause=np.int8(1))
    with LocalServer(tape, store_batch=np.int16(2), store_batch_seconds=np.float64(0.01)) as server:
        server.wait_finished()
        server.wait_until(lambda stats: stats.ticks_stored == 6)


def test_numbers_of_numpy_become_those_of_python() -> None:
    """The clock in seconds as `float32` would be wrong by a minute."""
    tape = Tape(at("00:00:00Z", "00:00:01Z"), np.float32(0.5), wait_for=np.int64(1), max_pause=np.float32(5))
    assert tape.wait_for == 1
    assert [(due, type(due)) for due, _ in tape.play(lambda: 0.0)] == [(0.0, float), (2.0, float)]
    market = SimulatedMarket(rate=np.float32(50), limit=np.int64(2))
    assert [type(due) for due, _ in market.play(lambda: 0.0)] == [float, float]
    settings = {"port": np.int64(0), "idle_limit": np.float32(300), "store_limit": np.int64(10)}
    with LocalServer(market, store_batch=np.int64(5), store_batch_seconds=np.float32(0.1), **settings) as server:
        assert type(server.port) is int


def test_rejects_an_empty_tape() -> None:
    """An empty tape is an error."""
    with pytest.raises(ConfigurationError, match="no ticks"):
        Tape([])


@pytest.mark.parametrize("name", ["tape-small.jsonl", "tape.jsonl.gz"])
def test_plays_real_recordings_unchanged(shared_data: Path, name: str) -> None:
    """Every real line is played unchanged, in order and after at most one second."""
    content = (shared_data / name).read_bytes()
    lines = (gzip.decompress(content) if name.endswith("gz") else content).splitlines()
    tape = Tape(shared_data / name)
    events = list(tape.play(lambda: 0.0))
    assert [tick for _, tick in events] == [json.loads(line) for line in lines]
    assert all(0 <= after - before <= 1.0 + 1e-9 for (before, _), (after, _) in pairwise(events))


def test_plays_real_odd_values(shared_data: Path) -> None:
    """Exponents, integers, tiny and huge prices and late trades are played."""
    lines = map(json.loads, (shared_data / "odd.jsonl").read_text().splitlines())
    ticks = [line["line"] for line in lines if "line" in line]
    assert played(Tape(ticks)) == ticks
