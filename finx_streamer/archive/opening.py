"""Prepare an archive for recording: repair what a crash left, and find the hour to record in."""

from __future__ import annotations

import shutil
from contextlib import suppress

import attrs
import pyarrow as pa

from .journal import repair
from .layout import Layout
from .sealing import contains, metadata_of, remove_leftovers


@attrs.frozen
class Found:
    """What an archive looks like when a writer opens it.

    Attributes:
        hour (int): The hour to record in.
        previous (int | None): The last hour before it, if it has no journal yet.
        to_seal (list[int]): Earlier hours that have only a journal.
        last_ns (int | None): When the last entry was received, in nanoseconds since 1970.
        cut (int): How many bytes were cut off.
    """

    hour: int
    previous: int | None
    to_seal: list[int]
    last_ns: int | None
    cut: int


def prepare(layout: Layout, now_ns: int) -> Found:
    """Repair an archive. Raises OSError."""
    for day in layout.days():
        remove_leftovers(day)
    for spilled in layout.root.glob(".spill*"):
        shutil.rmtree(spilled, ignore_errors=True)
    sealed, journals = layout.find()
    for hour in set(layout.journals()) - set(journals):
        if any(contains(each.ticks, hour) for each in sealed if each.hour <= hour <= each.last):
            layout.journal(hour).unlink(missing_ok=True)
    hour = layout.next_hour(now_ns)
    last_ns, cut = None, 0
    for number in journals:
        repaired = repair(layout.journal(number))
        last_ns, cut = repaired.last_ns or last_ns, cut + repaired.cut
    to_seal = [number for number in journals if number < hour]
    previous = max(to_seal, default=None)
    if sealed and (last_ns is None or previous is None):
        with suppress(OSError, ValueError, LookupError, pa.ArrowException):  # `Archive.verify` reports it
            note = metadata_of(sealed[-1].ticks)
            last_ns = note["last_ns"] if last_ns is None else last_ns
            previous = max([*note["hours"], *to_seal])
    return Found(hour, previous if hour not in journals else None, to_seal, last_ns, cut)
