"""Ticks of many streams that were delivered together, before their streams know."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import TypeVar

from ..values import Tick
from .delivered_window import Key

_T = TypeVar("_T")


class Noted:
    """Ticks that were delivered, and that their streams don't know yet.

    With many pairs, runs of one pair are short. Each costs as much as a tick, so they are collected to longer runs.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self._pairs: list[str] = []
        self._keys: list[Key] = []
        #: The last tick of each pair, when it was received, and its ID.
        self._last: dict[str, tuple[Tick, int, str]] = {}

    def add(self, ticks: list[Tick], pairs: list[str], keys: list[Key], numbers: list[str], received_ns: int) -> None:
        """Note ticks before they are delivered: from then on, the user may change them."""
        self.size += len(ticks)
        self._pairs += pairs
        self._keys += keys
        self._last.update(zip(pairs, zip(ticks, repeat(received_ns), numbers), strict=True))

    def take(self) -> list[tuple[str, list[Key], Tick, int, str]]:
        """Remove and return, for each pair: the keys, the last tick, when it was received, and its ID."""
        if not self.size:
            return []
        last, runs = self._last, group(self._pairs, self._keys)
        self._clear()
        return [(pair, keys, *last[pair]) for pair, keys in runs.items()]


def group(pairs: Iterable[str], values: Iterable[_T]) -> dict[str, list[_T]]:
    """Return the values of each pair, in order."""
    runs: dict[str, list[_T]] = {}
    for pair, value in zip(pairs, values, strict=True):
        if pair in runs:
            runs[pair].append(value)
        else:
            runs[pair] = [value]
    return runs
