"""`Recording`: recorded ticks and contract tickers that can be read repeatedly, from a file or from memory.

A file has one of them per line, as JSON or CSV. Its content decides about the format and about gzip, not its name. A
directory is an archive.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import attrs

from ..errors import ConfigurationError
from .contracts import ContractTicker, Played, parse_played
from .ticks import FIELDS, Tick, parse_tick

#: The longest line of a file in bytes. A tick has fewer than 200.
_MAX_LINE = 1_048_576
_GZIP, _UTF8_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"
_WHAT_A_TAPE_IS = (
    '. A tape has one tick per line: JSON such as {"pair": "BTC:USDC", "date": "2022-07-02", "time": "15:30:55.817Z", '
    '"exchange": "BINANCE", "price": "19200.84"}, or CSV with a header that has these names. In JSON, it may also have '
    "contract tickers. gzip may compress it."
)
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_read_json = json.JSONDecoder(parse_float=str, parse_int=str).decode

#: The columns that matter.
_USED = frozenset({*FIELDS, "timestamp"})

#: What ticks can be read from.
Recorded = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


class Recording:
    """Recorded ticks and contract tickers, checked. `len()` counts the ticks.

    A file is read here once, and again by each `read()`. It may therefore be larger than memory. An iterable is kept in
    memory.

    Raises:
        ConfigurationError: The file can't be read, or a tick is malformed.
    """

    def __init__(self, ticks: Recorded) -> None:
        self._path = Path(ticks) if isinstance(ticks, str | os.PathLike) else None
        self._kept = () if isinstance(ticks, str | os.PathLike) else tuple(_parse_all(_rows(ticks)))
        #: How many lines it has. Known when all were read.
        self._count: int | None = None
        ticks_of: Counter[str] = Counter()
        tickers_of: Counter[str] = Counter()
        hashed = _TickHash()
        for played in self.read():
            if isinstance(played, ContractTicker):
                tickers_of[played.instrument.name] += 1
            else:
                ticks_of[played["pair"]] += 1
                if self._path is not None:
                    hashed.add(played)
        self._length = ticks_of.total()
        self._count = self._length + tickers_of.total()
        #: The pairs and the contracts that occur in it.
        self.pairs = frozenset(ticks_of)
        self.contracts = frozenset(tickers_of)
        #: Known unless the ticks are in memory.
        self._digest = None if self._path is None else hashed.digest

    @property
    def digest(self) -> str:
        """Identifies the sequence of ticks, in any format, under any file name and with any contracts between them."""
        if self._digest is None:
            hashed = _TickHash()
            for tick in self._read_ticks():
                hashed.add(tick)
            self._digest = hashed.digest
        return self._digest

    def __str__(self) -> str:
        return "the tape" if self._path is None else f"the tape {self._path}"

    @property
    def is_file(self) -> bool:
        """Whether the ticks are in a file."""
        return self._path is not None

    def __len__(self) -> int:
        return self._length

    def read(self, skip: int = 0) -> Iterator[Played]:
        """Read from the beginning: the same each time, but without the first `skip` ticks.

        Raises:
            ConfigurationError: The file has changed and has fewer ticks now, or can't be read.
        """
        played = iter(self._kept) if self._path is None else self._read_file(self._path)
        return _without_first_ticks(played, skip) if skip else played

    def _read_ticks(self) -> Iterator[Tick]:
        return (played for played in self.read() if not isinstance(played, ContractTicker))

    def beginnings(self, known: Mapping[str, int]) -> list[str]:
        """Return the digests of the known sequences with which it begins. `known` has the lengths by digest."""
        lengths = {length for length in known.values() if length < len(self)}
        hashed = _TickHash()
        found: list[str] = []
        for count, tick in enumerate(islice(self._read_ticks(), max(lengths, default=0)), 1):
            hashed.add(tick)
            if count in lengths and hashed.digest in known:
                found.append(hashed.digest)
        return found

    def _read_file(self, path: Path) -> Iterator[Played]:
        count = 0
        is_archive = (path / "journal").is_dir()
        for played in _read_archive(path) if is_archive else _FileReader(path, self._warn).read():
            # Whoever records the file may have added ticks since.
            if count == self._count:
                return
            count += 1
            yield played
        if self._count is not None and count < self._count:
            raise ConfigurationError(f"{self} was changed: it has {count:,} ticks now, and had {self._count:,}")

    def _warn(self, text: str) -> None:
        if self._count is None:  # once
            warnings.warn(text, RuntimeWarning, stacklevel=2)


class _TickHash:
    """The digest of a sequence of ticks."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, tick: Tick) -> None:
        # JSON, because an exchange may contain any separator.
        self._hash.update(_to_json(list(tick.values())).encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _rows(ticks: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The rows of a pandas or Polars table; anything else as it is."""
    if callable(to_rows := getattr(ticks, "to_dicts", None)):
        return to_rows()  # type: ignore[no-any-return]
    if callable(to_rows := getattr(ticks, "to_dict", None)):
        return to_rows("records")  # type: ignore[no-any-return]
    return ticks


def _without_first_ticks(played: Iterable[Played], count: int) -> Iterator[Played]:
    for each in played:
        if count and not isinstance(each, ContractTicker):
            count -= 1
        else:
            yield each


def _parse_all(ticks: Iterable[Mapping[str, Any]]) -> Iterator[Played]:
    for number, raw in enumerate(ticks, start=1):
        try:
            yield parse_played(raw)
        except ValueError as error:
            raise ConfigurationError(f"tick {number} of the tape: {error}") from None


def _read_archive(path: Path) -> Iterator[Played]:
    """Return the ticks and contract tickers of an archive, in recorded order."""
    from ..archive import Archive  # an extra

    for entry in Archive(path).entries(parse_price=str):
        if isinstance(entry, dict):
            yield parse_tick(entry)
        elif entry.kind == "message":
            # Anything else is a notice, which a tape doesn't play.
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(entry.fields["text"])
                yield parse_played(message.get("resultData", message) if isinstance(message, dict) else message)


@attrs.define
class _FileReader:
    """Reads a file to its end, or to the point at which a crash cut it off."""

    _path: Path
    #: Called with a description of that point.
    _on_cut: Callable[[str], None]
    #: The number of the last line and of the last tick.
    _line: int = attrs.field(default=0, init=False)
    _tick: int = attrs.field(default=0, init=False)

    def read(self) -> Iterator[Played]:
        try:
            with _open(self._path) as file:
                lines = self._lines(file)
                first = next(lines, b"").removeprefix(_UTF8_MARK)
                header = _csv_header(first)
                parse = _parse_json if header is None else _CsvRow(header).parse
                for line in chain([first] if first and header is None else [], lines):
                    tick = self._parse(parse, line)
                    if tick is None:
                        return
                    self._tick += 1
                    yield tick
                if getattr(file.raw, "is_cut", False):
                    self._report_cut(f"in its gzip data, after line {self._line:,}")
        except (OSError, zlib.error) as error:
            position = f" after line {self._line:,}" if self._line else ""
            raise ConfigurationError(f"cannot read the tape {self._path}{position}: {error}") from error

    def _lines(self, file: io.BufferedReader) -> Iterator[bytes]:
        """The lines that aren't blank."""
        while line := file.readline(_MAX_LINE):
            self._line += 1
            if not line.isspace():
                yield line

    def _parse(self, parse: Callable[[bytes], Any], line: bytes) -> Played | None:
        """Parse a tick. None where the file is cut off."""
        try:
            return parse_played(parse(line))
        except (ValueError, RecursionError) as error:
            is_last = not line.endswith(b"\n") and len(line) < _MAX_LINE
            if is_last and self._tick:
                self._report_cut(f"in line {self._line:,}")
                return None
            start, end = (f"{self._path},", "") if self._tick else (f"{self._path} is not a tape:", _WHAT_A_TAPE_IS)
            raise ConfigurationError(f"{start} line {self._line:,}: {error}{end}") from None

    def _report_cut(self, where: str) -> None:
        if not self._tick:
            raise ConfigurationError(f"cannot read the tape {self._path}: it is cut off before the first tick")
        ticks = "tick was read" if self._tick == 1 else f"{self._tick:,} ticks were read"
        self._on_cut(f"the tape {self._path} is cut off {where}, probably by a crash; only the first {ticks}")


def _parse_json(line: bytes) -> Any:
    try:
        # Numbers stay as they were written.
        return _read_json(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, column {error.colno}") from None


def _csv_header(line: bytes) -> list[str] | None:
    """The names of the columns; None if the line isn't the header of a tape in CSV."""
    with contextlib.suppress(ValueError, csv.Error):
        names = _csv_cells(line)
        if {"pair", "exchange", "price"} <= set(names):
            return names
    return None


def _csv_cells(line: bytes) -> list[str]:
    # No tick has a line break within a cell: our own CSV escapes it.
    return next(csv.reader([line.decode()], strict=True))


@attrs.frozen
class _CsvRow:
    """Parses the lines below a header."""

    _header: list[str]

    def parse(self, line: bytes) -> dict[str, str]:
        if self._header[-1] in _USED and not line.endswith(b"\n"):
            raise ValueError(f"there is no line break at the end, so {self._header[-1]!r} may be incomplete")
        try:
            cells = _csv_cells(line)
        except csv.Error as error:
            raise ValueError(f"not CSV: {error}") from None
        if len(cells) != len(self._header):
            raise ValueError(f"{len(cells)} cells; expected {len(self._header)}, as in the header")
        return dict(zip(self._header, cells, strict=True))


def _open(path: Path) -> io.BufferedReader:
    """Open a file for reading its bytes, decompressed."""
    file = path.open("rb")
    if file.peek(2)[:2] != _GZIP:
        return file
    return io.BufferedReader(_Gunzip(file))


class _Gunzip(io.RawIOBase):
    """Decompressed bytes. They end where the compressed data is cut off, and `is_cut` is set."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._unpacked = gzip.GzipFile(fileobj=file)
        self.is_cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._unpacked.read1(len(buffer))
        except EOFError:
            self.is_cut = True
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
