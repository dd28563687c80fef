"""The journal: one hour's entries in recorded order, in blocks that are checked one by one.

A block is a skippable zstd frame with its description, followed by a zstd frame with a checksum, so `zstdcat` reads
the file. The text consists of lines of JSON:

    {"at":1,"ticks":2,"bytes":260}                         2 ticks follow, as received at this time; 260 bytes
    {"results":"streaming","resultData":{"pair":…}}
    {"results":"streaming","resultData":{"pair":…}}
    {"at":1,"kind":"message","symbol":null,"text":"…"}     any other message
    {"at":1,"kind":"gap","symbol":"BTC:USDC",…}            an event, with its fields

Times are in nanoseconds since 1970. Ticks that were fetched from history have `"backfilled":true` in their first line.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import attrs
import zstandard

from .layout import iso_time, sync_directory

#: A block ends at this number of entries or bytes of text.
MAX_ENTRIES, MAX_BYTES = 1_000, 1 << 20
_MAGIC = 0x184D2A5B
#: A block that claims to have more text is damaged: reading it would take all memory.
_MOST_TEXT = 1 << 28
#: Magic, size of what follows; size of the zstd frame, entries, first and last time; CRC-32 of all that.
_HEAD = struct.Struct("<IIIIqqI")
_BEFORE = struct.pack("<II", _MAGIC, _HEAD.size - 8)
_WINDOW = 1 << 20
#: How many blocks at the end of a journal are checked after a crash.
_CHECKED = 256
#: What a service sends of a tick.
FIELDS = ("pair", "date", "time", "exchange", "price")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@attrs.frozen
class Block:
    """A whole block: where it is, what it contains."""

    start: int
    end: int
    entries: int
    first_ns: int
    last_ns: int
    text: bytes = attrs.field(repr=False)

    def parse(self) -> list[Ticks | Entry] | None:
        """Return its entries. None if another program wrote something else."""
        try:
            return list(parse(self.text))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None


@attrs.frozen
class Damage:
    """Bytes that aren't whole blocks. `torn`: nothing whole follows, as after a crash."""

    start: int
    end: int
    torn: bool


@attrs.frozen
class Ticks:
    """A run of ticks that were received together, one line each."""

    at: int
    count: int
    text: bytes
    backfilled: bool


@attrs.frozen
class Entry:
    """A message that isn't a tick, or an event."""

    at: int
    kind: str
    symbol: str | None
    fields: dict[str, Any]
    line: str

    @classmethod
    def parse(cls, line: str | bytes) -> Entry:
        """Read a line."""
        fields = json.loads(line)
        text = line if isinstance(line, str) else line.decode()
        at, kind, symbol = fields.pop("at"), fields.pop("kind"), fields.pop("symbol", None)
        if not (_is_time(at) and isinstance(kind, str) and isinstance(symbol, str | None)):
            raise ValueError(f"not an entry: {text[:100]!r}")
        return cls(at, kind, symbol, fields, text)


def entry_line(at: int, kind: str, symbol: str | None, fields: dict[str, Any]) -> bytes:
    """Return the line of an entry, with its line feed."""
    return _to_json({"at": at, "kind": kind, "symbol": symbol, **fields}).encode() + b"\n"


def message_line(at: int, payload: bytes, symbol: str | None) -> bytes:
    """Return the line of a message that isn't a tick."""
    return entry_line(at, "message", symbol, {"text": payload.decode("utf-8", "surrogateescape")})


def tick_line(tick: dict[str, str]) -> bytes:
    """Return a tick as a server would send it."""
    return json.dumps({"results": "streaming", "resultData": tick}, separators=(",", ":")).encode()


def frame_payloads(chunk: bytes) -> Iterator[bytes]:
    """Return the payloads of frames, by their lengths."""
    at = 0
    while at < len(chunk):
        length, start = chunk[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(chunk[start : start + 2], "big"), start + 2
        at = start + length
        yield chunk[start:at]


def gap_line(at: int, since: int, until: int, why: str, **more: Any) -> bytes:
    """Return the line of a gap of all streams: the archive lacks what was received in that time."""
    times = {"since": iso_time(since), "until": iso_time(until + 999)}
    return entry_line(at, "gap", None, {**times, "filled": False, "why": why, **more})


def ticks_lines(at: int, count: int, lines: bytes, backfilled: bool = False) -> bytes:
    """Return the lines of a run of ticks. Each of `lines` begins, not ends, with its line feed."""
    mark = b',"backfilled":true' if backfilled else b""
    return b'{"at":%d,"ticks":%d,"bytes":%d%b}%b\n' % (at, count, len(lines), mark, lines)


def tick_runs(at: int, lines: list[bytes], backfilled: bool) -> Iterator[tuple[bytes, int]]:
    """Return the lines of runs of ticks that fit into a block, and how many ticks each has."""
    for start in range(0, len(lines), MAX_ENTRIES):
        part = lines[start : start + MAX_ENTRIES]
        yield ticks_lines(at, len(part), b"\n" + b"\n".join(part), backfilled), len(part)


def _is_time(at: object) -> bool:
    return isinstance(at, int) and 0 <= at < 1 << 63


def parse(text: bytes) -> Iterator[Ticks | Entry]:
    """Return the entries of a block. Raises ValueError, LookupError, TypeError, AttributeError or RecursionError."""
    at = 0
    while at < len(text):
        end = text.index(b"\n", at) + 1
        line = text[at : end - 1]
        at = end
        if b'"kind":' in line:
            yield Entry.parse(line)
            continue
        head = json.loads(line)
        at += head["bytes"]
        ticks = Ticks(head["at"], head["ticks"], text[end:at], "backfilled" in head)
        lines = ticks.text.count(b"\n")
        if not _is_time(ticks.at) or lines != ticks.count or ticks.text[-1:] not in (b"\n", b""):
            raise ValueError(f"not a run of ticks: {line[:100]!r}")
        if lines:
            yield ticks


def compressor() -> zstandard.ZstdCompressor:
    """Return what `pack` uses. One thread may use it at a time."""
    return zstandard.ZstdCompressor(1, write_checksum=True)


def pack(text: bytes, entries: int, first_ns: int, last_ns: int, zstd: zstandard.ZstdCompressor | None = None) -> bytes:
    """Return the bytes of a block. Compressing releases the GIL."""
    packed = (zstd or compressor()).compress(text)
    head = _HEAD.pack(_MAGIC, _HEAD.size - 8, len(packed), entries, first_ns, last_ns, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head)) + packed


