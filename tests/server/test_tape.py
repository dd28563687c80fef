"""Reading recordings, and scheduling their ticks."""

from __future__ import annotations

import gzip
import json
from itertools import islice, pairwise
from pathlib import Path

import pytest

from finx_streamer.errors import ConfigurationError
from finx_streamer.server import Tape


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
    """Missing, truncated and mislabelled files are errors that name the file."""
    whole = gzip.compress(json.dumps(at("00:00:00Z")[0]).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "text.jsonl.gz").write_bytes(b"{}")
    for name in ("missing.jsonl", "cut.jsonl.gz", "text.jsonl.gz"):
        with pytest.raises(ConfigurationError, match=f"cannot read the tape .*{name}"):
            Tape(tmp_path / name)


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
