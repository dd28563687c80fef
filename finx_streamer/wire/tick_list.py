"""Read an answer of tick history: how many ticks it has and how far it reaches at once, and the ticks on demand.

As in `tick_pattern`, one regular expression does the JSON and the checks. It matches only what the decoder would read
in the same way. A tick that looks different goes to the decoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

import attrs

from ..errors import DecodeError, ServerError
from ..values import SENT, Notice, Tick, tick_copier
from .decoder import MAX_FIELD, Decoder
from .frames import Binary

#: The shortest answer for the expression, in bytes. Making one takes as long as decoding a hundred ticks.
SHORTEST = 16_384

#: The first tick: the separators of keys and items, as JavaScript and as Python write them, and its second field.
_FIRST = re.compile(rb'\{"[0-9]++"(: ?)\{"pair"\1"[^"]*+"(, ?)"(date|unixDate)"')
#: With these digits, the time parser can't take one field for another. A price of these lengths is finite.
_TIME = r"([0-9][0-9]:[0-9][0-9]:[0-9][0-9](?:\.[0-9]{0,99}+)?Z)"
_PRICE = r"([0-9.]{1,30}+[eE]?[+-]?[0-9]{0,2}+)"
_EXCHANGE = rf"([ !#-[\]-~]{{0,{MAX_FIELD}}}+)"
#: Any other object that is flat and has no escapes. The JSON parser checks it.
_OTHER = r'\{[^"\\{}[\]]*+(?:"[^"\\]*+"[^"\\{}[\]]*+)*\}'

#: The key, time, exchange and price of a tick, or only the key of another object.
_Match = tuple[str, str, str, str]
_key: Callable[[_Match], str] = itemgetter(0)
_time: Callable[[_Match], str] = itemgetter(1)


@attrs.frozen
class BadTick:
    """A tick that can't be read. Perhaps its time can."""

    error: DecodeError
    timestamp: datetime | None = None


@attrs.frozen
class TickList:
    """The ticks of one answer.

    Attributes:
        size: How many there are, the bad ones included.
        reached: The latest time among those that have one.
        read: Returns the ticks and the bad ones, each in the order of the answer. To be called once.
    """

    size: int
    reached: datetime | None
    read: Callable[[], tuple[list[Tick], list[BadTick]]] = attrs.field(repr=False)


def decode_tick(raw: Any, decoder: Decoder, received_ns: int) -> Tick | BadTick | DecodeError:
    """Decode one tick of history. An error means that it isn't a tick, or one of another pair."""
    tick: Any = decoder.decode_tick(raw, received_ns)
    if isinstance(tick, DecodeError):
        if type(raw) is not dict or raw.get("pair", decoder.pair) != decoder.pair:
            return tick
        return BadTick(tick, decoder.time_of(raw))
    tick["backfilled"] = True
    if decoder.keeps_text:
        tick[SENT] = raw["price"]
    return tick  # type: ignore[no-any-return]


def read_tick_list(
    payload: bytes | Binary, decoder: Decoder, date: str, received_ns: int
) -> TickList | DecodeError | ServerError:
    """Read an answer of tick history: a JSON object whose values are ticks of the decoder's pair.

    Returns an error for anything else. One value that isn't a tick, or one of another pair, makes the whole answer bad:
    it may belong to another call.

    Args:
        payload: The answer.
        decoder: Decodes ticks of the pair.
        date: The day that was asked for, as YYYY-MM-DD.
        received_ns: `time.time_ns()` when the answer arrived.
    """
    if isinstance(payload, bytes) and (found := _find(payload, str(decoder.pair), date)):
        matched = _match(found, payload, decoder, date, received_ns)
        if matched is not None:
            return matched
    raws = _parse(payload)
    if not isinstance(raws, list):
        return raws
    results = []
    for raw in raws:
        result = decode_tick(raw, decoder, received_ns)
        if isinstance(result, DecodeError):
            return result
        results.append(result)
    reached = max(filter(None, map(_time_of, results)), default=None)
    bad = [each for each in results if isinstance(each, BadTick)]
    return TickList(len(raws), reached, lambda: ([each for each in results if not isinstance(each, BadTick)], bad))


