"""What a recorder writes for an event, and what a replay makes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

pytest.importorskip("zstandard", reason='needs the extra: pip install "finx-streamer[archive]"')

from hypothesis import given
from hypothesis import strategies as st

from finx_streamer import errors
from finx_streamer.archive.events import fields_of, payload_of
from finx_streamer.archive.journal import Entry, entry_line
from finx_streamer.config.redaction import remember
from finx_streamer.errors import BarError, CallbackError, DecodeError, FinxStreamerError, GapNotFilled
from finx_streamer.values import Event, Gap, Notice, State

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FinxStreamerError)]
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1), timezones=st.just(UTC)).map(
    lambda time: time.replace(fold=0)
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from(["pair", "error", "startTime"]), JSON | TIMES, max_size=3)
TICKS = st.fixed_dictionaries({"pair": st.text(), "price": NUMBERS, "timestamp": TIMES})
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(),
    "str | bytes": st.text() | st.binary(),
    "int": st.integers(),
    "int | None": st.none() | st.integers(),
    "bool": st.booleans(),
    "float": NUMBERS,
    "float | None": st.none() | NUMBERS,
    "dict[str, Any]": OBJECTS,
    "Any": TICKS,
    "Callable[..., object]": st.just(print),
    "object": st.none(),
}


def back(kind: str, fields: dict[str, Any], symbol: str | None) -> State | Gap | FinxStreamerError | None:
    """Write an entry and read it."""
    return payload_of(Entry.parse(entry_line(1, kind, symbol, fields)[:-1]))


def recorded(event: Event) -> State | Gap | FinxStreamerError | None:
    """Record an event and read it."""
    found = fields_of(event)
    assert found is not None
    return back(*found, event.symbol)


def error_of(kind: type[FinxStreamerError]) -> st.SearchStrategy[FinxStreamerError]:
    """Any error of a class."""
    fields = [field for field in attrs.fields(kind) if field.name != "symbol"]
    return st.builds(
        kind, **{field.name: BY_TYPE[str(field.type)] for field in fields}, symbol=st.none() | st.just("BTC:USDC")
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_errors_come_back(kind: type[FinxStreamerError], data: st.DataObject) -> None:
    """Every class has the same attributes and the same text."""
    error = data.draw(error_of(kind))
    found = recorded(Event(error, error.symbol))
    assert type(found) is kind
    if isinstance(error, CallbackError):
        return
    assert str(found) == str(error)
    assert attrs.asdict(found, recurse=False) == attrs.asdict(error, recurse=False)


@given(st.text(), TIMES, TIMES, st.booleans(), st.integers())
def test_gaps_come_back(symbol: str, since: datetime, until: datetime, filled: bool, ticks: int) -> None:
    """A gap is the same, with or without the reason for the ledger."""
    event = Event(Gap(symbol, since, until, filled, ticks), symbol)
    assert recorded(event) == event.payload
    found = fields_of(event, why="history refused")
    assert found is not None
    assert found[1]["why"] == "history refused"
    assert back(*found, symbol) == event.payload


@pytest.mark.parametrize("state", State)
def test_states_come_back(state: State) -> None:
    """Each state is recorded by its value, which `coverage` reads."""
    assert fields_of(Event(state, "BTC:USDC")) == ("state", {"state": state.value})
    assert recorded(Event(state, "BTC:USDC")) is state


def test_messages_are_recorded_in_another_way() -> None:
    """A notice is a message of the server."""
    assert fields_of(Event(Notice(None, {}, 1))) is None


def test_a_callback_keeps_its_name_and_its_error() -> None:
    """A callback can't be recorded; who raised and what can."""
    error = CallbackError(print, {"price": 1.0}, symbol="BTC:USDC")
    error.__cause__ = KeyError("missing")
    found = recorded(Event(error, "BTC:USDC"))
    assert "callback print raised" in str(found)
    assert "KeyError: 'missing'" in str(found)


def test_no_key_is_recorded() -> None:
    """The error of a callback may have any text."""
    remember("a-key-of-test-events")
    error = CallbackError(print)
    error.__cause__ = ValueError("a-key-of-test-events")
    found = fields_of(Event(error))
    assert "a-key-of-test-events" not in json.dumps(found)


def test_a_gap_of_the_archive_is_an_error() -> None:
    """Damage concerns all streams."""
    found = back("gap", {"since": "x", "until": "y", "filled": False, "why": "5 bytes are damaged"}, None)
    assert isinstance(found, GapNotFilled)
    assert "5 bytes are damaged" in str(found)


@given(st.sampled_from(["state", "gap", "error", "other"]), st.dictionaries(st.text(), JSON), st.booleans())
def test_foreign_entries_never_raise(kind: str, fields: dict[str, Any], with_symbol: bool) -> None:
    """Fields of any type and value give an object or None."""
    fields = {name: value for name, value in fields.items() if name not in ("at", "kind", "symbol")}
    str(back(kind, fields, "BTC:USDC" if with_symbol else None))


@given(st.sampled_from([*KINDS, None]), st.data())
def test_foreign_attributes_never_raise(kind: type[FinxStreamerError] | None, data: st.DataObject) -> None:
    """A known class with attributes of any type can be made, or isn't, and has a text."""
    names = ["x", *(field.name for field in attrs.fields(kind or DecodeError) if field.name != "symbol")]
    fields = data.draw(st.dictionaries(st.sampled_from(names), JSON | st.just({"time": "x"}) | st.just({"bytes": 1})))
    str(back("error", {"type": kind.__name__ if kind else "FutureError", **fields}, None))


def test_a_tick_without_a_time_is_no_tick() -> None:
    """The text of the error needs its time."""
    assert back("error", {"type": BarError.__name__, "reason": "late", "tick": {"timestamp": 3}}, None) is None
