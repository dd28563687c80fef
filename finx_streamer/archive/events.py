"""What a recorder writes for states, gaps and errors, and back. Other messages are recorded as they came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

import attrs

from .. import errors
from ..config.redaction import redact
from ..errors import BarError, CallbackError, FinxStreamerError, GapNotFilled
from ..values import Event, Gap, State
from .journal import Entry

#: The classes that can be read back, by name.
_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, FinxStreamerError)
}
#: What a value must be, by the annotation of the attribute. Others may be anything.
_TYPES: dict[str, Any] = {
    "str": str,
    "str | bytes": str | bytes,
    "bool": bool,
    "int": int,
    "int | None": int | None,
    "float": float | int,
    "float | None": float | int | None,
    "dict[str, Any]": dict,
}
#: Marks bytes and times in JSON.
_BYTES, _TIME = "bytes", "time"


def fields_of(event: Event, why: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """Return the kind and the fields with which `ArchiveWriter.put_event` records an event.

    Args:
        event (Event): Its symbol isn't among the fields.
        why (str | None): Why a gap wasn't filled, for the ledger.

    Returns:
        tuple[str, dict[str, Any]] | None: Values that JSON has. None for what is recorded in another way: notices,
        Greeks and the time of bars.
    """
    payload = event.payload
    if isinstance(payload, State):
        return "state", {"state": payload.value}
    if isinstance(payload, Gap):
        fields: dict[str, Any] = {"since": payload.since.isoformat(), "until": payload.until.isoformat()}
        fields |= {"filled": payload.filled, "ticks": payload.ticks}
        return "gap", fields if why is None else fields | {"why": why}
    if isinstance(payload, FinxStreamerError):
        return "error", _error_fields(payload)
    return None


def payload_of(entry: Entry) -> State | Gap | FinxStreamerError | None:
    """Return what `fields_of` was given, or its closest equivalent. Never raises: the file may be of another version.

    A gap of the archive itself, such as damage, becomes a `GapNotFilled`. None for anything else.
    """
    try:
        return _payload(entry)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def _payload(entry: Entry) -> State | Gap | FinxStreamerError | None:
    fields = entry.fields
    if entry.kind == "state":
        return State(fields["state"])
    if entry.kind == "gap":
        if entry.symbol is None:
            return GapNotFilled(str(fields["why"]))
        since, until = datetime.fromisoformat(fields["since"]), datetime.fromisoformat(fields["until"])
        return Gap(entry.symbol, since, until, bool(fields.get("filled")), int(fields.get("ticks") or 0))
    return _error(fields, entry.symbol) if entry.kind == "error" else None


def _error_fields(error: FinxStreamerError) -> dict[str, Any]:
    name = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _ERRORS)
    # A reader in SQL wants the text. Some classes have an attribute of this name.
    fields: dict[str, Any] = {"type": name, "message": redact(str(error))}
    for field in _attributes(_ERRORS[name]):
        fields[field] = _to_json(getattr(error, field))
    if isinstance(error, CallbackError):
        # Its text may be anything, unlike those of our errors.
        fields["callback"] = getattr(error.callback, "__qualname__", type(error.callback).__name__)
        fields["argument"] = None
        fields["cause"] = redact(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return fields


def _error(fields: Mapping[str, Any], symbol: str | None) -> FinxStreamerError | None:
    kind = _ERRORS.get(fields["type"])
    if kind is None:
        return None
    found = {name: _from_json(fields[name]) for name in _attributes(kind) if name in fields}
    given: dict[str, Any] = {name: each for name, each in found.items() if isinstance(each, _attributes(kind)[name])}
    if kind is CallbackError:
        given["callback"] = _recorded_callback(str(fields["callback"]))
    error = kind(**given, symbol=symbol)
    if isinstance(error, BarError) and not isinstance(error.tick["timestamp"], datetime):
        return None
    if "cause" in fields:
        error.__cause__ = RuntimeError(str(fields["cause"]))
    return error


def _recorded_callback(name: str) -> Callable[..., None]:
    """Stand for a callback of the program that recorded."""

    def recorded(*_: object) -> None:
        """Do nothing."""

    recorded.__qualname__ = name
    return recorded


def _attributes(kind: type[FinxStreamerError]) -> dict[str, Any]:
    """Return the attributes of an error and what their values must be, without the symbol."""
    fields = attrs.fields(cast(Any, kind))
    return {field.name: _TYPES.get(str(field.type), object) for field in fields if field.name != "symbol"}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(each) for each in value]
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and value - value == 0):
        return value
    return str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TIME}:
        return datetime.fromisoformat(value[_TIME])
    if value.keys() == {_BYTES}:
        return bytes.fromhex(value[_BYTES])
    return {name: _from_json(each) for name, each in value.items()}