def read_blocks(file: IO[bytes], start: int = 0) -> Iterator[Block | Damage]:
    """Return the blocks of a journal up to its present end, and what is damaged between them."""
    size = os.fstat(file.fileno()).st_size
    at = start
    while at < size:
        block = _block_at(file, at, size)
        if block is None:
            following = _next_block(file, at + 1, size)
            end = size if following is None else following.start
            yield Damage(at, end, torn=following is None)
            if following is None:
                return
            block = following
        yield block
        at = block.end


def scan(file: IO[bytes]) -> Iterator[int]:
    """Return where blocks start, by their heads only."""
    size = os.fstat(file.fileno()).st_size
    at = 0
    while at < size:
        file.seek(at)
        head = _head(file.read(_HEAD.size))
        if head is None or at + _HEAD.size + head[0] > size:
            following = _next_block(file, at + 1, size)
            if following is None:
                return
            at = following.start
            continue
        yield at
        at += _HEAD.size + head[0]


def read_block(file: IO[bytes], start: int) -> Block | None:
    """Return the block that starts there. None if it is damaged."""
    return _block_at(file, start, os.fstat(file.fileno()).st_size)


def _head(head: bytes) -> tuple[int, int, int, int] | None:
    """Return the size of what follows, the entries, and the first and last time. None if the head is damaged."""
    if len(head) < _HEAD.size or not head.startswith(_BEFORE):
        return None
    *_, packed_size, entries, first, last, check = _HEAD.unpack(head)
    return (packed_size, entries, first, last) if check == zlib.crc32(head[:-4]) else None


def _block_at(file: IO[bytes], at: int, size: int) -> Block | None:
    file.seek(at)
    head = _head(file.read(_HEAD.size))
    if head is None:
        return None
    packed_size, entries, first, last = head
    end = at + _HEAD.size + packed_size
    if end > size:
        return None
    packed = file.read(packed_size)
    try:
        if zstandard.frame_content_size(packed) > _MOST_TEXT:
            return None
        text = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError:
        return None
    return Block(at, end, entries, first, last, text)


def _next_block(file: IO[bytes], at: int, size: int) -> Block | None:
    """Search for the next whole block."""
    while at < size:
        file.seek(at)
        window = file.read(_WINDOW)
        found = window.find(_BEFORE)
        while found >= 0:
            block = _block_at(file, at + found, size)
            if block is not None:
                return block
            found = window.find(_BEFORE, found + 1)
        at += max(len(window) - len(_BEFORE) + 1, 1)
    return None


@attrs.frozen
class Repaired:
    """What `repair` found: the time of the last whole entry (None without one), and how many bytes it cut off."""

    last_ns: int | None
    cut: int


def repair(path: Path) -> Repaired:
    """Cut off the torn tail of a journal. Damage between whole blocks stays, for `Archive.verify` to report it.

    Only the last blocks are read: those before them were on disk before the crash.
    """
    last_ns, cut = None, 0
    with open(path, "rb+") as file:
        for part in read_blocks(file, _last_blocks(file)):
            if isinstance(part, Block):
                last_ns = part.last_ns
            elif part.torn:
                cut = part.end - part.start
                file.truncate(part.start)
                os.fsync(file.fileno())
    return Repaired(last_ns, cut)


def _last_blocks(file: IO[bytes]) -> int:
    """Return where the last blocks begin."""
    starts = deque(scan(file), maxlen=_CHECKED)
    return starts[0] if starts else 0


class JournalFile:
    """A journal that is appended to. After a failed write, the next one first removes what it left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Where the last block ends. None: at the end of the file.
        self._end: int | None = None
        self._file = -1
        #: Whether blocks are gone, which the next successful `append` reports.
        self._shrunk = False

    def append(self, data: bytes) -> bool:
        """Append a block. Return whether earlier blocks are gone, for example because the file was removed.

        Raises:
            OSError: The block can't be written. Then nothing of it stays in the file.
        """
        try:
            self._open()
            end = self._end or 0
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self.close()
            raise
        self._end = end + len(data)
        shrunk, self._shrunk = self._shrunk, False
        return shrunk

    def _open(self) -> None:
        """Open the file, or check that it is still the one in the directory."""
        if self._file >= 0:
            if not os.path.samestat(os.stat(self.path), os.fstat(self._file)):
                raise FileNotFoundError(errno.ENOENT, "the journal was replaced", str(self.path))
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._file = file
        present = os.fstat(file).st_size
        if not present:
            sync_directory(self.path.parent)
        if self._end is None:
            self._end = present
        elif present < self._end:
            self._shrunk = True
            repair(self.path)
            self._end = os.fstat(file).st_size

    def sync(self) -> None:
        """Wait until everything is on disk. Raises OSError; then it isn't known what is."""
        if self._file >= 0:
            try:
                os.fsync(self._file)
            except OSError:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            file, self._file = self._file, -1
            with suppress(OSError):
                os.close(file)
