"""Checks of the way to the server: DNS, TCP, TLS, the handshake, the first message, the clock and tick history."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import attrs

from ..config.symbols import Pair
from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.dial import connect
from ..connection.failures import translate
from ..errors import AuthenticationError, ConnectionFailed, FinxStreamerError
from ..functions.call_pool import CallPool
from ..functions.call_scheduler import PoolSettings
from ..functions.tick_reader import TickReader
from ..wire.decoder import Decoder
from .limits import LIMIT, timed, within
from .probe import Probe
from .report import Check, Verdict

_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
#: Seconds. Beyond the first, the clock is worth a note; beyond the second, it is wrong.
_CLOCK_NOTE, _CLOCK_WRONG = 2.0, 30.0
_EXPIRES_SOON = timedelta(days=14)
#: How far back tick history is tried.
_DEPTHS = {"5 years": 1_825, "1 year": 365, "30 days": 30, "1 day": 1}


@attrs.define
class NetworkChecks:
    """Checks the way to a server, one step after the other.

    Args:
        config: The connection to check, without a symbol.
        pair: The pair to ask for.
        authorities: Where the trusted CAs come from.
    """

    config: ConnectionConfig
    pair: Pair
    authorities: str
    #: Whether the stream could be opened.
    streams: bool = attrs.field(default=False, init=False)
    #: The stream's first tick, as it was sent, and its time.
    message: dict[str, object] | None = attrs.field(default=None, init=False)
    _tick_time: datetime | None = attrs.field(default=None, init=False)
    _server_time: tuple[float, float] | None = attrs.field(default=None, init=False)

    def run(self) -> Iterator[Check]:
        """Yield the result of each step. After a step that fails, the others are skipped."""
        proxy = self.config.proxies.choose(self.config.endpoint)
        host, port = (self.config.endpoint.host, self.config.endpoint.port)
        if proxy is not None:
            host, port = proxy.host, proxy.port
        steps: dict[str, Callable[[], Check]] = {
            "DNS": lambda: _dns(host, port),
            "TCP": lambda: _tcp(host, port),
            "TLS": self._tls,
            "handshake": self._handshake,
            "clock": self._clock,
            "tick history": self._history,
        }
        failed = False
        for name, step in steps.items():
            if failed:
                yield Check(name, Verdict.SKIPPED, "a check before it has failed")
                continue
            check = step()
            yield check
            failed = check.verdict is Verdict.FAILED and name != "clock"

    def _tls(self) -> Check:
        if not self.config.endpoint.secure:
            return Check("TLS", Verdict.OK, "none, because the endpoint is ws://")
        attempt = Attempt()
        attempt.begin(LIMIT)
        try:
            sock, milliseconds = timed(lambda: within(LIMIT, lambda: connect(self.config, attempt)))
        except Exception as cause:
            error = translate(cause, self.config.endpoint.host)
            return Check("TLS", Verdict.FAILED, error.reason, _tls_advice(error.reason))
        assert isinstance(sock, ssl.SSLSocket)
        with sock:
            text = f"{sock.version()} in {milliseconds:.0f} ms, certificates from {self.authorities}"
            expires = _expiry(sock)
        if expires is None:
            return Check("TLS", Verdict.NOTE, f"{text}; the certificate isn't verified", "Check ssl_context=.")
        text += f", the server's certificate is valid until {expires:%Y-%m-%d}"
        soon = expires - datetime.now(UTC) < _EXPIRES_SOON
        return Check("TLS", Verdict.NOTE if soon else Verdict.OK, text, "It expires soon." if soon else "")

    def _handshake(self) -> Check:
        """Open the stream of the pair, and wait for its first message."""
        try:
            with Probe(attrs.evolve(self.config, symbol=self.pair)) as probe:
                self.streams = True
                if (told := probe.server_time) is not None:
                    self._server_time = told, probe.opened_at
                message, milliseconds = timed(probe.read)
        except ConnectionFailed as error:
            return Check("handshake", Verdict.FAILED, error.reason, _handshake_advice(error))
        text = f"101 in {probe.opened_in:.0f} ms"
        if message is None:
            return Check("handshake", Verdict.NOTE, f"{text}; no message in {LIMIT:g} s", "The pair may be quiet now.")
        self.message = message
        decoder = Decoder(str(self.pair), str(self.pair), str)
        tick = decoder.decode_tick(message.get("resultData", message), time.time_ns())
        if not isinstance(tick, dict):
            return Check("handshake", Verdict.NOTE, f"{text}; the first message is no tick: {message}")
        self._tick_time = tick["timestamp"]
        text += f", first tick after {milliseconds:.0f} ms: {tick['price']} on {tick['exchange']}"
        return Check("handshake", Verdict.OK, text)

    def _clock(self) -> Check:
        found, offsets = [], []
        if self._server_time is not None:
            told, here = self._server_time
            # The header has whole seconds.
            offsets.append(max(0.0, abs(here - told) - 1.0))
            found.append(f"{here - told:+.1f} s against the server's Date header")
        if self._tick_time is not None:
            lag = time.time() - self._tick_time.timestamp()
            offsets.append(abs(lag))
            found.append(f"{lag:+.1f} s against the first tick")
        if not offsets:
            return Check("clock", Verdict.SKIPPED, "the server sent no time")
        text, worst = ", ".join(found), min(offsets)
        if worst > _CLOCK_WRONG:
            return Check("clock", Verdict.FAILED, text, "Set this machine's clock, for example with NTP.")
        return Check("clock", Verdict.NOTE if max(offsets) > _CLOCK_NOTE else Verdict.OK, text)

    def _history(self) -> Check:
        pair, now = str(self.pair), datetime.now(UTC)
        reader = TickReader(CallPool(PoolSettings(self.config, None, 1, "finx-streamer-doctor")), LIMIT, str)

        def snap(at: datetime) -> bool:
            found = reader.snap_if_any(pair, at.date().isoformat(), at.time().isoformat("milliseconds"), {})
            return found is not None

        try:
            known, milliseconds = timed(lambda: within(LIMIT, lambda: snap(now)))
            if not known:
                return Check("tick history", Verdict.NOTE, f"no tick of {pair} so far")
            depth = "less than 1 day"
            for name, days in _DEPTHS.items():
                if within(LIMIT, partial(snap, now - timedelta(days=days))):
                    depth = f"at least {name}"
                    break
        except (FinxStreamerError, TimeoutError) as error:
            text = f"no answer within {LIMIT:g} s" if isinstance(error, TimeoutError) else str(error)
            advice = "Gaps can't be filled. Check that your key covers history."
            return Check("tick history", Verdict.FAILED, text, advice)
        finally:
            reader.interrupt()
        return Check("tick history", Verdict.OK, f"a snap takes {milliseconds:.0f} ms; it reaches back {depth}")


def _dns(host: str, port: int) -> Check:
    with contextlib.suppress(ValueError):
        return Check("DNS", Verdict.OK, f"{ipaddress.ip_address(host)} is an address already")
    found, known = [], False
    for family, name in _FAMILIES.items():
        try:
            addresses, milliseconds = timed(partial(_resolve, host, port, family))
        except TimeoutError:
            found.append(f"{name}: no answer within {LIMIT / 2:g} s")
        except (OSError, UnicodeError) as error:
            found.append(f"{name}: {getattr(error, 'strerror', None) or error}")
        else:
            known = True
            found.append(f"{name}: {len(addresses)} in {milliseconds:.0f} ms")
    text = f"addresses of {host}: {', '.join(found)}"
    if known:
        return Check("DNS", Verdict.OK, text)
    return Check("DNS", Verdict.FAILED, text, "Check the network, and the host in the endpoint or proxy.")


def _resolve(host: str, port: int, family: int) -> list[tuple[object, ...]]:
    found = within(LIMIT / 2, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
    return list(dict.fromkeys(address for *_, address in found))


def _tcp(host: str, port: int) -> Check:
    found, connected = [], False
    for family, name in _FAMILIES.items():
        try:
            address = _resolve(host, port, family)[0]
        except (OSError, UnicodeError):
            continue
        try:
            _, milliseconds = timed(partial(_connect, family, address))
        except OSError as error:
            found.append(f"{name}: {(error.strerror or str(error) or 'timed out').lower()}")
        else:
            connected = True
            found.append(f"{name}: connected in {milliseconds:.0f} ms")
    text = f"port {port} of {host}: {', '.join(found)}"
    if not connected:
        return Check("TCP", Verdict.FAILED, text, "Check that the server runs, and that no firewall blocks the port.")
    return Check("TCP", Verdict.OK if all("connected" in each for each in found) else Verdict.NOTE, text)


def _connect(family: int, address: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT / 2)
        sock.connect(address)


def _expiry(sock: ssl.SSLSocket) -> datetime | None:
    """When the server's certificate expires. None if it wasn't verified: then it isn't known."""
    text = (sock.getpeercert() or {}).get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC) if isinstance(text, str) else None


def _tls_advice(reason: str) -> str:
    if "expired" in reason:
        return "The certificate has expired, or this machine's clock is wrong."
    if "certificate" in reason:
        return "Something on the way may replace certificates: a captive portal, or a company's proxy."
    return "Check that the port is the one for TLS."


def _handshake_advice(error: ConnectionFailed) -> str:
    if isinstance(error, AuthenticationError):
        return "Check the API key. FinX replaces keys every 24 hours."
    if error.status == 404:
        return 'Check the pair, and try Endpoint(url, prefix="streamer").'
    if error.status is not None and error.status < 400:
        return "This is no FinX server: a captive portal may answer in its place. Open a page in your browser."
    return ""
