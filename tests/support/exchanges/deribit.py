"""Deribit: tickers of options at `www.deribit.com/ws/api/v2`. There are no trades."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from .exchange import parsed
from .venue import Answer, Connection, Venue

UNDERLYINGS = {"BTC": 64_000.0, "ETH": 3_500.0}


class Deribit(Venue):
    """Deribit.

    Attributes:
        instruments (dict[str, dict]): The listed instruments as `get_instruments` describes them, by name.
        tickers (dict[str, dict]): The newest ticker of each instrument.
    """

    name = "DERIBIT"
    path = "/ws/api/v2"

    def __init__(self, currencies: Iterable[str] = tuple(UNDERLYINGS)) -> None:
        super().__init__()
        self.instruments = {each["instrument_name"]: each for each in _instruments(currencies)}
        self.tickers: dict[str, dict[str, Any]] = {}

    def on_text(self, connection: Connection, text: str) -> None:
        request = parsed(text)
        method, params = str(request.get("method")).removeprefix("public/"), request.get("params", {})
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
        if method == "subscribe":
            channels = [each for each in params.get("channels", ()) if self._instrument(each) is not None]
            connection.subscriptions.update(channels)
            connection.send({**answer, "result": channels})
            for each in channels:
                # The newest ticker comes at once.
                name = self._instrument(each)
                if name in self.tickers:
                    connection.send(_notification(each, self.tickers[name]))
        elif method == "set_heartbeat":
            if params.get("interval", 0) < 10:
                reason = {"reason": "must be more than or equal to 10", "param": "interval"}
                connection.send({**answer, "error": {"code": -32602, "message": "Invalid params", "data": reason}})
            else:
                connection.subscriptions.add("heartbeat")
                connection.send({**answer, "result": "ok"})
        elif method == "test":
            connection.send({**answer, "result": {"version": "1.2.26"}})
        elif method == "get_instruments":
            connection.send({**answer, "result": self._listed(params)})
        else:
            connection.send({**answer, "error": {"code": -32601, "message": "Method not found"}})

    def beat(self, connection: Connection) -> None:
        if "heartbeat" in connection.subscriptions:
            beat: dict[str, Any] = {"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}}
            connection.send(beat)

    def make(self, *names: str, **changes: Any) -> list[dict[str, Any]]:
        """Make a ticker of each named instrument, or of all, and send it. Returns `params.data` of each.

        Args:
            names (str): Instruments such as "BTC-25DEC26-64000-C".
            changes (Any): Values to set in the tickers, such as `mark_price=0.05`.
        """
        made = []
        for name in names or self.instruments:
            ticker = {**_ticker(self.instruments[name]), **changes}
            self.tickers[name] = ticker
            made.append(ticker)
            channel = f"ticker.{name}.100ms"
            for connection in self.connections:
                if channel in connection.subscriptions:
                    connection.send(_notification(channel, ticker))
        self.changed()
        return made

    def answers(self) -> Mapping[str, Answer]:
        return {"/api/v2/public/get_instruments": self._answer, "/api/v2/public/test": self._test}

    def _answer(self, query: Mapping[str, str]) -> Any:
        now = time.time_ns() // 1_000
        times = {"usIn": now, "usOut": now + 200, "usDiff": 200, "testnet": False}
        return {"jsonrpc": "2.0", "result": self._listed(query), **times}

    def _test(self, query: Mapping[str, str]) -> Any:
        return {"jsonrpc": "2.0", "result": {"version": "1.2.26"}, "testnet": False}

    def _listed(self, query: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        currency, kind = query.get("currency"), query.get("kind")
        return [
            each
            for each in self.instruments.values()
            if currency in ("any", each["base_currency"]) and kind in (None, "any", each["kind"])
        ]

    def _instrument(self, channel: str) -> str | None:
        """The instrument of a channel without a login. Unknown channels are left out of the answer."""
        kind, _, rest = channel.partition(".")
        name, _, interval = rest.rpartition(".")
        return name if kind == "ticker" and interval in ("100ms", "agg2") and name in self.instruments else None


def _notification(channel: str, ticker: Mapping[str, Any]) -> str:
    return json.dumps(
        {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": ticker}},
        separators=(",", ":"),
    )


def _expiries() -> list[datetime]:
    """Two Fridays at 08:00 UTC, in about one and three months."""
    today = datetime.now(UTC).replace(hour=8, minute=0, second=0, microsecond=0)
    friday = today + timedelta(days=(4 - today.weekday()) % 7)
    return [friday + timedelta(weeks=weeks) for weeks in (4, 13)]


def _instruments(currencies: Iterable[str]) -> Iterable[dict[str, Any]]:
    for currency in currencies:
        common = {
            "base_currency": currency,
            "quote_currency": currency,
            "counter_currency": "USD",
            "settlement_currency": currency,
            "instrument_type": "reversed",
            "is_active": True,
            "tick_size": 0.0001,
            "contract_size": 1.0,
        }
        for expiry in _expiries():
            day = f"{expiry.day}{expiry:%b%y}".upper()
            stamp = int(expiry.timestamp() * 1_000)
            name = f"{currency}-{day}"
            future = {**common, "kind": "future", "expiration_timestamp": stamp, "quote_currency": "USD"}
            yield {**future, "instrument_name": name, "future_type": "reversed"}
            for strike in (UNDERLYINGS[currency] * 0.75, UNDERLYINGS[currency], UNDERLYINGS[currency] * 1.25):
                for letter, kind in (("C", "call"), ("P", "put")):
                    option = {**common, "kind": "option", "option_type": kind, "strike": strike}
                    yield {
                        **option,
                        "expiration_timestamp": stamp,
                        "instrument_name": f"{name}-{strike:.0f}-{letter}",
                    }
        perpetual = {**common, "kind": "future", "settlement_period": "perpetual", "quote_currency": "USD"}
        # The end of the year 2999.
        yield {**perpetual, "instrument_name": f"{currency}-PERPETUAL", "expiration_timestamp": 32503708800000}


def _ticker(instrument: Mapping[str, Any]) -> dict[str, Any]:
    """A ticker with the members of the recorded ones. A future has no Greeks."""
    price = UNDERLYINGS[instrument["base_currency"]]
    ticker: dict[str, Any] = {
        "timestamp": time.time_ns() // 1_000_000,
        "stats": {"volume": 869.0, "price_change": None, "low": 0.0015, "high": 0.0025},
        "state": "open",
        "settlement_price": 0.24,
        "open_interest": 12685.0,
        "min_price": 0.0001,
        "max_price": 0.025,
        "mark_price": 0.001972,
        "last_price": 0.002,
        "instrument_name": instrument["instrument_name"],
        "index_price": price,
        "estimated_delivery_price": price,
        "best_bid_price": 0.0015,
        "best_bid_amount": 4714.0,
        "best_ask_price": 0.0025,
        "best_ask_amount": 873.0,
    }
    if instrument["kind"] == "future":
        return {**ticker, "mark_price": price + 12.5, "funding_8h": 0.00002, "current_funding": 0.0}
    name = instrument["instrument_name"]
    return {
        **ticker,
        "underlying_price": price + 12.5,
        "underlying_index": name[: name.rindex("-", 0, name.rindex("-"))],
        "mark_iv": 120.74,
        "interest_rate": 0.0,
        "greeks": {"vega": 0.20072, "theta": -1.64029, "rho": 0.01188, "gamma": 0.0002, "delta": 0.03127},
        "bid_iv": 115.62,
        "ask_iv": 125.63,
    }
