"""The functions: a call as it was sent, checked, and answered from the tick store. No socket, clock or thread in it.

The sources of what is spoken (docs/protocol.md): S is FinX's first description, D was documented later, O is our own
choice.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from ..config.symbols import Pair
from ..errors import ConfigurationError
from .protocol import KEEP_ALIVE, error_text, of_a_key
from .store import TickStore
from .ticks import Moment, midnight, moment

#: The most ticks in one answer. Source: D; that they are the first ones is O.
HISTORY_LIMIT = 1_000
#: Source: D.
AUTHENTICATED = '{"isAuth":true}'

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_SHOWN = re.compile(r"[A-Za-z0-9:_.\-]{1,40}")
_TIME = re.compile(r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?", re.ASCII)
#: Of our own, so that a seed set by the user of this process is left alone.
_CHANCE = random.Random()
_NO_KEY = "APIKey is {}; each call carries the API key"


class CallError(Exception):
    """A call that cannot be done. The text goes to the client, and never holds a key."""


@attrs.frozen
class Call:
    """A call whose key was accepted. The request holds the key, and is not shown."""

    name: str
    request: Mapping[str, Any] = attrs.field(repr=False)
    _secrets: tuple[str, ...] = attrs.field(repr=False)

    def text(self, name: str) -> str:
        """An argument that has to be there. Raises `CallError`."""
        if name not in self.request:
            raise CallError(f"{self.name}: {name} is missing")
        value = self.request[name]
        if not isinstance(value, str) or not value:
            raise CallError(f"{self.name}: {name} is {'empty' if value == '' else 'no text'}")
        return value

    def wrong(self, name: str, why: str) -> CallError:
        """The error for an argument that is wrong. It shows the value only if that can't be a key."""
        shown = _shown(self.request.get(name), _SHOWN, self._secrets)
        return CallError(f"{self.name}: {name}{f' {shown}' if shown else ''} {why}")


#: What a call asks of the store: it is run in the store's thread. Raises `CallError`.
Question = Callable[[TickStore], str]
#: Reads a call's arguments. Answers at once with a text, or with what is to be asked of the store. Raises `CallError`.
Function = Callable[[Call, frozenset[str]], str | Question]


def read_call(message: str | bytes, key: str, accepts: Callable[[str], bool], *, strict: bool = True) -> Call | None:
    """Read a client's message. None: there is nothing to be said to it. Raises `CallError`.

    `key` is the one in the connection's path: no error ever repeats it. On a stream (not `strict`) a JSON object
    without `functionName` is ignored, since the vendor's own client sends such objects and takes the next tick for
    the answer.
    """
    try:
        request = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        raise CallError("not JSON") from None
    if not isinstance(request, dict):
        raise CallError("a message is a text frame with a JSON object")
    if "functionName" not in request:
        if strict:
            raise CallError("functionName is missing")
        return None
    if "APIKey" not in request:
        raise CallError(_NO_KEY.format("missing"))
    offered = request["APIKey"]
    if not isinstance(offered, str) or not accepts(offered):
        raise CallError(_NO_KEY.format("not accepted"))
    secrets = (key, offered)
    name = request["functionName"]
    if not isinstance(name, str) or name not in FUNCTIONS:
        if isinstance(name, str) and "greeks" in name.casefold():
            raise CallError("Greeks history is scheduled for a future release")
        shown = _shown(name, _NAME, secrets) or "of that name"
        raise CallError(f"function {shown} is not available; there are {', '.join(FUNCTIONS)}")
    return Call(name, request, secrets)


def prepare(call: Call, played: frozenset[str]) -> str | Question:
    """The answer of a call that needs no store, or the question for the store. Raises `CallError`.

    `played` are the pairs that the market source can play; those in the store are known as well.
    """
    return FUNCTIONS[call.name](call, played)


def numbered(ticks: Sequence[str], chance: random.Random) -> str:
    """The answer of tick history: JSON objects under the numbers from 0, in no order. Source: D."""
    shuffled = chance.sample(ticks, len(ticks))
    return "{" + ",".join(f'"{number}":{tick}' for number, tick in enumerate(shuffled)) + "}"


def _tick_history(call: Call, played: frozenset[str]) -> Question:
    pair, exchange = _pair(call), _exchange(call)
    day, after = _moment(call)

    def ask(store: TickStore) -> str:
        _check_known(call, pair, played, store)
        return numbered(store.history(pair, day, after, exchange, HISTORY_LIMIT), _CHANCE)

    return ask


def _tick_snap(call: Call, played: frozenset[str]) -> Question:
    pair, exchange = _pair(call), _exchange(call)
    _, at = _moment(call)

    def ask(store: TickStore) -> str:
        _check_known(call, pair, played, store)
        found = store.snap(pair, at, exchange)
        if found is None:
            raise CallError(f"{call.name}: there is no tick at or before that time")
        return found

    return ask


def _reference_data(call: Call, played: frozenset[str]) -> Question:
    security = call.text("securityId")

    def ask(store: TickStore) -> str:
        known = sorted(played | store.pairs)
        pairs = [pair for pair in known if security == pair or security in pair.split(":")]
        if not pairs:
            raise call.wrong("securityId", "is not known here; expected an asset or a pair, as in BTC or BTC:USDC")
        first, last = store.ends(pairs)
        facts = {
            "securityId": security,
            "kind": "pair" if security in pairs else "asset",
            "pairs": pairs,
            "exchanges": store.exchanges(pairs),
            "firstTick": None if first is None else json.loads(first),
            "lastTick": None if last is None else json.loads(last),
        }
        return json.dumps(facts, separators=(",", ":"))

    return ask


#: What is answered, by name. Source: D.
FUNCTIONS: Mapping[str, Function] = {
    "authenticate": lambda call, played: AUTHENTICATED,
    "tickSnap": _tick_snap,
    "tickHistory": _tick_history,
    "referenceData": _reference_data,
    "keepAlive": lambda call, played: KEEP_ALIVE,
}


def refusal(error: CallError) -> str:
    """The message that reports an error. Source: O."""
    return error_text(str(error))


def _pair(call: Call) -> str:
    text = call.text("pair")
    try:
        return str(Pair.parse(text))
    except ConfigurationError:
        raise call.wrong("pair", "is malformed; expected BASE:QUOTE, as in BTC:USDC") from None


def _exchange(call: Call) -> str | None:
    """The network whose own series is asked for; None is all of them. Source: O."""
    return None if call.request.get("exchange") is None else call.text("exchange")


def _moment(call: Call) -> tuple[str, Moment]:
    """The day, and the time on it."""
    day, time = call.text("date"), call.text("time")
    try:
        midnight(day)
    except ValueError:
        raise call.wrong("date", "is malformed; expected YYYY-MM-DD, a day that exists") from None
    try:
        if not _TIME.fullmatch(time):
            raise ValueError
        return day, moment(day, f"{time.removesuffix('Z')}:00" if time.count(":") == 1 else time)
    except ValueError:
        raise call.wrong(
            "time", "is malformed; expected HH:MM, HH:MM:SS or HH:MM:SS.fff, UTC, with a Z or not"
        ) from None


def _check_known(call: Call, pair: str, played: frozenset[str], store: TickStore) -> None:
    if pair not in played and pair not in store.pairs:
        raise call.wrong("pair", "is not known here")


def _shown(value: object, form: re.Pattern[str], secrets: Sequence[str]) -> str:
    """A value for an error: only if it looks like what was asked for and holds nothing of a key."""
    if not isinstance(value, str) or not form.fullmatch(value) or of_a_key(value, *secrets):
        return ""
    return repr(value)
