"""The fuzz targets: modules with `run`, `SEEDS` and `WORDS`."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

#: In the order in which they run.
NAMES = ("frames", "shared", "handshake", "messages", "symbols", "server")


class Target(Protocol):
    """The interface of a target module."""

    #: The first inputs.
    SEEDS: list[bytes]
    #: Words that the fuzzer inserts into inputs.
    WORDS: list[bytes]

    def run(self, data: bytes, /) -> None:
        """Try one input. Raises if something is wrong."""


def load(name: str) -> Target:
    """Return a target by its name."""
    return cast(Target, importlib.import_module(f"tests.fuzz.{name}"))
