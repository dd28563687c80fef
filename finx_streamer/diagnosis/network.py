"""Checks of the way to the server, from DNS to tick history."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import attrs

from ..config.endpoint import join_host_port
from ..config.proxy import Proxy
from ..config.symbols import Pair
from ..connection.attempt import Attempt, ConnectionConfig
from ..connection.dial import connect, dial_through
from ..connection.failures import translate
from ..errors import AuthenticationError, ConnectionFailed, FinxStreamerError
from ..functions.call_pool import CallPool
from ..functions.call_scheduler import PoolSettings
from ..functions.tick_reader import TickReader
from ..wire.decoder import Decoder
from ..wire.tick_list import BadTick
from .limits import LIMIT, Deadline, start, timed
from .probe import Probe
from .report import Check, Verdict, shorten

_FAMILIES: dict[int, str] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
#: Seconds. Beyond the first, the clock is worth a note; beyond the second, it is wrong.
_CLOCK_NOTE, _CLOCK_WRONG = 2.0, 30.0
_EXPIRES_SOON = timedelta(days=14)
#: How far back tick history is tried.
_DEPTHS = {"5 years": 1_825, "1 year": 365, "30 days": 30, "1 day": 1}
#: If these fail, the next steps run all the same.
_HARMLESS = {"first message", "clock"}

Address = tuple[object, ...]
_T = TypeVar("_T")


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
    #: Whether the server runs this package.
    own_server: bool = attrs.field(default=False, init=False)
    #: The stream's first tick, as it was sent, and its time.
    message: dict[str, object] | None = attrs.field(default=None, init=False)
    _tick_time: datetime | None = attrs.field(default=None, init=False)
    _addresses: dict[int, Address] = attrs.field(factory=dict, init=False)
    #: The stream, from the handshake until its first tick.
    _stream: Probe | None = attrs.field(default=None, init=False)
    #: The server's time in the handshake, and this machine's.
    _server_time: tuple[float, float] | None = attrs.field(default=None, init=False)

    @property
    def _is_shared(self) -> bool:
        """Whether streams are requested by message, on a shared connection: FinX's second wire."""
        return self.config.endpoint.wire == "subscribe"

    def run(self) -> Iterator[Check]:
        """Yield the result of each step. After a step that fails, the others are skipped."""
        proxy = self.config.proxies.choose(self.config.endpoint)
        host, port, peer = self.config.endpoint.host, self.config.endpoint.port, "server"
        if proxy is not None:
            host, port, peer = proxy.host, proxy.port, "proxy"
        steps: dict[str, Callable[[], Check]] = {
            "DNS": lambda: self._dns(host, port),
            "TCP": lambda: self._tcp(host, port, peer),
            **({} if proxy is None else {"tunnel": lambda: self._tunnel(proxy)}),
            "TLS": self._tls,
            "handshake": self._handshake,
            "first message": self._first_message,
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
            failed = check.verdict is Verdict.FAILED and name not in _HARMLESS

    def _dns(self, host: str, port: int) -> Check:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            self._addresses = {socket.AF_INET if address.version == 4 else socket.AF_INET6: (host, port)}
            return Check("DNS", Verdict.OK, f"{address} is an address already")

        def resolve(family: int) -> list[Address]:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            return list(dict.fromkeys(address for *_, address in found))

        found = []
        for family, outcome in _for_each_family(_FAMILIES, resolve).items():
            if isinstance(outcome, Exception):
                found.append(f"{_FAMILIES[family]}: {_fault(outcome)}")
            else:
                addresses, milliseconds = outcome
                self._addresses[family] = addresses[0]
                found.append(f"{_FAMILIES[family]}: {len(addresses)} in {milliseconds:.0f} ms")
        text = f"addresses of {host}: {', '.join(found)}"
        if self._addresses:
            return Check("DNS", Verdict.OK, text)
        return Check("DNS", Verdict.FAILED, text, "Check the network, and the host in the endpoint or proxy.")

    def _tcp(self, host: str, port: int, peer: str) -> Check:
        def dial(family: int) -> None:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(LIMIT)
                sock.connect(self._addresses[family])

        found, failures = [], 0
        for family, outcome in _for_each_family(self._addresses, dial).items():
            if isinstance(outcome, Exception):
                failures += 1
                found.append(f"{_FAMILIES[family]}: {_fault(outcome)}")
            else:
                found.append(f"{_FAMILIES[family]}: connected in {outcome[1]:.0f} ms")
        text = f"port {port} of {host}: {', '.join(found)}"
        if failures == len(found):
            advice = f"Check that the {peer} runs, and that no firewall blocks the port."
            return Check("TCP", Verdict.FAILED, text, advice)
        if failures:
            return Check("TCP", Verdict.NOTE, text, "The other family is used. Connecting may take longer.")
        return Check("TCP", Verdict.OK, text)

    def _tunnel(self, proxy: Proxy) -> Check:
        """Have the proxy connect to the server."""
        target = join_host_port(self.config.endpoint.host, self.config.endpoint.port)
        try:
            sock, milliseconds = _attempt(lambda attempt: dial_through(proxy, self.config, attempt))
        except Exception as cause:
            advice = f"Check the proxy's user and password, and that it allows {target}. --proxy '' uses no proxy."
            return Check("tunnel", Verdict.FAILED, translate(cause, f"the proxy {proxy.where}").reason, advice)
        sock.close()
        return Check("tunnel", Verdict.OK, f"to {target} in {milliseconds:.0f} ms")

    def _tls(self) -> Check:
        if not self.config.endpoint.secure:
            return Check("TLS", Verdict.OK, "none, because the endpoint is ws://")
        trusted = f"certificates from {self.authorities}"
        try:
            sock, milliseconds = _attempt(lambda attempt: connect(self.config, attempt))
        except Exception as cause:
            reason = translate(cause, self.config.endpoint.host).reason
            return Check("TLS", Verdict.FAILED, f"{reason}; {trusted}", _tls_advice(reason))
        assert isinstance(sock, ssl.SSLSocket)
        with sock:
            text = f"{sock.version()} in {milliseconds:.0f} ms, {trusted}"
            expires = _expiry(sock)
        if expires is None:
            return Check("TLS", Verdict.NOTE, f"{text}; the certificate isn't verified", "Check ssl_context=.")
        text += f", the server's certificate is valid until {expires:%Y-%m-%d}"
        soon = expires - datetime.now(UTC) < _EXPIRES_SOON
        return Check("TLS", Verdict.NOTE if soon else Verdict.OK, text, "It expires soon." if soon else "")

    def _handshake(self) -> Check:
        """Open the stream of the pair, or the connection that is shared by all streams."""
        own = attrs.evolve(self.config, shared=True) if self._is_shared else attrs.evolve(self.config, symbol=self.pair)
        try:
            self._stream = Probe(own, Deadline())
        except ConnectionFailed as error:
            return Check("handshake", Verdict.FAILED, error.reason, self._handshake_advice(error))
        self.streams, self.own_server = True, self._stream.is_own_server
        if (told := self._stream.server_time) is not None:
            self._server_time = told, self._stream.opened_at
        return Check("handshake", Verdict.OK, f"status 101 in {self._stream.opened_in:.0f} ms")

    def _handshake_advice(self, error: ConnectionFailed) -> str:
        if isinstance(error, AuthenticationError):
            return "Check the API key."
        if error.status == 404 and self._is_shared:
            return 'Try Endpoint(url, prefix="streaming", wire="subscribe"), or wire="url".'
        if error.status == 404:
            return 'Check the pair, and try Endpoint(url, prefix="streamer").'
        if error.status is not None and error.status < 400:
            return "A captive portal may answer in FinX's place: open a page in your browser, and log in."
        return "Check the endpoint, or try again later."

    def _first_message(self) -> Check:
        """Wait for the stream's first message, and if that is no tick, for the first tick."""
        assert self._stream is not None
        decoder, before = Decoder(str(self.pair), str(self.pair), str), ""
        with self._stream as stream:
            stream.deadline = Deadline()
            if self._is_shared:
                # FinX confirms nothing. Our server does if a request has this member.
                stream.send("getSpotRates", pair=str(self.pair), resume="ask")
            begin = time.perf_counter()
            while True:
                try:
                    message = stream.read()
                except ConnectionFailed as error:
                    return Check("first message", Verdict.FAILED, f"{before}{error.reason}", "Try again later.")
                milliseconds = (time.perf_counter() - begin) * 1_000
                if isinstance(message, dict) and message.get("subscribed") == str(self.pair):
                    before = f"the server confirmed the pair after {milliseconds:.0f} ms; "
                    continue
                if message is None:
                    advice = "The pair may be quiet now: ask for a busy one, as in: finx-streamer doctor BTC:USDC"
                    if self._is_shared and not before:
                        advice = f"FinX may have refused {self.pair} silently: check it. {advice}"
                    return Check("first message", Verdict.NOTE, f"{before}no tick within {LIMIT:g} s", advice)
                raw = message.get("resultData", message) if isinstance(message, dict) else message
                tick = decoder.decode_tick(raw, time.time_ns())
                if isinstance(tick, dict):
                    break
                before = before or f"no tick after {milliseconds:.0f} ms, but {shorten(message)}; "
                if isinstance(message, dict) and "error" in message:
                    return Check("first message", Verdict.FAILED, before.rstrip("; "), "Check the pair and the key.")
        self.message = message
        self._tick_time = tick["timestamp"]
        text = f"{before}a tick after {milliseconds:.0f} ms: {tick['price']} on {tick['exchange']}"
        return Check("first message", Verdict.NOTE if "no tick" in before else Verdict.OK, text)

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
        text = ", ".join(found)
        if min(offsets) > _CLOCK_WRONG:
            return Check("clock", Verdict.FAILED, text, "Set this machine's clock, for example with NTP.")
        if max(offsets) > _CLOCK_NOTE:
            return Check("clock", Verdict.NOTE, text, "Either this clock is off, or the ticks are old or late.")
        return Check("clock", Verdict.OK, text)

    def _history(self) -> Check:
        """Ask for the newest tick, then how far back there is one."""
        pair, deadline = str(self.pair), Deadline()
        reader = TickReader(CallPool(PoolSettings(self.config, None, 1, "finx-streamer-doctor")), LIMIT, str)

        def snap(days: int) -> datetime | None:
            at = datetime.now(UTC) - timedelta(days=days)
            found = reader.snap_if_any(pair, at.date().isoformat(), at.time().isoformat("milliseconds"), {})
            if isinstance(found, BadTick):
                raise found.error
            return None if found is None else found["timestamp"]

        depth, silent = "less than 1 day", False
        try:
            newest, milliseconds = timed(lambda: deadline.run(lambda: snap(0)))
            if newest is None:
                return Check("tick history", Verdict.NOTE, f"no tick of {pair} so far")
            age = (datetime.now(UTC) - newest).total_seconds()
            silent = (
                self.message is None and self._server_time is not None and newest.timestamp() > self._server_time[0] + 1
            )
            try:
                for name, days in _DEPTHS.items():
                    if deadline.run(partial(snap, days)) is not None:
                        depth = f"at least {name}"
                        break
            except TimeoutError:
                depth = f"an unknown time, because that took over {LIMIT:g} s"
        except (FinxStreamerError, TimeoutError) as error:
            text = f"no answer within {LIMIT:g} s" if isinstance(error, TimeoutError) else str(error)
            advice = "Gaps can't be filled. Check that your key covers history."
            return Check("tick history", Verdict.FAILED, text, advice)
        finally:
            reader.interrupt()
        text = f"an answer takes {milliseconds:.0f} ms, the newest tick is {age:.1f} s old; it reaches back {depth}"
        if silent:
            other = 'wire="url"' if self._is_shared else 'prefix="streamer"'
            advice = f"The stream sent no tick meanwhile: try Endpoint(url, {other}), and report it to FinX."
            return Check("tick history", Verdict.FAILED, text, advice)
        return Check("tick history", Verdict.OK, text)


def _for_each_family(families: Iterable[int], step: Callable[[int], _T]) -> dict[int, tuple[_T, float] | Exception]:
    """Run a step for each family at the same time. Return its result and milliseconds, or its error."""
    deadline = Deadline()
    running = {family: start(partial(timed, partial(step, family))) for family in families}

    def outcome(future: Future[tuple[_T, float]]) -> tuple[_T, float] | Exception:
        try:
            return deadline.wait(future)
        except (OSError, UnicodeError) as error:
            return error

    return {family: outcome(future) for family, future in running.items()}


def _attempt(step: Callable[[Attempt], _T]) -> tuple[_T, float]:
    """Return the result of an attempt to connect, and its milliseconds."""
    deadline, attempt = Deadline(), Attempt()
    attempt.begin(deadline.left)
    try:
        return timed(lambda: deadline.run(lambda: step(attempt)))
    except TimeoutError:
        attempt.cancel()
        raise


def _fault(error: Exception) -> str:
    """What an error of the network says, in lower case."""
    return (getattr(error, "strerror", None) or str(error) or f"no answer within {LIMIT:g} s").lower()


def _expiry(sock: ssl.SSLSocket) -> datetime | None:
    """When the server's certificate expires. None if it wasn't verified: then it isn't known."""
    text = (sock.getpeercert() or {}).get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC) if isinstance(text, str) else None


def _tls_advice(reason: str) -> str:
    if "expired" in reason or "not yet valid" in reason:
        return "The server's certificate is out of date, or this machine's clock is wrong."
    if "certificate" in reason:
        return (
            "Something on the way may replace certificates. A captive portal: log in with your browser. A company's "
            "proxy: name its CA file in SSL_CERT_FILE."
        )
    return "Check that the port is the one for TLS."
