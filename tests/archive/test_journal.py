"""The blocks of the journal: what a crash or a flipped bit costs."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("zstandard", reason='needs the extra: pip install "finx-streamer[archive]"')

from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.archive.journal import (
    Block,
    Damage,
    Entry,
    JournalFile,
    Ticks,
    entry_line,
    pack,
    parse,
    read_blocks,
    repair,
    ticks_lines,
)

TEXTS = [b"".join(entry_line(n, "x", None, {"n": n}) for n in range(first, first + 3)) for first in (0, 3, 6)]
BLOCKS = [pack(text, 3, number, number) for number, text in enumerate(TEXTS)]
JOURNAL = b"".join(BLOCKS)
ENDS = [sum(map(len, BLOCKS[:count])) for count in range(len(BLOCKS) + 1)]


def parts_of(data: bytes) -> list[Block | Damage]:
    """Read a journal."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return list(read_blocks(file))


def texts_of(data: bytes) -> list[bytes]:
    """The texts of the whole blocks."""
    return [part.text for part in parts_of(data) if isinstance(part, Block)]


def test_a_cut_journal_keeps_the_whole_blocks_before_the_cut(tmp_path: Path) -> None:
    """Every offset: the rest is reported, cut off, and recording continues behind the last whole block."""
    path = tmp_path / "journal"
    for cut in range(len(JOURNAL) + 1):
        path.write_bytes(JOURNAL[:cut])
        whole = sum(end <= cut for end in ENDS) - 1
        repaired = repair(path)
        assert repaired.cut == cut - ENDS[whole]
        assert repaired.last_ns == (whole - 1 if whole else None)
        file = JournalFile(path)
        file.append(BLOCKS[0])
        file.close()
        assert texts_of(path.read_bytes()) == [*TEXTS[:whole], TEXTS[0]]


def test_a_flipped_byte_costs_one_block() -> None:
    """Every offset: the other blocks are read, and the damage is reported."""
    for at in range(len(JOURNAL)):
        data = bytearray(JOURNAL)
        data[at] ^= 0xFF
        parts = parts_of(bytes(data))
        block = sum(end <= at for end in ENDS) - 1
        expected = [text for number, text in enumerate(TEXTS) if number != block]
        assert [part.text for part in parts if isinstance(part, Block)] == expected
        (damage,) = (part for part in parts if isinstance(part, Damage))
        assert (damage.start, damage.end) == (ENDS[block], ENDS[block + 1])
        assert damage.torn == (block == len(TEXTS) - 1)


@given(st.binary(max_size=200), st.sampled_from(ENDS))
def test_garbage_between_blocks_is_skipped(garbage: bytes, at: int) -> None:
    """The blocks behind it are still found."""
    parts = parts_of(JOURNAL[:at] + garbage + JOURNAL[at:])
    assert [part.text for part in parts if isinstance(part, Block)] == TEXTS
    assert sum(part.end - part.start for part in parts if isinstance(part, Damage)) == len(garbage)


def test_a_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    """The next append first removes what the failed one left."""
    path = tmp_path / "journal"
    file = JournalFile(path)
    file.append(BLOCKS[0])
    with open(path, "ab") as other:
        other.write(b"half of a block")
    file.append(b"".join(BLOCKS[1:]))
    file.close()
    assert path.read_bytes() == JOURNAL


@given(st.lists(st.tuples(st.booleans(), st.text(), st.integers(0, 1 << 62))))
def test_entries_come_back(given_entries: list[tuple[bool, str, int]]) -> None:
    """Runs of ticks and other entries, with any text."""
    lines, expected = [], []
    for is_tick, text, at in given_entries:
        if is_tick:
            line = entry_line(0, text, text, {"ticks": 1, '{"at":': ',"ticks":'}).rstrip(b"\n")
            lines.append(ticks_lines(at, 2, b"\n" + line + b"\n" + line, backfilled=bool(at % 2)))
            expected.append(Ticks(at, 2, (line + b"\n") * 2, bool(at % 2)))
        else:
            line = entry_line(at, "gap", text, {"why": text, "ticks": 1} if at % 2 else {"why": ',"ticks":'})
            lines.append(line)
            expected.append(Entry.parse(line[:-1]))
    assert list(parse(b"".join(lines))) == expected


def test_other_programs_can_read_it() -> None:
    """The journal is zstd and JSON Lines."""
    import zstandard

    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(JOURNAL), read_across_frames=True)
    assert reader.read() == b"".join(TEXTS)
