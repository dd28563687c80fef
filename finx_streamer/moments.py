"""Times as users give them, as aware datetimes in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime

from .arguments import refusal
from .errors import ConfigurationError

#: What `moment` takes.
Moment = datetime | date | str

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)
_EXPECTED = "an aware datetime, a date, or ISO text such as '2022-07-02' or '2022-07-02T15:30:55.817Z'"


def moment(name: str, value: object) -> datetime:
    """An aware datetime in UTC, out of an aware datetime, a date (its midnight, UTC) or ISO 8601 text.

    Text without an offset is in UTC, as FinX's own times are. A naive datetime is refused: elsewhere in Python it means
    local time. Raises `ConfigurationError`.
    """
    found = _read(name, value)
    if found.tzinfo is None:
        raise ConfigurationError(
            f"{name}: {value!r} has no time zone; expected an aware datetime, such as {found.isoformat()}+00:00, that "
            "is: pass tzinfo=datetime.UTC"
        )
    try:
        found = found.astimezone(UTC)
    except OverflowError:
        raise refusal(name, value, "a time from 1970 to 9998") from None
    if not _FIRST <= found < _LAST:
        raise refusal(name, value, "a time from 1970 to 9998")
    return found


def _read(name: str, value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, str):
        raise refusal(name, value, _EXPECTED)
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        raise refusal(name, value, _EXPECTED) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