def _parse(payload: bytes | Binary) -> list[Any] | DecodeError | ServerError:
    """Return the values of the JSON object in an answer."""
    message = Decoder("tickHistory", None, bounded=False, redact_notices=False).decode(payload, 0)
    if isinstance(message, DecodeError | ServerError):
        return message
    assert isinstance(message, Notice), "without a pair, the decoder makes no ticks"
    return list(message.message.values())


def _time_of(result: Tick | BadTick) -> datetime | None:
    return result.timestamp if isinstance(result, BadTick) else result["timestamp"]


@lru_cache(64)
def _finder(pair: str, date: str, style: tuple[str, str], flat: bool) -> Callable[[str], list[_Match]]:
    """Return the function that finds all ticks of a pair and day. The keys and their order are documented (S, D)."""
    colon, comma = style
    moment = f'"date"{colon}"{date}"{comma}"time"{colon}"'
    if flat:
        moment = f'"unixDate"{colon}[1-9][0-9]{{0,17}}+{comma}"UTCDate"{colon}"{date}T'
    tick = (
        rf'\{{"pair"{colon}{re.escape(json.dumps(pair))}{comma}{moment}{_TIME}"{comma}'
        rf'"exchange"{colon}"{_EXCHANGE}"{comma}"price"{colon}"{_PRICE}"\}}'
    )
    # The last alternative takes the rest, and has no key: the answer looks different.
    pattern = re.compile(rf'"([0-9]++)"{colon}(?:{tick}|{_OTHER})(?:{comma}|\}}\Z)|.+', re.DOTALL)
    return lambda text: pattern.findall(text, 1)


def _find(payload: bytes, pair: str, date: str) -> list[_Match] | None:
    """Return the ticks and other objects in a long answer, each with its own key. None if it looks different."""
    first = _FIRST.match(payload)
    if first is None or len(payload) < SHORTEST or not payload.endswith(b"}}"):
        return None
    colon, comma, field = (part.decode() for part in first.groups())
    found = _finder(pair, date, (colon, comma), field == "unixDate")(payload.decode("latin-1"))
    keys = set(map(_key, found))
    return found if len(keys) == len(found) and "" not in keys else None


def _match(
    found: list[_Match], payload: bytes, decoder: Decoder, date: str, received_ns: int
) -> TickList | DecodeError | None:
    """Read the times of the ticks that were found, and decode the other objects. None if the answer isn't JSON."""
    day, parse_time, parse_price = date + "T", datetime.fromisoformat, decoder.price_parser
    times: list[Any] = []
    #: What was decoded, by its place.
    others: dict[int, Tick | BadTick] = {}
    try:
        times = list(map(parse_time, map(day.__add__, map(_time, found))))
    except ValueError:
        raws = _parse(payload)
        if not isinstance(raws, list):
            return None
        for place, (match, raw) in enumerate(zip(found, raws, strict=True)):
            try:
                times.append(parse_time(day + match[1]))
            except ValueError:
                # Another object, or a leap second.
                result = decode_tick(raw, decoder, received_ns)
                if isinstance(result, DecodeError):
                    return result
                others[place] = result
                times.append(_time_of(result))
                found[place] = "", "", "", ""

    def read() -> tuple[list[Tick], list[BadTick]]:
        ticks: list[Any] = []
        bad: list[BadTick] = []
        copy, append = tick_copier(str(decoder.pair), date, received_ns, True), ticks.append
        raws: Any = None
        keeps_text = decoder.keeps_text
        for (_, time, exchange, text), timestamp in zip(found, times, strict=True):
            try:
                price = parse_price(text)
            except ValueError:
                # It was decoded, or `parse_price` refuses it.
                result: Any = others.get(place := len(ticks) + len(bad))
                if result is None:
                    raws = raws or _parse(payload)
                    result = decode_tick(raws[place], decoder, received_ns)
                (bad if isinstance(result, BadTick) else ticks).append(result)
                continue
            tick = copy()
            tick["time"] = time
            tick["exchange"] = exchange
            tick["price"] = price
            tick["timestamp"] = timestamp
            if keeps_text:
                tick[SENT] = text
            append(tick)
        return ticks, bad

    return TickList(len(found), max(filter(None, times), default=None), read)
