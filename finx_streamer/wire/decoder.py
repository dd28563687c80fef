"""Text in, one typed message out (a tick, a notice, a server error), or exactly one `DecodeError`.

Nothing here knows of sockets, keys or threads. The wire's two tick forms (S: enveloped; D: flat, with `UTCDate`) give
the same dict. `msgspec` reads the JSON where it is installed, the standard library where it is not, with the same
results.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import attrs

from ..config.redaction import redact
from ..errors import PAYLOAD_LIMIT, DecodeError, ServerError, truncate
from ..values import Notice, Tick
from .frames import Binary
from .json_codec import ENVELOPED, FLAT, REFUSALS, TickForm, loads
from .tick_pattern import TickPattern

#: Errors are values here: they travel to the callbacks like ticks and notices.
Message = Tick | Notice | ServerError | DecodeError

_TICK_FIELDS = frozenset({"pair", "date", "time", "exchange", "price", "UTCDate", "unixDate"})
_NO_TICK = object()
#: Of what nearly every price consists. A rarer one, with an exponent say, takes the longer way.
_PLAIN_PRICE = "0123456789."
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]*)?Z?")
#: Only one way to match each text, and an exponent that no type of number makes a megabyte of.
_PRICE = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
#: How many characters a field of a tick may have: a stream's ticks wait by the ten thousand.
MAX_FIELD = 4_096
#: How many bytes a message of a stream may have, and one that is no tick, which is kept as it is. A tick takes fewer
#: than 200.
MAX_MESSAGE, MAX_NOTICE = 1_048_576, 65_536
#: How deep a message may be nested. Any limit would do, but Python's own is not at the same depth for all readers.
MAX_DEPTH = 100


class _NotATick(ValueError):
    """What is wrong with something that has to be a tick."""


@attrs.define
class Decoder:
    """Reads the messages of one stream. `pair` is None for a stream that carries no ticks.

    `bounded`: whether the length of a message has a bound; the answers of functions may be long.
    """

    symbol: str
    pair: str | None
    parse_price: Callable[[str], Any] = float
    bounded: bool = True
    redact_notices: bool = True
    #: The last date that was seen to be one.
    _date: str = attrs.field(default="", init=False)
    #: How to read the form of tick that came last.
    _form: TickForm = attrs.field(default=ENVELOPED, init=False)
    #: What the last tick looked like, where it looked as documented.
    _pattern: TickPattern | None = attrs.field(default=None, init=False)

    def match_ticks(self, text: str, at: int, limit: int, received_ns: int) -> tuple[list[Tick], int]:
        """At most `limit` ticks out of a read buffer from `at` on, where a frame begins, and where the last one ends.

        `text` is the buffer read as latin-1. The quickest path: it takes ticks that look like the last one, and leaves
        the rest of the buffer to `decode_ticks`, by way of the framing.
        """
        if self._pattern is None:
            return [], at
        parse_price = float if self.parse_price is float else self._price
        return self._pattern.ticks(text, at, limit, parse_price, received_ns)

    def decode_ticks(self, payloads: list[Any], at: int, received_ns: int) -> list[Tick]:
        """The ticks of the payloads from `at` on, as long as each is a tick without any peculiarity.

        The first that is not here needs a closer look, by `decode`. This is the path that has to be quick: each check
        is sufficient for what `decode` checks, at a fraction of the cost.
        """
        ticks: list[Tick] = []
        read, enveloped = self._form.read, self._form.enveloped
        pair, date, append, parse_time = self.pair, self._date, ticks.append, datetime.fromisoformat
        if pair is None:
            return ticks
        prefix = date + "T"
        parse_price = None if self.parse_price is float else self._price
        try:
            for payload in islice(payloads, at, None):
                if len(payload) > MAX_FIELD:
                    break
                raw = read(payload)
                if enveloped:
                    raw = raw.resultData
                time, price = raw.time, raw.price
                if raw.date != date:
                    date = raw.date
                    _timestamp(date, time)
                    self._date, prefix = date, date + "T"
                timestamp = parse_time(prefix + time)
                # A point there and a Z here leave the parser one way to read the rest.
                if time[8] != "." or time[-1] != "Z" or raw.pair != pair:
                    break
                if parse_price is not None:
                    number = parse_price(price)
                elif price.strip(_PLAIN_PRICE) or not (number := float(price)) < math.inf:
                    break
                append(
                    {
                        "pair": pair,
                        "date": date,
                        "time": time,
                        "exchange": raw.exchange,
                        "price": number,
                        "timestamp": timestamp,
                        "received_ns": received_ns,
                        "backfilled": False,
                    }
                )
        except REFUSALS:
            pass
        if ticks:
            self._pattern = TickPattern.of(payloads[at], pair, ticks[0]["date"])
        return ticks

    def decode(self, payload: bytes | Binary, received_ns: int) -> Message:
        """Decode one message. An error is returned, not raised: a traceback would keep the payload.

        Everything except a tick is redacted, because a server may quote the request, and with it the API key.
        """
        if isinstance(payload, Binary):
            return self._error("a binary message; expected text", _redacted(payload.payload[:MAX_NOTICE]), binary=True)
        if self.bounded and len(payload) > MAX_MESSAGE:
            return self._too_long(payload)
        message = self._decode(payload, received_ns)
        if type(message) is dict or (not self.redact_notices and isinstance(message, Notice)):
            return message
        if self.bounded and len(payload) > MAX_NOTICE:
            return self._too_long(payload)
        return self._decode(_redacted(payload), received_ns)

    def decode_tick(self, raw: Any, received_ns: int) -> Tick | DecodeError:
        """Decode a tick that is part of a message, as in the answers of functions. An error is redacted."""
        with contextlib.suppress(_NotATick):
            return self._tick(raw, received_ns)
        text = redact(json.dumps(raw))
        try:
            self._tick(json.loads(text), received_ns)
        except _NotATick as fault:
            reason, cause = str(fault), fault.__cause__
        except ValueError:
            reason, cause = "not a tick", None
        else:
            reason, cause = "not a tick, but for the API key in it", None
        return self._error(reason, text.encode(), cause)

    def _decode(self, payload: bytes, received_ns: int) -> Message:
        try:
            message = loads(payload)
        except (ValueError, RecursionError) as cause:
            # Keep its text only: the standard library's exception holds the whole payload.
            return self._error(f"not JSON ({cause})", payload)
        if type(message) is not dict:
            return self._error(f"expected a JSON object, not {_json_type(message)}", payload)
        # Each level takes two bytes, so shorter messages can't be too deep.
        if len(payload) > 2 * MAX_DEPTH and _too_deep(message):
            return self._error(f"nested more than {MAX_DEPTH} deep", payload)
        raw = _tick_part(message)
        if raw is _NO_TICK or self.pair is None:
            return self._other(message, received_ns)
        self._form = FLAT if raw is message else ENVELOPED
        try:
            return self._tick(raw, received_ns)
        except _NotATick as fault:
            return self._error(str(fault), payload, fault.__cause__)

    def _error(
        self, reason: str, payload: bytes, cause: BaseException | None = None, *, binary: bool = False
    ) -> DecodeError:
        # A character takes at most four bytes.
        kept = payload if binary else payload[: 4 * PAYLOAD_LIMIT].decode("utf-8", "replace")
        error = DecodeError(reason, truncate(kept), symbol=self.symbol)
        error.__cause__ = cause
        return error

    def _too_long(self, payload: bytes) -> DecodeError:
        reason = f"a message of {len(payload):,} bytes that is no tick; expected {MAX_NOTICE:,} at most"
        # Redacting takes time: only redact what the error may keep.
        return self._error(reason, _redacted(payload[:MAX_NOTICE]))

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
            raise _NotATick(f"price {text[:70]!r} became {price}, which is no price")
        return price

    def _other(self, message: dict[str, Any], received_ns: int) -> Notice | ServerError:
        reported = message.get("error") or message.get("errors")
        if not reported and message.get("results") == "error":
            reported = message.get("resultData") or "error"
        if reported:
            return ServerError(
                reported if isinstance(reported, str) else json.dumps(reported), message, symbol=self.symbol
            )
        return Notice(self.symbol, message, received_ns)


def _redacted(payload: bytes) -> bytes:
    return redact(payload.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _tick_part(message: dict[str, Any]) -> Any:
    """The part of a message that has to be a tick; `_NO_TICK` where the message is something else."""
    if message.get("results") == "streaming" and "resultData" in message:
        return message["resultData"]
    # Two fields of a tick make it a tick: with one missing it is a broken tick, and not some unknown notice.
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
    try:
        return datetime.fromisoformat(f"{date}T{time.rstrip('Z').rstrip('.')}").replace(tzinfo=UTC)
    except ValueError as cause:
        raise _NotATick(f"{date} {time[:70]} is not a date and time ({cause})") from None


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _too_deep(message: dict[str, Any]) -> bool:
    """Level by level, so that the depth costs no stack."""
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _items(outer) if type(inner) in (dict, list)]
        if not level:
            return False
    return True


def _items(container: Any) -> Iterable[Any]:
    return container.values() if type(container) is dict else container
