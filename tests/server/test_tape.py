"""Recorded ticks: reading them, and when each is due."""

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


def test_a_tape_is_paced_by_its_times() -> None:
    """The pace is the recording's times the speed."""
    ticks = at("00:00:00.000Z", "00:00:00.500Z", "00:00:00.500Z", "00:00:01.000Z")
    assert dues(Tape(ticks)) == [0.0, 0.5, 0.5, 1.0]
    assert dues(Tape(ticks, speed=10.0)) == [0.0, 0.05, 0.05, 0.1]


def test_late_ticks_go_out_at_once_and_in_their_place() -> None:
    """The pace follows the latest time so far, the order is the tape's."""
    ticks = at("00:00:01.000Z", "00:00:00.200Z", "00:00:01.300Z", "00:00:00.900Z", "00:00:01.400Z")
    tape = Tape(ticks)
    assert dues(tape) == [0.0, 0.0, 0.3, 0.3, 0.4]
    assert ticks == played(tape)


def test_long_pauses_are_cut() -> None:
    """Islands days apart are played `max_pause` apart."""
    ticks = at("00:00:00Z", "00:00:00.5Z") + [tick | {"date": "2022-07-09"} for tick in at("00:00:00Z")]
    assert dues(Tape(ticks)) == [0.0, 0.5, 1.5]
    assert dues(Tape(ticks, max_pause=0.25)) == [0.0, 0.25, 0.5]
    assert dues(Tape(ticks, max_pause=None)) == [0.0, 0.5, 7 * 86_400.0]


def test_a_loop_begins_again() -> None:
    """A round follows the one before after the longest pause."""
    tape = Tape(at("00:00:00Z", "00:00:00.5Z"), loop=True, max_pause=2.0)
    assert dues(tape, 5) == [0.0, 0.5, 2.5, 3.0, 5.0]
    assert dues(Tape(at("00:00:00Z"), speed=None, loop=True), 4) == [0.0, 0.0, 0.0, 0.0]
    assert dues(Tape(at("00:00:00Z"), loop=True, max_pause=None), 3) == [0.0, 1.0, 2.0]


def test_without_a_pace_all_is_due() -> None:
    """With no speed nothing waits."""
    tape = Tape(at("00:00:00Z", "01:00:00Z"), speed=None)
    assert not tape.paced
    assert dues(tape) == [0.0, 0.0]


def test_times_stay_as_recorded() -> None:
    """Nothing in a tick is changed, equal ticks included."""
    ticks = at("00:00:00.1Z", "00:00:00.12Z") * 2
    assert ticks == played(Tape(ticks))


def test_times_shifted_to_now() -> None:
    """Shifted ticks bear the time at which they are due; late ones stay late."""
    tape = Tape(at("05:00:01.000Z", "05:00:00.400Z", "05:00:01.500Z"), shift=True)
    times = [tick["time"] for _, tick in tape.play(lambda: 3_600.0)]
    assert times == ["01:00:00.000Z", "00:59:59.400Z", "01:00:00.500Z"]


def test_times_shifted_without_a_pace() -> None:
    """With no speed a shifted tick bears the time at which it is asked for."""
    tape = Tape(at("05:00:01.000Z", "05:00:02.000Z"), speed=None, shift=True)
    clock = iter([0.0, 10.0, 20.0])
    assert [tick["time"] for _, tick in tape.play(lambda: next(clock))] == ["00:00:10.000Z", "00:00:20.000Z"]


def test_the_pairs_are_those_in_the_tape() -> None:
    """What is not in the tape cannot be asked for."""
    assert {"BTC:USDC", "ETH:USDC"} == Tape([*at("00:00:00Z"), at("00:00:00Z")[0] | {"pair": "ETH:USDC"}]).pairs


@pytest.mark.parametrize("name", ["ticks.jsonl", "ticks.jsonl.gz"])
def test_files_are_read(tmp_path: Path, name: str) -> None:
    """A file is played as it is, blank lines apart, as often as asked."""
    ticks = at("00:00:00Z", "00:00:01Z")
    path = tmp_path / name
    text = "\n\n".join(map(json.dumps, ticks)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    for tape in (Tape(path), Tape(str(path))):
        assert ticks == played(tape) == played(tape)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "Expecting"),
        (b"[]", "JSON object"),
        (b"{}", "'pair' is missing"),
        (b"\xff", "utf-8"),
        (json.dumps(at("25:00:00Z")[0]).encode(), "not a time"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: bytes, says: str) -> None:
    """The error names the file and the line."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(at("00:00:00Z")[0]).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ConfigurationError, match=rf"bad\.jsonl, line 3: .*{says}"):
        Tape(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing, a cut and a mislabelled file are errors that name it."""
    whole = gzip.compress(json.dumps(at("00:00:00Z")[0]).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "text.jsonl.gz").write_bytes(b"{}")
    for name in ("missing.jsonl", "cut.jsonl.gz", "text.jsonl.gz"):
        with pytest.raises(ConfigurationError, match=f"cannot read the tape .*{name}"):
            Tape(tmp_path / name)


def test_malformed_ticks_of_an_iterable_are_counted() -> None:
    """The error tells which tick it is."""
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
def test_arguments_out_of_range(arguments: dict[str, float]) -> None:
    """An argument out of range is named."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Tape(at("00:00:00Z"), **arguments)


def test_a_tape_without_ticks() -> None:
    """An empty tape is a mistake."""
    with pytest.raises(ConfigurationError, match="no ticks"):
        Tape([])


@pytest.mark.parametrize("name", ["tape-small.jsonl", "tape.jsonl.gz"])
def test_real_recordings_are_played_as_they_are(data: Path, name: str) -> None:
    """Every real line comes out untouched, in its order, and never waits longer than a second."""
    content = (data / name).read_bytes()
    lines = (gzip.decompress(content) if name.endswith("gz") else content).splitlines()
    tape = Tape(data / name)
    events = list(tape.play(lambda: 0.0))
    assert [json.loads(line) for line in lines] == [tick for _, tick in events]
    assert all(0 <= after - before <= 1.0 + 1e-9 for (before, _), (after, _) in pairwise(events))


def test_real_odd_values_are_ticks(data: Path) -> None:
    """Exponents, integers, tiny and huge prices and late trades are all played."""
    lines = map(json.loads, (data / "odd.jsonl").read_text().splitlines())
    ticks = [line["line"] for line in lines if "line" in line]
    assert ticks == played(Tape(ticks))
