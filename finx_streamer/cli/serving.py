"""What `finx-streamer serve` plays, to whom, and until when."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from .. import ConfigurationError
from ..server import LocalServer, SimulatedMarket, Source, Tape
from .follow import terminate_as_interrupt
from .text import say, warn_of_readers

DEFAULT_KEY = "demo"
_SHOWN_PAIRS = 8


def source(tape: Path | None, speed: str | None, loop: bool, rate: float | None) -> Source:
    """The tape, or the simulated market. Raises `ConfigurationError` for an option that would do nothing."""
    if tape is None:
        if speed is not None or loop:
            raise ConfigurationError("--speed and --loop are of use with --tape only")
        return SimulatedMarket() if rate is None else SimulatedMarket(rate=rate)
    if rate is not None:
        raise ConfigurationError("--rate is of use without --tape only; a tape has --speed")
    return Tape(tape, speed=_speed(speed), loop=loop)


def _speed(text: str | None) -> float | None:
    if text == "max":
        return None
    try:
        return float(text or 1.0)
    except ValueError:
        raise ConfigurationError(f"--speed: {text!r} is not a number, nor max") from None


def keys(file: Path | None) -> set[str]:
    """The keys in the file, one a line; blank lines do not count."""
    if file is None:
        return {DEFAULT_KEY}
    warn_of_readers("--keys-file", file)
    try:
        found = {line.strip() for line in file.read_text().splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigurationError(f"--keys-file {file}: {getattr(cause, 'strerror', None) or 'it is no text'}") from None
    if not found:
        raise ConfigurationError(f"--keys-file {file}: there are no keys in it")
    return found


def until_interrupted(server: LocalServer, imported: list[Path], pairs: list[str], keys_file: Path | None) -> None:
    """Serve until Ctrl-C. Says where, and how to listen; a key that is not the default one is never shown."""
    with terminate_as_interrupt(), contextlib.suppress(KeyboardInterrupt):
        for tape in imported:
            say(f"imported {server.import_ticks(tape)} ticks from {tape}")
        with _warnings_as_lines():
            server.start()
        with server:
            print(_greeting(server.url, pairs, keys_file), flush=True)
            threading.Event().wait()
    say("stopped")


def _greeting(url: str, pairs: list[str], keys_file: Path | None) -> str:
    example = f"finx-streamer listen {pairs[0]} --endpoint {url}"
    how = f"FINX_API_KEY={DEFAULT_KEY} {example}" if keys_file is None else f"{example} --api-key-file FILE"
    more = f" and {len(pairs) - _SHOWN_PAIRS} more" if len(pairs) > _SHOWN_PAIRS else ""
    return f"serving: {url}\npairs:   {', '.join(pairs[:_SHOWN_PAIRS])}{more}\nlisten:  {how}"


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(f"warning: {warning.message}")
