"""`Adapter`: what differs from exchange to exchange. docs/adding-an-exchange.md explains how to write one."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import attrs

from ..protocol import to_json as to_json
from ..ticks import exact_time

#: Raised by an adapter that gets something unexpected.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)

#: No exponent, no sign, and no more digits than any price has.
_PRICE = re.compile(r"\d{1,20}(?:\.\d{1,20})?", re.ASCII)
_WHOLE = re.compile(r"\d{1,19}", re.ASCII)
_LARGEST = 2**63 - 1
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d(?:\.\d{1,9})?Z)", re.ASCII)
#: Seconds since 1970: the first bitcoin, and the year 2100.
_EARLIEST, _LATEST = 1_230_940_800, 4_102_444_800
#: Assets that have another name on an exchange.
_ASSETS = {"XBT": "BTC", "XDG": "DOGE"}


class Trade(NamedTuple):
    """One trade, or several with consecutive IDs that the exchange reports as one. Trades sort by ID."""

    first: int
    last: int
    price: str
    date: str
    time: str

    @property
    def nanoseconds(self) -> int:
        """The trade's time since 1970."""
        seconds, fraction = exact_time(self.date, self.time)
        return seconds * 10**9 + int(fraction[:9].ljust(9, "0"))


def make_trade(number: object, price: object, moment: tuple[str, str], count: object = 1) -> Trade:
    """Validate a trade. `number` is the last of `count` IDs. Raises one of `MALFORMED`."""
    last = whole(number)
    first = last if count == 1 else last - whole(count) + 1
    text = str(price) if type(price) is int else price
    if not isinstance(text, str) or not _PRICE.fullmatch(text):
        raise ValueError(f"not a price: {_shown(text)}")
    if not 0 <= first <= last:
        raise ValueError(f"{count} trades can't end with ID {last}")
    return Trade(first, last, text, *moment)


def whole(value: object) -> int:
    """Read a whole number, 0 or more, that may be text."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(f"not a whole number: {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """A value for an error message. Nested ones may be huge."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


def unix_time(value: object, digits: int) -> tuple[str, str]:
    """Read a number of seconds since 1970, times `10**digits`. Returns the wire's date and time."""
    seconds, fraction = divmod(whole(value), 10**digits)
    day, clock = _date_and_clock(seconds)
    return day, f"{clock}.{fraction:0{digits}}Z" if digits else f"{clock}Z"


def iso_time(value: str) -> tuple[str, str]:
    """Read `2026-11-29T08:00:00.123456Z`. Returns the wire's date and time."""
    found = _ISO.fullmatch(value)
    if not found:
        raise ValueError(f"not a time: {value[:40]!r}")
    day, time = found.groups()
    _date_and_clock(exact_time(day, time)[0])
    return day, time


@lru_cache(maxsize=1_024)
def _date_and_clock(seconds: int) -> tuple[str, str]:
    if not _EARLIEST <= seconds < _LATEST:
        raise ValueError(f"not a time of a trade: {seconds} seconds since 1970")
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.date().isoformat(), moment.time().isoformat()


def join_pair(base: str, quote: str) -> str:
    """Return the pair `BASE:QUOTE` of two assets in the exchange's spelling."""
    base, quote = base.upper(), quote.upper()
    return f"{_ASSETS.get(base, base)}:{_ASSETS.get(quote, quote)}"


@attrs.define(eq=False)
class Gap:
    """A range of IDs in which trades may be missing.

    Attributes:
        low: The first ID to ask for. It rises as answers arrive.
        high: The last one; None until a trade after the gap is known.
        after: The last trade before the gap.
        began: When trades stopped arriving, on the event loop's clock.
        start: The first ID of the whole gap.
        late: Whether later trades have been sent already.
        answered: Whether the exchange has answered at least once.
    """

    low: int
    high: int | None
    after: Trade
    began: float
    start: int = attrs.field(init=False)
    late: bool = attrs.field(default=False, init=False)
    answered: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.start = self.low


class Page(NamedTuple):
    """What one REST request returned: the number of rows, and the trades with the lowest and the highest ID."""

    rows: int
    oldest: Trade
    newest: Trade


class Adapter(ABC):
    """One exchange. The methods may raise any of `MALFORMED`; the message is then rejected.

    Attributes:
        name: As in ticks.
        websocket: The URL of the trade feed.
        rest: The base URL of the REST requests.
        consecutive: Whether a pair's IDs have no holes.
        oldest_first: Whether each further page of a REST request has newer trades.
        rest_interval: The least number of seconds between two REST requests.
        ping: What to send every few seconds. Needed where a quiet pair's feed would be silent.
        batch: The most symbols in one subscription.
        relist_seconds: How often to look for new symbols; None for never.
        reach: How many seconds back REST requests reach, if IDs can't tell what is missing.
    """

    name: ClassVar[str]
    websocket: ClassVar[str]
    rest: ClassVar[str]
    consecutive: ClassVar[bool] = True
    oldest_first: ClassVar[bool] = False
    rest_interval: ClassVar[float] = 0.2
    ping: ClassVar[str | None] = None
    batch: ClassVar[int] = 100
    relist_seconds: ClassVar[float | None] = None
    reach: ClassVar[float] = math.inf

    def __init__(self, base_url: str | None = None) -> None:
        self.websocket_url, self.rest_url = self.websocket, self.rest
        if base_url is not None:
            self.rest_url = base_url.rstrip("/")
            self.websocket_url = f"ws{self.rest_url.removeprefix('http')}{urlsplit(self.websocket).path}"

    @abstractmethod
    def listing_paths(self) -> Sequence[str]:
        """The REST requests for all symbols."""

    @abstractmethod
    def symbols(self, body: Any) -> Mapping[str, str]:
        """The listed pairs, and the exchange's symbol for each, in the answer to a listing request."""

    @abstractmethod
    def subscription(self, symbols: Sequence[str]) -> object:
        """The message that subscribes to at most `batch` symbols."""

    @abstractmethod
    def rows(self, message: Any) -> Iterable[tuple[str, Any]]:
        """The trades in a message of the feed, each with its symbol. Nothing if it is another message."""

    def trade(self, row: Any) -> Trade:
        """Read one of `rows`."""
        raise NotImplementedError

    def is_snapshot(self, message: Any) -> bool:
        """Whether a message repeats old trades, because a subscription began."""
        return False

    def history_path(self, symbol: str, gap: Gap, page: Page | None, seconds: float) -> str | None:
        """The REST request for trades in a gap that began `seconds` ago.

        `page` is what the request before returned, or None at first. Returns None if no further page is needed.
        """
        return None

    def history_rows(self, body: Any) -> Sequence[Any]:
        """The trades in the answer to a REST request, in any order."""
        return list(body)

    def history_trade(self, row: Any) -> Trade:
        """Read one of `history_rows`."""
        return self.trade(row)

    def problem(self, message: Any) -> str | None:
        """Why a message means that the feed can't continue on this connection; None if it doesn't."""
        is_error = message.get("event") in ("error", "bts:error") or message.get("type") == "error"
        refused = is_error or message.get("success") is False or message.get("error")
        return "refused a subscription" if refused else None


def wants_newer(page: Page, gap: Gap, size: int) -> bool:
    """Whether a gap's next page, with newer trades, is needed. Pages hold at most `size` trades."""
    return page.rows >= size and (gap.high is None or page.newest.last < gap.high)


def wants_older(page: Page, gap: Gap, size: int) -> bool:
    """Whether a gap's next page, with older trades, is needed. Pages hold at most `size` trades."""
    return page.rows >= size and page.oldest.first > gap.low
