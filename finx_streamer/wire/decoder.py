"""Decode messages into ticks, notices and errors.

There are two ways to read a tick: the tick pattern, and the thorough decoder, from whose ticks the pattern is learned.
Both forms of a tick give the same dict.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any

import attrs

from ..config.redaction import redact
from ..config.symbols import Contract
from ..errors import PAYLOAD_LIMIT, DecodeError, ServerError
from ..values import Greeks, Notice, Tick
from .contract_ticker import NAME, read_greeks
from .frames import Binary
from .json_codec import loads
from .tick_form import TickForm, read_number
from .tick_pattern import Keys, TickPattern

#: An error is a value here: like a tick or a notice, it goes to a callback.
Message = Tick | Greeks | Notice | ServerError | DecodeError

_TICK_FIELDS = frozenset({"pair", "date", "time", "exchange", "price", "UTCDate", "unixDate"})
_NO_TICK = object()
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]*)?Z?")
#: Each text matches in one way only, so matching takes linear time. A longer exponent could make `Fraction` fill the
#: memory.
_PRICE = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
#: The longest field of a tick, in characters: a queue holds many thousands of ticks.
MAX_FIELD = 4_096
#: The longest message of a stream, in bytes, and the longest one that isn't a tick. A tick has fewer than 200.
MAX_TICK_MESSAGE, MAX_NOTICE = 1_048_576, 65_536
#: The largest ID of a tick.
MAX_ID = 10**18 - 1
#: How deep a message may be nested. Without this limit, it would depend on the stack.
MAX_DEPTH = 100


class _NotATick(ValueError):
    """The reason why a value isn't a tick."""


