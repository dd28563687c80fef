"""Function calls: parse and validate a call, and answer it from the tick store. No I/O except the store's.

Subscribing to a stream by message is a call, too. Its result is a `Subscription` for the hub.

The grades S, D and O in the docstrings are explained in docs/protocol.md.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import attrs

from ..config.symbols import Pair, suggest_pair
from ..errors import ConfigurationError
from .contracts import parse_instrument
from .protocol import KEEP_ALIVE, reveals_key, to_json
from .store import TickStore
from .ticks import ExactTime, day_start, exact_time

#: The most ticks in one answer. Source: D; that these are the first ones: O.
HISTORY_LIMIT = 1_000
#: The functions that change subscriptions. Source: D, except unsubscribe: O.
SUBSCRIBING = frozenset({"getSpotRates", "getDeribitContractStream", "unsubscribe"})
#: The coins of which there are matrices. Source: D.
MATRIX_BASES = ("BTC", "ETH", "SOL", "USDC")
#: The answer to authenticate. Source: D.
AUTHENTICATED = '{"isAuth":true}'

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_QUOTABLE = re.compile(r"[A-Za-z0-9:_.$\-]{1,40}")
_POINT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d[05]", re.ASCII)
_TIME = re.compile(r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?", re.ASCII)
#: Separate from the global generator, which the user may have seeded.
_rng = random.Random()


class CallError(Exception):
    """A call that can't be answered. The text is sent to the client and never contains a key."""


@attrs.frozen
class Call:
    """A call with an accepted key. The request contains the key, so the repr omits it."""

    name: str
    request: Mapping[str, Any] = attrs.field(repr=False)
    _keys: tuple[str, ...] = attrs.field(repr=False)

    @property
    def argument(self) -> str:
        """The argument that names the symbol of a subscription: `pair` or `instrumentName`."""
        names_contract = self.name == "getDeribitContractStream" or "instrumentName" in self.request
        return "instrumentName" if names_contract and self.name != "getSpotRates" else "pair"

    @property
    def subject(self) -> dict[str, str]:
        """What errors name, so that the client knows which subscription failed. Empty if it can't be quoted."""
        if self.name not in SUBSCRIBING:
            return {}
        value = self.request.get(self.argument)
        parse = Pair.parse if self.argument == "pair" else parse_instrument
        return {self.argument: str(value)} if _quote(value, lambda text: _parses(parse, text), self._keys) else {}

    def require(self, name: str) -> str:
        """Return a required argument. Raises `CallError` if it is missing or not a non-empty string."""
        if name not in self.request:
            raise CallError(f"{self.name}: {name} is missing")
        value = self.request[name]
        if not isinstance(value, str) or not value:
            raise CallError(f"{self.name}: {name} must be a non-empty string")
        return value

    def invalid(self, name: str, problem: str) -> CallError:
        """The error for an invalid argument. It doesn't quote a value that may be a misplaced key."""
        quoted = self.quoted(name)
        return CallError(f"{self.name}: {name}{f' {quoted}' if quoted else ''} {problem}")

    def quoted(self, name: str) -> str:
        """The value of an argument in quotes. Empty if it is malformed or may be a misplaced key."""
        return _quote(self.request.get(name), _is_quotable, self._keys)


@attrs.frozen
class Subscription:
    """A change of what the connection gets.

    `answer` is sent before a begin and after an end takes effect, if any. `resume` is where to begin in the log, if the
    client says so.
    """

    symbol: str
    begins: bool
    answer: dict[str, str] | None
    resume: object = None


#: The part of a call that needs the store. Runs on the store's thread. Raises `CallError`.
Query = Callable[[TickStore], str]
Result = str | Query | Subscription
#: Takes a call, and the pairs and contracts of the source. Returns the answer, the query that finds it, or a change of
#: the connection's subscriptions. Raises `CallError`.
Handler = Callable[[Call, frozenset[str], frozenset[str]], Result]


