"""`finx-streamer serve`: the market that the server plays, its keys, and its run."""

from __future__ import annotations

import contextlib
import math
import queue
import shlex
import ssl
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from .. import ConfigurationError
from ..server import ExchangeMarket, LiveSource, LocalServer, SimulatedMarket, Source, Tape
from ..server.protocol import is_loopback
from ..server.published import PublishedMarket
from ..server.recording import Recording
from ..server.request_log import STANDARD_OUTPUT
from ..server.settings import is_live
from .gateway import log_reported
from .key_files import accepted_keys
from .live_market import exchanges_reported
from .terminal import count, say, signals_as_ctrl_c
from .tls_files import TlsFiles

DEFAULT_KEY = "demo"
_MAX_PAIRS_SHOWN = 8
#: Seconds between two looks at the market's state.
_LOOK_EVERY = 0.5


class Reloading:
    """The files that SIGHUP reloads: API keys, the certificate, the request log.

    Raises `ConfigurationError` if the keys can't be read.
    """

    def __init__(self, keys_file: Path | None, tls: TlsFiles | None, request_log: str | None) -> None:
        self.keys_file = keys_file
        self.keys = accepted_keys(keys_file) if keys_file else {DEFAULT_KEY: 1}
        self.logs_to_stdout = request_log == STANDARD_OUTPUT
        self._tls = tls
        self._request_log = request_log

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        return None if self._tls is None else self._tls.context

    def reload(self, server: LocalServer) -> None:
        """Read the files again. What can't be used is reported, and leaves the earlier state as it is."""
        if self.keys_file is not None:
            with _report_unusable("keys"):
                keys = accepted_keys(self.keys_file)
                closed = server.set_keys(keys)
                say(f"reloaded {count(len(keys), 'API key')}; {count(closed, 'connection')} closed")
        if self._tls is not None:
            with _report_unusable("certificate"):
                self._tls.reload()
                say("reloaded the certificate")
        if self._request_log is not None and not self.logs_to_stdout:
            server.reopen_request_log()
            say("reopened the request log")


@contextlib.contextmanager
def _report_unusable(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        say(f"error: {error}; the earlier {what} stay{'' if what == 'keys' else 's'} in use")


def check_exposure(host: str, files: Reloading, allow_insecure: bool) -> None:
    """Refuse to let other machines send API keys in clear text. Warn if they can use the key that is in the docs.

    Raises:
        ConfigurationError: They would.
    """
    if is_loopback(host):
        return
    if files.ssl_context is None and not allow_insecure:
        raise ConfigurationError(
            f"--host {host}: other machines would send their API keys in clear text; pass --tls-cert and --tls-key, "
            "or --allow-insecure if the network up to a proxy with TLS is yours"
        )
    if files.keys_file is None:
        say(f"warning: everyone who can reach this server can use the API key {DEFAULT_KEY}; pass --keys-file")


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


@contextlib.contextmanager
def also_published(source: Source | LiveSource, to: str | None, stream: str) -> Iterator[Source | LiveSource]:
    """Return a live source that is also published, if `--to` is given. Waits for NATS.

    Raises:
        ConfigurationError: The source isn't live, or NATS can't be used.
    """
    if to is None:
        yield source
        return
    if not is_live(source):
        raise ConfigurationError("--to can only be used with --live; add it, as in --live BTC:USDT")
    from .publishing import open_publisher

    with open_publisher(to, stream, None, None, None).publisher as publisher:
        publisher.connect()
        if isinstance(source, ExchangeMarket):
            source.begin_after(publisher.find_trades(source.exchange_stats, source.pairs))
        yield PublishedMarket(source, publisher.new_feed())


def serve_until_ctrl_c(server: LocalServer, tapes: list[Path], source: Source | LiveSource, files: Reloading) -> None:
    """Import tapes, then serve. Print the URL and how to listen; the keys of a file are never shown."""
    # A handler may put into it at any time, unlike setting a threading.Event.
    hangups: queue.SimpleQueue[None] = queue.SimpleQueue()
    with signals_as_ctrl_c(lambda: hangups.put(None)), contextlib.suppress(KeyboardInterrupt):
        for tape in tapes:
            _import(server, tape)
        with _print_warnings():
            server.start()
        with server, exchanges_reported(server), log_reported(server):
            # A gateway learns them when it starts.
            greeting = _greeting(server, sorted(source.pairs or getattr(source, "contracts", frozenset())), files)
            print(greeting, file=sys.stderr if files.logs_to_stdout else sys.stdout, flush=True)
            while True:
                with contextlib.suppress(queue.Empty):
                    hangups.get(timeout=_LOOK_EVERY)
                    files.reload(server)
                _raise_failure(server)
    say("stopped")


def _raise_failure(server: LocalServer) -> None:
    """Raise the error of a market that has failed. A supervisor starts the command again."""
    with contextlib.suppress(TimeoutError):
        server.wait_finished(0.0)


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


def _greeting(server: LocalServer, pairs: list[str], files: Reloading) -> str:
    # The certificate is for a name that only you know.
    url = server.url if files.ssl_context is None else f"wss://HOST:{server.port}/"
    example = f"finx-streamer listen {shlex.quote(pairs[0] if pairs else 'PAIR')} --endpoint {url}"
    command = f"FINX_API_KEY={DEFAULT_KEY} {example}" if files.keys_file is None else f"{example} --api-key-file FILE"
    more = f" and {len(pairs) - _MAX_PAIRS_SHOWN} more" if len(pairs) > _MAX_PAIRS_SHOWN else ""
    return (
        f"serving: {server.url}\npairs:   {', '.join(pairs[:_MAX_PAIRS_SHOWN]) or 'none yet'}{more}\nlisten:  {command}"
    )


@contextlib.contextmanager
def _print_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(f"warning: {warning.message}")