@attrs.define
class Decoder:
    """Decodes the messages of one stream, or the answers to one function.

    `pair` is None for a stream without ticks, and `symbol` for messages that belong to no stream. `bounded=False`
    accepts messages of any length. `redact_notices=False` keeps notices as they are, for answers that are data.
    `contract` is what a stream of Greeks has. `keeps_text` adds `SENT` to the ticks of history.
    """

    symbol: str | None
    pair: str | None
    parse_price: Callable[[str], Any] = float
    bounded: bool = True
    redact_notices: bool = True
    contract: Contract | None = None
    keeps_text: bool = False
    #: The ID of the last tick, valid or not; None if its message has none.
    number: int | None = attrs.field(default=None, init=False)
    #: The pattern of the last tick that has one.
    _pattern: TickPattern | None = attrs.field(default=None, init=False)

    def match_ticks(self, text: str, at: int, limit: int, received_ns: int) -> tuple[list[Tick], int]:
        """Return up to `limit` ticks from the frame at `at` on, and the offset behind the last one.

        The fast path: reads frames whose ticks look like the last one. `text` is the read buffer as latin-1.
        """
        if self._pattern is None:
            return [], at
        ticks, number, at = self._pattern.match_ticks(text, at, limit, self.price_parser, received_ns)
        if ticks:
            self.number = read_number(number)
        return ticks, at

    @property
    def price_parser(self) -> Callable[[str], Any]:
        """What converts the text of a price. Raises ValueError for one that isn't valid."""
        return float if self.parse_price is float else self._price

    def later_keys(self, text: str, start: int, end: int) -> Callable[[], Keys] | None:
        """Return what makes the keys of the ticks that `match_ticks` has just read, without the ticks themselves.

        None if only the ticks have their keys: `parse_price` may return another price each time.
        """
        if self._pattern is None or self.parse_price is not float:
            return None
        if 2 * (end - start) < len(text):
            # Don't keep much else in memory.
            text, start, end = text[start:end], 0, end - start
        return partial(self._pattern.read_keys, text, start, end)

    def decode(self, payload: bytes | Binary, received_ns: int) -> Message:
        """Decode one message. An error is returned, not raised: a traceback would keep the payload.

        Everything except a tick is redacted, because a server may quote the request, and with it the API key.
        """
        if isinstance(payload, Binary):
            return self._binary(payload)
        if self.bounded and len(payload) > MAX_TICK_MESSAGE:
            return self._too_long(payload)
        message = self._decode(payload, received_ns)
        # The text of Greeks may be anything, because `raw` keeps it.
        is_tick = type(message) is dict and self.contract is None
        if is_tick:
            self._learn(payload)
            return message
        if not self.redact_notices and isinstance(message, Notice):
            return message
        if self.bounded and len(payload) > MAX_NOTICE:
            return self._too_long(payload)
        safe = _redacted(payload)
        return message if safe == payload else self._decode(safe, received_ns)

    def _learn(self, payload: bytes) -> None:
        """Note how a valid tick is written that the pattern didn't match."""
        if self.pair is not None and (form := TickForm.of(payload)) is not None:
            self._pattern = TickPattern(form, self.pair)

    def decode_list(self, payload: bytes | Binary) -> list[Any] | ServerError | DecodeError:
        """Decode an answer that is a JSON array, and redact it. An error is returned, as by `decode`."""
        if isinstance(payload, Binary):
            return self._binary(payload)
        payload = _redacted(payload)
        content = self._parse(payload)
        if isinstance(content, list | DecodeError):
            return content
        if type(content) is dict and isinstance(refusal := self._notice_or_error(content, 0), ServerError):
            return refusal
        return self._error(f"expected a JSON array, not {_json_type(content)}", payload)

    def decode_tick(self, raw: Any, received_ns: int) -> Tick | DecodeError:
        """Decode a tick that is part of a message, such as an answer of tick history. An error is redacted."""
        try:
            return self._tick(raw, received_ns)
        except _NotATick:
            payload = _redacted(json.dumps(raw).encode())
        try:
            checked = json.loads(payload)
        except ValueError:
            return self._error("not a tick", payload)
        error = self._tick_or_error(checked, payload, received_ns)
        return error if isinstance(error, DecodeError) else self._error("not a tick: it contains the API key", payload)

    def time_of(self, raw: dict[str, Any]) -> datetime | None:
        """Return the time of a tick, even if the rest of it can't be read. None if the time can't be read either."""
        try:
            return _timestamp(*_date_and_time(raw))
        except _NotATick:
            return None

    def _parse(self, payload: bytes) -> Any:
        """Return the JSON value in a message, or a `DecodeError`."""
        try:
            content = loads(payload)
        except (ValueError, RecursionError) as cause:
            # Keep its text only: the standard library's exception holds the whole payload.
            return self._error(f"not JSON ({cause})", payload)
        # Each level takes two bytes, so shorter messages can't be too deep.
        if len(payload) > 2 * MAX_DEPTH and type(content) in (dict, list) and _too_deep(content):
            return self._error(f"nested more than {MAX_DEPTH} deep", payload)
        return content

    def _decode(self, payload: bytes, received_ns: int) -> Message:
        message = self._parse(payload)
        if isinstance(message, DecodeError):
            return message
        if type(message) is not dict:
            return self._error(f"expected a JSON object, not {_json_type(message)}", payload)
        raw = _tick_part(message)
        if self.contract is not None:
            ticker = message if raw is _NO_TICK else raw
            if type(ticker) is dict and NAME in ticker and not message.get("error"):
                return self._greeks_or_error(ticker, payload, received_ns)
        if raw is _NO_TICK or self.pair is None:
            return self._notice_or_error(message, received_ns)
        self.number = read_id(message)
        return self._tick_or_error(raw, payload, received_ns)

    def _error(self, reason: str, payload: bytes, cause: BaseException | None = None) -> DecodeError:
        # A character takes at most four bytes.
        kept = payload[: 4 * PAYLOAD_LIMIT].decode("utf-8", "replace")
        error = DecodeError(reason, kept[:PAYLOAD_LIMIT], symbol=self.symbol)
        error.__cause__ = cause
        return error

    def _binary(self, payload: Binary) -> DecodeError:
        kept = _redacted(payload.payload[:MAX_NOTICE])[:PAYLOAD_LIMIT]
        return DecodeError("a binary message; expected text", kept, symbol=self.symbol)

    def _too_long(self, payload: bytes) -> DecodeError:
        reason = (
            f"a message of {len(payload):,} bytes; expected at most {MAX_NOTICE:,}, or {MAX_TICK_MESSAGE:,} for a tick"
        )
        # Redacting takes time, and the error keeps only the beginning.
        return self._error(reason, _redacted(payload[:MAX_NOTICE]))

    def _tick_or_error(self, raw: Any, payload: bytes, received_ns: int) -> Tick | DecodeError:
        try:
            return self._tick(raw, received_ns)
        except _NotATick as fault:
            return self._error(str(fault), payload, fault.__cause__)

    def _greeks_or_error(self, raw: dict[str, Any], payload: bytes, received_ns: int) -> Greeks | DecodeError:
        assert self.contract is not None
        try:
            return read_greeks(raw, self.contract, received_ns)
        except ValueError as fault:
            return self._error(f"not a contract's ticker: {fault}", payload)

    def _tick(self, raw: Any, received_ns: int) -> Tick:
        if type(raw) is not dict:
            raise _NotATick(f"expected a tick object, not {_json_type(raw)}")
        pair = _text(raw, "pair")
        if pair != self.pair:
            raise _NotATick(f"a tick of {pair[:70]!r} on the stream of {self.pair}")
        date, time = _date_and_time(raw)
        return {
            "pair": pair,
            "date": date,
            "time": time,
            "exchange": _text(raw, "exchange"),
            "price": self._price(_text(raw, "price")),
            "timestamp": _timestamp(date, time),
            "received_ns": received_ns,
            "backfilled": False,
        }

    def _price(self, text: str) -> Any:
        if not _PRICE.fullmatch(text):
            raise _NotATick(f"price {text[:70]!r} is not a decimal number")
        try:
            price = self.parse_price(text)
        except Exception as cause:
            raise _NotATick(f"parse_price refused {text[:70]!r} ({type(cause).__name__}: {cause})") from cause
        if type(price) is float and not math.isfinite(price):
            raise _NotATick(f"parse_price returned {price} for {text[:70]!r}; expected a finite number")
        return price

    def _notice_or_error(self, message: dict[str, Any], received_ns: int) -> Notice | ServerError:
        reported = message.get("error") or message.get("errors")
        if not reported and message.get("results") == "error":
            reported = message.get("resultData") or "error"
        if not reported:
            return Notice(self.symbol, message, received_ns)
        text = reported if isinstance(reported, str) else json.dumps(reported)
        return ServerError(text, message, symbol=self.symbol)