def read_call(message: str | bytes, key: str, accepts: Callable[[str], bool], *, strict: bool = True) -> Call | None:
    """Parse a client's message. Returns `None` if it needs no answer. Raises `CallError`.

    `key` is the key in the connection's path; no error contains it. If not `strict` (on streams), a JSON object
    without `functionName` is ignored: the vendor's own client sends such objects and takes the next tick as the answer.
    """
    try:
        request = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        raise CallError("the message is not JSON; expected a JSON object") from None
    if not isinstance(request, dict):
        raise CallError("a message must be a text frame with a JSON object")
    if "functionName" not in request:
        if strict:
            raise CallError("functionName is missing")
        return None
    if "APIKey" not in request:
        raise CallError("APIKey is missing; every call must contain the API key")
    offered = request["APIKey"]
    if not isinstance(offered, str) or not accepts(offered):
        raise CallError("APIKey is not accepted; every call must contain the API key")
    keys = (key, offered)
    name = request["functionName"]
    if not isinstance(name, str) or name not in FUNCTIONS:
        if isinstance(name, str) and "greeks" in name.casefold():
            raise CallError("Greeks history is scheduled for a future release")
        quoted = _quote(name, _NAME.fullmatch, keys)
        raise CallError(f"unknown function{f' {quoted}' if quoted else ''}; expected one of {', '.join(FUNCTIONS)}")
    return Call(name, request, keys)


def prepare(call: Call, source_pairs: frozenset[str], contracts: frozenset[str] = frozenset()) -> Result:
    """Return the answer, the query that finds it in the store, or a subscription. Raises `CallError`.

    The known pairs are `source_pairs` and, except for streams, those in the store.
    """
    return FUNCTIONS[call.name](call, source_pairs, contracts)


def encode_history(ticks: Sequence[str]) -> str:
    """Encode the answer of tick history: shuffled JSON objects, numbered from 0. Source: D."""
    if len(ticks) > 1:
        begin = _rng.randrange(len(ticks))
        ticks = _shuffle(len(ticks))([*ticks[begin:], *ticks[:begin]])
    return _template(len(ticks)) % tuple(ticks)


@lru_cache(16)
def _template(size: int) -> str:
    """Return the answer with `size` ticks, with %s for each. One template is faster than to join a thousand pieces."""
    return "{" + ",".join(f'"{number}":%s' for number in range(size)) + "}"


@lru_cache(16)
def _shuffle(size: int) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """Return a function that shuffles `size` ticks, at least two. To draw an order for each answer takes longer."""
    return itemgetter(*_rng.sample(range(size), size))


