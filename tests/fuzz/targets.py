"""The targets: modules with `run`, which takes any bytes and raises where something is wrong, `SEEDS` and `WORDS`."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

#: In the order in which they are run.
NAMES = ("frames", "handshake", "messages", "symbols", "server")


class ConnectionConfig(Protocol):
    """What such a module has."""

    #: Inputs to begin with.
    SEEDS: list[bytes]
    #: What is worth putting into an input.
    WORDS: list[bytes]

    def run(self, data: bytes, /) -> None:
        """Try one input."""


def load(name: str) -> ConnectionConfig:
    """A target by its name."""
    return cast(ConnectionConfig, importlib.import_module(f"tests.fuzz.{name}"))
