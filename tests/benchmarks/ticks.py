"""The ticks that all benchmarks send, and a check of received ones."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

#: The ticks repeat after this number.
DISTINCT = 1_000
MOST_PAIRS = 1_000
FIELDS = frozenset({"pair", "date", "time", "exchange", "price", "timestamp", "received_ns", "backfilled"})
#: Digits of the timestamp that paced ticks carry as their exchange.
STAMP_DIGITS = 19
_DATE = "2022-07-02"
_EXCHANGES = ("BINANCE", "COINBASE", "KRAKEN", "FTX", "BITSTAMP", "GEMINI")


def pair(number: int) -> str:
    """Return the name of a pair. All have the same length, so a frame of one pair can be turned into another's."""
    return f"C{number:04}:USD"


def price(number: int) -> str:
    """Return the price of a tick, as sent."""
    return f"{19_000 + number % DISTINCT * 0.01:.2f}"


def total(count: int) -> float:
    """Return the sum of the prices of the first `count` ticks."""
    whole, rest = divmod(count, DISTINCT)
    prices = [float(price(number)) for number in range(DISTINCT)]
    return whole * sum(prices) + sum(prices[:rest])


def frame(number: int, exchange: str | None = None) -> bytes:
    """Return an unmasked text frame with this tick of the first pair, in the documented format."""
    return text_frame(
        f'{{"results":"streaming","resultData":{{"pair":"{pair(0)}","date":"{_DATE}","time":"{_time(number)}",'
        f'"exchange":"{exchange or _exchange(number)}","price":"{price(number)}"}}}}'
    )


def flat_frame(number: int, exchange: str | None = None, of: str = "") -> bytes:
    """Return an unmasked text frame with this tick of a pair, by default the first, as the second wire sends it."""
    moment = f"{_DATE}T{_time(number)}"
    return text_frame(
        f'{{"pair":"{of or pair(0)}","unixDate":{int(datetime.fromisoformat(moment).timestamp())},"UTCDate":"{moment}",'
        f'"exchange":"{exchange or _exchange(number)}","price":"{price(number)}"}}'
    )


def text_frame(text: str) -> bytes:
    """Return an unmasked text frame."""
    payload = text.encode()
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    return struct.pack("!BBH", 0x81, 126, len(payload)) + payload


def find_error(tick: dict[str, Any], number: int, stamped: bool = False) -> str | None:
    """Return what is wrong with a received tick, or None if all eight fields are correct."""
    timestamp = datetime.fromisoformat(f"{_DATE}T{_time(number)}")
    wrong = [
        name
        for name, correct in {
            "the set of fields": tick.keys() == FIELDS,
            "pair": tick["pair"][0] == "C" and tick["pair"][5:] == ":USD",
            "date": tick["date"] == _DATE,
            "time": tick["time"] == _time(number),
            "exchange": len(tick["exchange"]) == STAMP_DIGITS if stamped else tick["exchange"] == _exchange(number),
            "price": tick["price"] == float(price(number)),
            "timestamp": tick["timestamp"] == timestamp and tick["timestamp"].utcoffset() == UTC.utcoffset(None),
            "received_ns": type(tick["received_ns"]) is int,
            "backfilled": tick["backfilled"] is False,
        }.items()
        if not correct
    ]
    return f"wrong {', '.join(wrong)} in tick {number}: {tick}" if wrong else None


def _time(number: int) -> str:
    minutes, milliseconds = divmod(number % DISTINCT * 37, 60_000)
    seconds, milliseconds = divmod(milliseconds, 1_000)
    return f"15:{minutes:02}:{seconds:02}.{milliseconds:03}Z"


def _exchange(number: int) -> str:
    return _EXCHANGES[number % DISTINCT % len(_EXCHANGES)]
