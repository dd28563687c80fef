"""The validated settings of a server."""

from __future__ import annotations

import math
import numbers
import socket
import ssl
from typing import Any, TypeGuard

import attrs

from ..errors import ConfigurationError
from .protocol import Form, tick_encoder
from .source import LiveSource, Source


def plain_number(value: Any) -> Any:
    """Convert a number of NumPy, or of another kind, to an int or float. Times as `float32` would lose precision."""
    if isinstance(value, int | float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def is_live(source: object) -> TypeGuard[LiveSource]:
    """Whether a source is a `LiveSource`."""
    return hasattr(source, "pairs") and hasattr(source, "run")


def _check_source(_: Settings, __: attrs.Attribute[Any], source: object) -> None:
    # Without this check, only the first client would notice.
    if isinstance(source, type):
        given = f"the class {source.__name__}"
    elif all(hasattr(source, name) for name in ("pairs", "wait_for", "paced", "play")) or is_live(source):
        return
    else:
        given = f"a {type(source).__name__}"
    raise ConfigurationError(
        f"source is {given}; expected a Tape, a SimulatedMarket, an ExchangeMarket or another source, as in "
        "LocalServer(Tape('ticks.jsonl'))"
    )


def _check_positive(_: Settings, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigurationError(f"{field.name} is {value!r}; expected a number above 0")


def _check_batch(_: Settings, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or value <= 0:
        raise ConfigurationError(f"{field.name} is {value!r}; expected a whole number above 0")


def _check_batch_seconds(_: Settings, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{field.name} is {value!r}; expected a number above 0")


def _check_port(_: Settings, field: attrs.Attribute[Any], port: int) -> None:
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"port is {port!r}; expected 0 to 65535")


def _check_form(_: Settings, __: attrs.Attribute[Any], form: Form) -> None:
    tick_encoder(form)


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a server, validated. `LocalServer` documents them. Times are in seconds."""

    source: Source | LiveSource = attrs.field(validator=_check_source)
    host: str
    port: int = attrs.field(converter=plain_number, validator=_check_port)
    ssl_context: ssl.SSLContext | None
    form: Form = attrs.field(validator=_check_form)
    queue_bytes: int = attrs.field(converter=plain_number, validator=_check_positive)
    slow_client_timeout: float = attrs.field(converter=plain_number, validator=_check_positive)
    send_buffer: int | None = attrs.field(converter=plain_number, validator=_check_positive)
    max_connections: int = attrs.field(converter=plain_number, validator=_check_positive)
    max_connections_per_key: int = attrs.field(converter=plain_number, validator=_check_positive)
    max_connections_per_address: int = attrs.field(converter=plain_number, validator=_check_positive)
    request_log: str | None
    idle_limit: float | None = attrs.field(converter=plain_number, validator=_check_positive)
    resumable: bool
    store_batch: int = attrs.field(converter=plain_number, validator=_check_batch)
    store_batch_seconds: float = attrs.field(converter=plain_number, validator=_check_batch_seconds)
    open_timeout: float = attrs.field(converter=plain_number, validator=_check_positive)
    close_timeout: float = attrs.field(converter=plain_number, validator=_check_positive)
    ping_interval: float | None = attrs.field(converter=plain_number, validator=_check_positive)
    ping_timeout: float | None = attrs.field(converter=plain_number, validator=_check_positive)

    @property
    def is_dual_stack(self) -> bool:
        """Whether the server listens for both IPv6 and IPv4: on all interfaces, where the system can do it."""
        return self.host == "::" and socket.has_dualstack_ipv6()

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that the source lists now. A source without options needn't say so."""
        return getattr(self.source, "contracts", frozenset())

    def url(self, port: int) -> str:
        """The base URL for clients."""
        # Clients can't connect to the address of all interfaces. Prefer IPv4: containers often lack ::1.
        all_interfaces = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1" if self.is_dual_stack else "::1"}
        host = all_interfaces.get(self.host, self.host)
        scheme = "ws" if self.ssl_context is None else "wss"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"
