"""`finx-streamer serve`: the market that the server plays, its keys, and its run."""

from __future__ import annotations

import contextlib
import math
import shlex
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from .. import ConfigurationError
from ..server import LocalServer, SimulatedMarket, Source, Tape
from ..server.recording import Recording
from .live_market import exchanges_reported
from .terminal import count, say, signals_as_ctrl_c

DEFAULT_KEY = "demo"
_MAX_PAIRS_SHOWN = 8


def choose_source(tape: Path | None, speed: str | None, loop: bool, rate: float | None) -> Source:
    """Return the tape, or the simulated market.

    Raises:
        ConfigurationError: An option has no effect on this source.
    """
    if tape is None:
        if speed is not None or loop:
            raise ConfigurationError("--speed and --loop need --tape")
        if rate is not None and not 0 < rate < math.inf:
            raise ConfigurationError(f"--rate: {rate:g} is not allowed; expected ticks per second, above 0")
        options = ("BTC", "ETH")
        return SimulatedMarket(options=options) if rate is None else SimulatedMarket(rate=rate, options=options)
    if rate is not None:
        raise ConfigurationError("--rate can't be used with --tape; use --speed")
    with _print_warnings():
        return Tape(tape, speed=_parse_speed(speed), loop=loop)


def _parse_speed(text: str | None) -> float | None:
    if text == "max":
        return None
    with contextlib.suppress(ValueError):
        if 0 < (speed := float(text or 1.0)) < math.inf:
            return speed
    raise ConfigurationError(f"--speed: {text!r} is not allowed; expected a number above 0, or max")


def serve_until_ctrl_c(server: LocalServer, tapes: list[Path], pairs: list[str], keys_file: Path | None) -> None:
    """Import tapes, then serve. Print the URL and how to listen; the keys of a file are never shown."""
    with signals_as_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
        for tape in tapes:
            _import(server, tape)
        with _print_warnings():
            server.start()
        with server, exchanges_reported(server):
            print(_greeting(server.url, pairs, keys_file), flush=True)
            threading.Event().wait()
    say("stopped")


def _import(server: LocalServer, tape: Path) -> None:
    with _print_warnings():
        recording = Recording(tape)
    imported = server.import_ticks(recording)
    known = len(recording) - imported
    if known and not imported:
        say(f"skipped {tape}: the store has its {count(known, 'tick')} already")
    else:
        rest = f"; {count(known, 'tick')} {'was' if known == 1 else 'were'} there already" if known else ""
        say(f"imported {count(imported, 'tick')} from {tape}{rest}")


def _greeting(url: str, pairs: list[str], keys_file: Path | None) -> str:
    example = f"finx-streamer listen {shlex.quote(pairs[0])} --endpoint {url}"
    command = f"FINX_API_KEY={DEFAULT_KEY} {example}" if keys_file is None else f"{example} --api-key-file FILE"
    more = f" and {len(pairs) - _MAX_PAIRS_SHOWN} more" if len(pairs) > _MAX_PAIRS_SHOWN else ""
    return f"serving: {url}\npairs:   {', '.join(pairs[:_MAX_PAIRS_SHOWN])}{more}\nlisten:  {command}"


@contextlib.contextmanager
def _print_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(f"warning: {warning.message}")
