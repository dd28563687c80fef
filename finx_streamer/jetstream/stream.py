"""The stream in which NATS JetStream keeps the ticks: create it, or check the one that exists."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import attrs
import nats
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError

from ..errors import ConfigurationError
from .connection import REQUEST_TIMEOUT, find_stream, translate
from .subjects import ALL

#: What a new stream gets unless you say otherwise.
_DEFAULTS: dict[str, Any] = {"max_age": 86_400.0, "max_bytes": -1, "num_replicas": 1, "duplicate_window": 120.0}
#: Error code of JetStream: the name exists with other settings.
_EXISTS = 10058
#: More of them: too few servers for the replicas, overlapping subjects, a duplicate window that is longer than the age.
_IMPOSSIBLE = (10074, 10065, 10052)


@attrs.frozen(kw_only=True)
class StreamSettings:
    """What the user wants of the stream. None: what the stream has, or a default if it doesn't exist."""

    name: str
    max_age: timedelta | None
    max_bytes: int | None
    replicas: int | None
    duplicate_window: timedelta | None

    def wanted(self) -> dict[str, Any]:
        """Return the fields of NATS's configuration that the user has set."""
        fields = {
            "max_age": None if self.max_age is None else self.max_age.total_seconds(),
            "max_bytes": self.max_bytes,
            "num_replicas": self.replicas,
            "duplicate_window": None if self.duplicate_window is None else self.duplicate_window.total_seconds(),
        }
        return {name: value for name, value in fields.items() if value is not None}


async def prepare(client: Client, settings: StreamSettings) -> StreamInfo:
    """Create the stream unless it exists, and check it.

    Raises:
        ConfigurationError: The stream can't be created or used.
        ConnectionFailed: JetStream doesn't answer now.
    """
    info = await find_stream(client, settings.name) or await _create(client, settings)
    _check(info.config, settings)
    return info


async def _create(client: Client, settings: StreamSettings) -> StreamInfo:
    fields = _DEFAULTS | settings.wanted()
    if settings.duplicate_window is None:
        # NATS accepts no longer one.
        fields["duplicate_window"] = min(fields["duplicate_window"], fields["max_age"] or float("inf"))
    config = StreamConfig(
        name=settings.name,
        # By this, gateways notice a stream that was deleted and created again. Its time of creation isn't the same on
        # all nodes of NATS.
        description=f"finx-streamer {secrets.token_hex(8)}",
        subjects=[ALL],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        **fields,
    )
    try:
        return await client.jetstream(timeout=REQUEST_TIMEOUT).add_stream(config)
    except (nats.errors.Error, TimeoutError, OSError) as error:
        if isinstance(error, APIError):
            # Another publisher may just have created it.
            if error.err_code == _EXISTS and (found := await find_stream(client, settings.name)) is not None:
                return found
            if error.err_code in _IMPOSSIBLE:
                problem = f"{error.description} (JetStream error {error.err_code})"
                raise ConfigurationError(f"stream {settings.name} can't be created: {problem}") from None
        raise translate(error) from None


def _check(found: StreamConfig, settings: StreamSettings) -> None:
    name = settings.name
    if not any(covers(pattern, ALL) for pattern in found.subjects or ()):
        raise ConfigurationError(
            f"stream {name} has the subjects {found.subjects}, which don't include {ALL}; add it with "
            f"nats stream edit {name} --subjects, or use another stream"
        )
    if found.no_ack or found.sealed or found.retention not in (None, RetentionPolicy.LIMITS):
        raise ConfigurationError(
            f"stream {name} can't be used: it is sealed, sends no acknowledgements, or removes messages once they are "
            "read; use another stream"
        )
    differences = [
        f"{field}: {getattr(found, field)} instead of {value}"
        for field, value in settings.wanted().items()
        if not _equal(field, getattr(found, field), value)
    ]
    if differences:
        raise ConfigurationError(
            f"stream {name} has other settings: {'; '.join(differences)}; change it with nats stream edit {name}, or "
            "pass the settings that it has, or none"
        )


def _equal(field: str, found: Any, wanted: Any) -> bool:
    """Compare settings. No limit is -1 or 0."""
    if field in ("max_bytes", "max_age"):
        found, wanted = (value if value and value > 0 else 0 for value in (found, wanted))
    return bool(found == wanted)


def covers(pattern: str, subjects: str) -> bool:
    """Whether each subject of a filter is one of a pattern's."""
    wide, narrow = pattern.split("."), subjects.split(".")
    for token, other in zip(wide, narrow, strict=False):
        if token == ">":
            return True
        if other == ">" or (token != "*" and token != other):
            return False
    return len(wide) == len(narrow)
