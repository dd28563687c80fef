"""Real messages, recorded from exchanges, next to the checkout. They aren't part of the project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .exchange import Trade


class Recording(NamedTuple):
    """Recorded messages of one pair on one exchange, in order, and the trades that they announce."""

    exchange: str
    pair: str
    lines: list[str]
    trades: list[Trade]


def recordings(folder: Path) -> Iterator[Recording]:
    """Read all recordings of the feeds that the loopback exchanges have."""
    found: dict[tuple[str, str], Recording] = {}
    for name in ("binance", "coinbase", "kraken_v2_captured", "okx", "ccxt_2026_okx", "ccxt_2026_bybit", "bitstamp"):
        exchange = name.removeprefix("ccxt_2026_").partition("_")[0].upper()
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            pair, trades = _READERS[exchange](json.loads(line, parse_float=str))
            if pair is not None:
                # The two recordings of OKX are years apart.
                key = name, pair
                recording = found.setdefault(key, Recording(exchange, pair, [], []))
                recording.lines.append(line)
                recording.trades.extend(trades)
    # Some pairs had only an old trade, which came after the subscription.
    yield from (recording for recording in found.values() if recording.trades)


def _iso(text: str) -> int:
    moment = datetime.fromisoformat(text).astimezone(UTC)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1_000


def _one(trade_id: int, time_ns: int, price: str) -> list[Trade]:
    return [Trade(trade_id, time_ns, price, trade_id)]


def _binance(message: Any) -> tuple[str | None, list[Trade]]:
    data = message["data"]
    # These two pairs were recorded.
    pair = {"NKNUSDT": "NKN:USDT", "LRCBTC": "LRC:BTC"}[data["s"]]
    return pair, _one(data["a"], data["T"] * 1_000_000, data["p"])


def _coinbase(message: Any) -> tuple[str | None, list[Trade]]:
    trades = _one(message["trade_id"], _iso(message["time"]), message["price"])
    return message["product_id"].replace("-", ":"), trades if message["type"] == "match" else []


def _kraken(message: Any) -> tuple[str | None, list[Trade]]:
    rows = message["data"]
    trades = [Trade(row["trade_id"], _iso(row["timestamp"]), row["price"], rows[-1]["trade_id"]) for row in rows]
    return rows[0]["symbol"].replace("/", ":"), trades


def _okx(message: Any) -> tuple[str | None, list[Trade]]:
    (row,) = message["data"]
    pair = row["instId"].replace("-", ":")
    last, count = int(row["tradeId"]), int(row.get("count", 1))
    ids = range(last - count + 1, last + 1)
    # Futures aren't pairs.
    return pair if pair.count(":") == 1 else None, [Trade(i, int(row["ts"]) * 1_000_000, row["px"], last) for i in ids]


def _bybit(message: Any) -> tuple[str | None, list[Trade]]:
    rows = message["data"]
    trades = [Trade(int(row["i"]), row["T"] * 1_000_000, row["p"], int(rows[-1]["i"])) for row in rows]
    return "BTC:USDT", trades


def _bitstamp(message: Any) -> tuple[str | None, list[Trade]]:
    data = message["data"]
    return "ETH:USD", _one(data["id"], int(data["microtimestamp"]) * 1_000, data["price_str"])


_READERS = {
    "BINANCE": _binance,
    "COINBASE": _coinbase,
    "KRAKEN": _kraken,
    "OKX": _okx,
    "BYBIT": _bybit,
    "BITSTAMP": _bitstamp,
}
