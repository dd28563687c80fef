"""The values that travel from a stream to your callbacks: ticks, notices, gaps and states."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypedDict

import attrs

from .errors import FinxStreamerError

#: A limit that is never reached, as an int.
NO_BOUND = 1 << 30
#: A deadline that never comes.
NEVER = float("inf")
#: What a tick has while it waits to be recorded: the text of its price if history sent it, otherwise its message.
SENT = "sent"


class Tick(TypedDict):
    """One trade, as a plain dict::

        from finx_streamer import StreamListener

        listener = StreamListener("BTC:USDC", endpoint="demo")
        for tick in listener:
            print(tick["timestamp"], tick["exchange"], tick["price"])
            break

    Attributes:
        pair (str): E.g. "BTC:USDC".
        date (str): UTC date of the trade, as sent: "2022-07-02".
        time (str): UTC time of the trade, as sent: "15:30:55.817Z". The number of fraction digits varies.
        exchange (str): E.g. "BINANCE".
        price (Any): What `parse_price` returned for the decimal string that was sent. A float by default.
        timestamp (datetime): `date` and `time` in UTC, truncated to microseconds.
        received_ns (int): When this machine received the tick, in nanoseconds since 1970 (`time.time_ns()`).
        backfilled (bool): True if the tick was fetched from history.

    Source: S for the first five fields.
    """

    pair: str
    date: str
    time: str
    exchange: str
    price: Any
    timestamp: datetime
    received_ns: int
    backfilled: bool


def tick_copier(pair: str, date: str, received_ns: int, backfilled: bool) -> Callable[[], Any]:
    """Return a function that makes ticks whose other fields are still to be set.

    Copying a tick takes a third of the time of a new dict.
    """
    blank = {
        "pair": pair,
        "date": date,
        "time": "",
        "exchange": "",
        "price": None,
        "timestamp": None,
        "received_ns": received_ns,
        "backfilled": backfilled,
    }
    return blank.copy


class Greeks(TypedDict):
    """The ticker of one contract of Deribit, as a plain dict: Greeks, volatilities and prices.

    Prices of options are in coins of the underlying, prices of futures and all Greeks in dollars. A value that FinX
    doesn't know is None. Futures and perpetuals have no Greeks and no volatilities.

    Attributes:
        symbol (str): As you subscribed to it: an option month such as "BTCN2202207", or the instrument itself.
        instrument (str): E.g. "BTC-26AUG22-20000-C".
        exchange (str): "DERIBIT".
        underlying (str): E.g. "BTC".
        kind (str): "call", "put", "future" or "perpetual".
        strike (float | None): In dollars. None for futures and perpetuals.
        expiry (datetime | None): Aware, in UTC. None for perpetuals.
        timestamp (datetime): Time of the values, aware and in UTC.
        received_ns (int): When this machine received them, in nanoseconds since 1970 (`time.time_ns()`).
        delta (float | None): Change of the option's value in dollars per $1 of the underlying.
        gamma (float | None): Change of the delta per $1 of the underlying.
        vega (float | None): Change of the value in dollars per vol point (0.01).
        theta (float | None): Change of the value in dollars per day.
        rho (float | None): Change of the value in dollars per 1 % of interest.
        mark_iv (float | None): Implied volatility of the mark price, in percent.
        bid_iv (float | None): Implied volatility of the best bid, in percent.
        ask_iv (float | None): Implied volatility of the best ask, in percent.
        mark_price (float | None): The price that Deribit considers fair.
        underlying_price (float | None): The forward of this expiry, in dollars.
        index_price (float | None): The spot index, in dollars.
        best_bid_price (float | None): The best bid.
        best_ask_price (float | None): The best ask.
        raw (dict): All values as they were sent.

    Source: D for the values, O for this form.
    """

    symbol: str
    instrument: str
    exchange: str
    underlying: str
    kind: str
    strike: float | None
    expiry: datetime | None
    timestamp: datetime
    received_ns: int
    delta: float | None
    gamma: float | None
    vega: float | None
    theta: float | None
    rho: float | None
    mark_iv: float | None
    bid_iv: float | None
    ask_iv: float | None
    mark_price: float | None
    underlying_price: float | None
    index_price: float | None
    best_bid_price: float | None
    best_ask_price: float | None
    raw: dict[str, Any]


@attrs.frozen
class Notice:
    """A message that is neither a tick nor an error, such as `{"keepAlive": true}`::

        from finx_streamer import StreamListener

        listener = StreamListener("BTC:USDC", endpoint="demo", keep_alive=0.2)


        @listener.on_notice
        def show(notice):
            print(notice.symbol, notice.message)


        with listener:
            listener.join(timeout=1)

    Attributes:
        symbol (str | None): The stream that sent it. None if a connection of several streams did.
        message (dict): The decoded JSON object.
        received_ns (int): When this machine received it, in nanoseconds since 1970 (`time.time_ns()`).

    Source: O.
    """

    symbol: str | None
    message: dict[str, Any]
    received_ns: int


@attrs.frozen
class Gap:
    """A stream's connection was lost, so ticks may have been missed::

        from finx_streamer import StreamListener

        listener = StreamListener("BTC:USDC", endpoint="demo")


        @listener.on_gap
        def show(gap):
            print(gap.symbol, gap.since, gap.until, gap.ticks, "fetched" if gap.filled else "NOT filled")


        with listener:
            listener.join(timeout=1)

    Attributes:
        symbol (str): The stream.
        since (datetime): Timestamp (UTC) of the last tick before the gap.
        until (datetime): Timestamp (UTC) of the first tick after the gap. Without one, of the last missed tick.
        filled (bool): True if all missed ticks were delivered.
        ticks (int): Number of missed ticks that were delivered.
    """

    symbol: str
    since: datetime
    until: datetime
    filled: bool
    ticks: int


class State(enum.StrEnum):
    """The state of a stream or of a listener::

        from finx_streamer import State, StreamListener

        with StreamListener("BTC:USDC", endpoint="demo") as listener:
            print(listener.state == State.CONNECTING, listener.state == "connecting")

    A state equals its lower-case name. STOPPED and FAILED are final.
    """

    IDLE = "idle"
    CONNECTING = "connecting"
    STREAMING = "streaming"
    RECONNECTING = "reconnecting"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the state is final: STOPPED or FAILED."""
        return self in (State.STOPPED, State.FAILED)


@attrs.define(eq=False)
class TimePassed:
    """Bars may be due. For the callbacks of `on_bar`, behind the ticks that were received before."""

    now: datetime
    #: Whether the listener ends.
    at_end: bool = False
    #: Set when the callbacks have run.
    handled: bool = False


@attrs.frozen
class Event:
    """Anything but a tick that goes to a callback. `symbol` names the stream; None means the listener."""

    payload: FinxStreamerError | Notice | Gap | State | Greeks | TimePassed
    symbol: str | None = None

    @property
    def greeks(self) -> Greeks | None:
        """The payload, if it is Greeks."""
        payload = self.payload
        return payload if isinstance(payload, dict) else None
