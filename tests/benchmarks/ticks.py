"""The ticks that all benchmarks send, and a check of received ones.

A backlog has `DISTINCT` ticks in each second of market time: four with the same time every 4 ms. Paced ticks have the
time at which they are due. Their prices are stamps: when they were sent.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any

#: After this number, the ticks repeat one second later.
DISTINCT = 1_000
#: How many ticks of a backlog have the same time.
_CLUMP = 4
MOST_PAIRS = 1_000
FIELDS = frozenset({"pair", "date", "time", "exchange", "price", "timestamp", "received_ns", "backfilled"})
#: Added to a stamp, so that all have the same length. In nanoseconds.
_STAMP_BASE = 10**15
_START = datetime(2022, 7, 2, 15, tzinfo=UTC)
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


def milliseconds(number: int) -> int:
    """Return the time of a tick in a backlog, in milliseconds since the first one."""
    return number // _CLUMP * _CLUMP


def second_text(second: int) -> str:
    """Return what a message of the documented format contains from its date to the point in its time."""
    return f'{_START + timedelta(seconds=second):%Y-%m-%d","time":"%H:%M:%S}.'


def flat_second_text(second: int) -> str:
    """Return what a message of the second wire contains from its Unix time to the point in its date."""
    moment = _START + timedelta(seconds=second)
    return f'{moment.timestamp():.0f},"UTCDate":"{moment:%Y-%m-%dT%H:%M:%S}.'


def stamp(now: int) -> bytes:
    """Return a price that says when a tick was sent: the nanoseconds of the monotonic clock, as microseconds."""
    return b"%d.%03d" % divmod(now + _STAMP_BASE, 1_000)


def read_stamp(price: float) -> int:
    """Return the nanoseconds of a stamp. A float is precise enough for that."""
    return round(price * 1e3) - _STAMP_BASE


def frame(number: int, price_text: str = "") -> bytes:
    """Return an unmasked text frame with this tick of the first pair, in the documented format."""
    second, thousandths = divmod(milliseconds(number), 1_000)
    return text_frame(
        f'{{"results":"streaming","resultData":{{"pair":"{pair(0)}","date":"{second_text(second)}{thousandths:03}Z",'
        f'"exchange":"{_exchange(number)}","price":"{price_text or price(number)}"}}}}'
    )


def flat_frame(number: int, price_text: str = "", of: str = "") -> bytes:
    """Return an unmasked text frame with this tick of a pair, by default the first, as the second wire sends it."""
    second, thousandths = divmod(milliseconds(number), 1_000)
    return text_frame(
        f'{{"pair":"{of or pair(0)}","unixDate":{flat_second_text(second)}{thousandths:03}Z",'
        f'"exchange":"{_exchange(number)}","price":"{price_text or price(number)}"}}'
    )


def text_frame(text: str) -> bytes:
    """Return an unmasked text frame."""
    payload = text.encode()
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    return struct.pack("!BBH", 0x81, 126, len(payload)) + payload


def find_error(tick: dict[str, Any], number: int, stamped: bool = False) -> str | None:
    """Return what is wrong with a received tick, or None if all eight fields are correct.

    Args:
        tick: What the client got.
        number: Its number, from 0.
        stamped: Whether it is a paced tick. Then its time, exchange and price can be any.
    """
    timestamp = tick["timestamp"] if stamped else _START + timedelta(milliseconds=milliseconds(number))
    wrong = [
        name
        for name, correct in {
            "the set of fields": tick.keys() == FIELDS,
            "pair": tick["pair"][0] == "C" and tick["pair"][5:] == ":USD",
            "date": tick["date"] == f"{timestamp:%Y-%m-%d}",
            "time": tick["time"] == f"{timestamp:%H:%M:%S}.{timestamp.microsecond // 1_000:03}Z",
            "exchange": tick["exchange"] in (_EXCHANGES if stamped else (_exchange(number),)),
            "price": type(tick["price"]) is float and (stamped or tick["price"] == float(price(number))),
            "timestamp": tick["timestamp"] == timestamp and tick["timestamp"].utcoffset() == UTC.utcoffset(None),
            "received_ns": type(tick["received_ns"]) is int,
            "backfilled": tick["backfilled"] is False,
        }.items()
        if not correct
    ]
    return f"wrong {', '.join(wrong)} in tick {number}: {tick}" if wrong else None


def _exchange(number: int) -> str:
    return _EXCHANGES[number % DISTINCT % len(_EXCHANGES)]