def read_id(message: dict[str, Any]) -> int | None:
    """Return the ID of a tick's message. None if it has none. Source: O."""
    number = message.get("id")
    return number if type(number) is int and 0 < number <= MAX_ID else None


def _redacted(payload: bytes) -> bytes:
    return redact(payload.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _tick_part(message: dict[str, Any]) -> Any:
    """Return the part of a message that must be a tick, or `_NO_TICK`."""
    if message.get("results") == "streaming" and "resultData" in message:
        return message["resultData"]
    # Two tick fields are enough: an incomplete tick is an error, not an unknown notice.
    if len(_TICK_FIELDS & message.keys()) >= 2 and not message.get("error"):
        return message
    return _NO_TICK


def _text(raw: dict[str, Any], field: str) -> str:
    try:
        value = raw[field]
    except KeyError:
        raise _NotATick(f"field {field!r} is missing") from None
    if type(value) is not str:
        raise _NotATick(f"field {field!r} is {_json_type(value)}; expected a string")
    if len(value) > MAX_FIELD:
        raise _NotATick(f"field {field!r} has {len(value):,} characters; expected {MAX_FIELD} at most")
    return value


def _date_and_time(raw: dict[str, Any]) -> tuple[str, str]:
    if "UTCDate" not in raw or "date" in raw:
        return _text(raw, "date"), _text(raw, "time")
    if type(raw.get("unixDate", 0)) not in (int, float):
        raise _NotATick(f"field 'unixDate' is {_json_type(raw['unixDate'])}; expected a number")
    date, separator, time = _text(raw, "UTCDate").partition("T")
    if not separator:
        raise _NotATick(f"UTCDate {raw['UTCDate'][:70]!r} is not a date and time")
    return date, time


def _timestamp(date: str, time: str) -> datetime:
    if not _DATE.fullmatch(date):
        raise _NotATick(f"date {date[:70]!r} is not YYYY-MM-DD")
    if not _TIME.fullmatch(time):
        raise _NotATick(f"time {time[:70]!r} is not HH:MM:SS.fffZ")
    text = f"{date}T{time.rstrip('Z').rstrip('.')}"
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as cause:
        if time.startswith("23:59:60"):
            # A leap second counts as the second that follows.
            with contextlib.suppress(ValueError, OverflowError):
                return datetime.fromisoformat(text.replace(":60", ":59", 1)).replace(tzinfo=UTC) + timedelta(seconds=1)
        raise _NotATick(f"{date} {time[:70]} is not a date and time ({cause})") from None


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _too_deep(message: dict[str, Any] | list[Any]) -> bool:
    """Walk level by level: recursion could exhaust the stack."""
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        children = chain.from_iterable(each.values() if type(each) is dict else each for each in level)
        level = [child for child in children if type(child) in (dict, list)]
        if not level:
            return False
    return True