def _tick_history(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Query:
    pair, exchange = _pair(call), _exchange(call)
    day, after = _day_and_time(call)

    def query(store: TickStore) -> str:
        _check_known(call, pair, source_pairs, store)
        return encode_history(store.history(pair, day, after, exchange, HISTORY_LIMIT))

    return query


def _tick_snap(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Query:
    pair, exchange = _pair(call), _exchange(call)
    _, at = _day_and_time(call)

    def query(store: TickStore) -> str:
        _check_known(call, pair, source_pairs, store)
        found = store.snap(pair, at, exchange)
        if found is None:
            raise CallError(f"{call.name}: there is no tick at or before that time")
        return found

    return query


def _reference_data(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Query:
    security = call.require("securityId")

    def query(store: TickStore) -> str:
        known = sorted(source_pairs | store.pairs)
        pairs = [pair for pair in known if security == pair or security in pair.split(":")]
        if not pairs:
            raise call.invalid("securityId", "is unknown; expected an asset or a pair, as in BTC or BTC:USDC")
        first, last = store.first_and_last(pairs)
        facts = {
            "securityId": security,
            "kind": "pair" if security in pairs else "asset",
            "pairs": pairs,
            "exchanges": store.exchanges(pairs),
            "firstTick": None if first is None else json.loads(first),
            "lastTick": None if last is None else json.loads(last),
        }
        return to_json(facts)

    return query


def _spot_rates(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Subscription:
    pair = call.require("pair")
    if pair not in source_pairs:
        pair = _pair(call)
        raise CallError(f"unknown pair{_bare(call, pair)}; expected a pair that this server plays")
    return attrs.evolve(_begin(call, pair), resume=call.request.get("resume"))


def _contract_stream(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Subscription:
    name = call.require("instrumentName")
    if name not in contracts:
        name = _instrument(call)
        expected = "one of listDeribitContracts" if contracts else "none, because this server has no options"
        raise CallError(f"unknown contract{_bare(call, name)}; expected {expected}")
    return _begin(call, name)


def _begin(call: Call, symbol: str) -> Subscription:
    # The vendor answers nothing. Only clients that ask for an answer expect one.
    return Subscription(symbol, True, {"subscribed": symbol} if "resume" in call.request else None)


def _unsubscribe(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Subscription:
    if ("pair" in call.request) == ("instrumentName" in call.request):
        raise CallError("unsubscribe: expected either pair or instrumentName")
    known, parse = (source_pairs, _pair) if call.argument == "pair" else (contracts, _instrument)
    symbol = call.require(call.argument)
    if symbol not in known:
        symbol = parse(call)
        if not call.subject:
            raise CallError(f"unsubscribe: {call.argument} is unknown")
    return Subscription(symbol, False, {"unsubscribed": symbol})


def _list_contracts(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> str:
    return to_json(sorted(contracts))


def _five_minute_matrix(call: Call, source_pairs: frozenset[str], contracts: frozenset[str]) -> Query:
    base = call.require("baseInstrument")
    if base not in MATRIX_BASES:
        raise call.invalid("baseInstrument", f"is unknown; expected one of {', '.join(MATRIX_BASES)}")
    point = _five_minute_point(call)
    return lambda store: store.matrix(base, point)


#: The functions by name. Source: D, except unsubscribe: O.
FUNCTIONS: Mapping[str, Handler] = {
    "authenticate": lambda call, source_pairs, contracts: AUTHENTICATED,
    "tickSnap": _tick_snap,
    "tickHistory": _tick_history,
    "referenceData": _reference_data,
    "keepAlive": lambda call, source_pairs, contracts: KEEP_ALIVE,
    "getSpotRates": _spot_rates,
    "getDeribitContractStream": _contract_stream,
    "unsubscribe": _unsubscribe,
    "listDeribitContracts": _list_contracts,
    "getFiveMinMatrix": _five_minute_matrix,
}


def _pair(call: Call) -> str:
    text = call.require("pair")
    try:
        return str(Pair.parse(text))
    except ConfigurationError:
        guess = suggest_pair(text) if call.quoted("pair") else None
        example = f"did you mean {guess}?" if guess else "as in BTC:USDC"
        raise call.invalid("pair", f"is malformed; expected BASE:QUOTE, {example}") from None


def _instrument(call: Call) -> str:
    try:
        return parse_instrument(call.require("instrumentName")).name
    except ConfigurationError as error:
        raise call.invalid("instrumentName", f"is {error}") from None


def _bare(call: Call, symbol: str) -> str:
    """The symbol to append to an error, or an empty string if it can't be quoted."""
    return f" {symbol}" if call.subject else ""


def _exchange(call: Call) -> str | None:
    """The exchange whose ticks to select; None: all exchanges. Source: O."""
    return None if call.request.get("exchange") is None else call.require("exchange")


def _day_and_time(call: Call) -> tuple[str, ExactTime]:
    day, time = call.require("date"), call.require("time")
    try:
        day_start(day)
    except ValueError:
        raise call.invalid("date", "is malformed; expected an existing day as YYYY-MM-DD") from None
    try:
        if not _TIME.fullmatch(time):
            raise ValueError
        return day, exact_time(day, f"{time.removesuffix('Z')}:00" if time.count(":") == 1 else time)
    except ValueError:
        raise call.invalid(
            "time", "is malformed; expected HH:MM, HH:MM:SS or HH:MM:SS.fff in UTC, with or without Z"
        ) from None


def _five_minute_point(call: Call) -> int | None:
    """The five-minute point in seconds since 1970; None for the newest tickers."""
    text = call.require("fiveMinuteDateTime")
    if text == "latest":
        return None
    try:
        if not _POINT.fullmatch(text):
            raise ValueError
        day, time = text.split("T")
        return exact_time(day, f"{time}:00")[0]
    except ValueError:
        raise call.invalid(
            "fiveMinuteDateTime",
            "is malformed; expected 'latest' or a point in UTC whose minutes are a multiple of five, as in "
            "2022-08-04T04:05",
        ) from None


def _check_known(call: Call, pair: str, source_pairs: frozenset[str], store: TickStore) -> None:
    if pair not in source_pairs and pair not in store.pairs:
        raise call.invalid("pair", "is unknown; expected a pair that is played or stored here")


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        return bool(parse(text))
    except ConfigurationError:
        return False


def _is_quotable(text: str) -> bool:
    return bool(_QUOTABLE.fullmatch(text)) or _parses(Pair.parse, text)


def _quote(value: object, allows: Callable[[str], object], keys: Sequence[str]) -> str:
    """The value in quotes for an error, or an empty string if it is malformed or may be a misplaced key."""
    if not isinstance(value, str) or not allows(value) or reveals_key(value, *keys):
        return ""
    return repr(value)
