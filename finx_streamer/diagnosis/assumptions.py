"""What this package assumes about FinX beyond its published document, checked against the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from ..config.api_key import KeySource
from ..config.endpoint import Endpoint
from ..config.symbols import Pair
from ..connection.attempt import ConnectionConfig
from ..errors import AuthenticationError, ConnectionFailed, StreamNotFound
from ..functions.history import PAGE_SIZE
from .limits import LIMIT, Deadline
from .probe import Probe
from .report import Check, Verdict, shorten

_NO_SUCH_PAIR = Pair("FINXDOCTOR", "NOSUCHPAIR")
_NO_KEY = "finx-doctor-wrong-key"
_NO_TICK = "no tick came over the first wire"
_SILENT = f"no answer within {LIMIT:g} s"

#: Whether an assumption holds, None if that can't be seen, and what was found.
Finding = tuple[bool | None, str]


@attrs.define
class Assumptions:
    """Confirms or refutes each assumption with a few requests.

    Args:
        config: A connection that works, without a symbol.
        pair: A pair that the server has.
        message: The first tick of its stream, as it was sent. None: there was none on the first wire.
        any_key: Whether the server is known to accept any key.
        own_server: Whether the server runs this package, so that its answers say nothing about FinX.
    """

    config: ConnectionConfig
    pair: Pair
    message: dict[str, Any] | None
    any_key: bool
    own_server: bool
    _deadline: Deadline = attrs.field(factory=Deadline, init=False)
    #: A tick of the second wire.
    _flat: dict[str, Any] | None = attrs.field(default=None, init=False)
    _contract: str | None = attrs.field(default=None, init=False)
    #: A page of tick history, after which time it was asked for, and the newest tick's time.
    _page: tuple[list[datetime], datetime, datetime] | None = attrs.field(default=None, init=False)

    def run(self) -> Iterator[Check]:
        """Yield one check for each assumption: OK if it is confirmed, NOTE if it is refuted, SKIPPED if not seen."""
        facts: dict[str, Callable[[], Finding]] = {
            "streams under streaming/ (S)": lambda: self._prefix("streaming"),
            "streams under streamer/ (D)": lambda: self._prefix("streamer"),
            "ticks in an envelope (S)": self._envelope,
            "ticks with date and time (S)": self._date_and_time,
            "prices are strings (S)": self._price,
            "second wire: spot rates (D)": self._spot_rates,
            "unixDate and UTCDate (D)": self._unix_date,
            "list of contracts (D)": self._contracts,
            "contract stream (D)": self._contract_stream,
            "five-minute matrix (D)": self._matrix,
            "closed after 300 s (D)": lambda: (None, "takes too long to see; keep_alive=270 avoids it anyway"),
            "unknown pair is 404 (O)": self._unknown_pair,
            "wrong key is 401 or 403 (O)": self._wrong_key,
            "authenticate (D)": lambda: self._answer({"isAuth": True}, "authenticate"),
            "keepAlive (D)": lambda: self._answer({"keepAlive": True}, "keepAlive"),
            "referenceData (D)": self._reference_data,
            "unknown function: error (O)": self._unknown_function,
            "forms of time (O)": self._forms_of_time,
            "snap: at or before (D)": self._snap,
            "page: 1,000 ticks (D)": self._page_size,
            "page: the first ones (O)": self._first_ones,
            "page: not sorted (D)": self._order,
            "page: of one UTC day (D)": self._one_day,
            "page: strictly after (O)": self._strictly_after,
        }
        for name, look in facts.items():
            # A server that has left a question unanswered gets less time for the next one.
            self._deadline = Deadline(LIMIT if self._deadline.left else 1.0)
            try:
                holds, found = look()
            except ConnectionFailed as error:
                holds, found = None, error.reason
            except OSError:
                holds, found = None, "the connection was lost"
            verdict = {True: Verdict.OK, False: Verdict.NOTE, None: Verdict.SKIPPED}[holds]
            said = {True: "confirmed", False: "refuted", None: "not seen"}[holds]
            by = " by this server, not by FinX" if self.own_server and holds is not None else ""
            yield Check(name, verdict, f"{said}{by}: {found}")

    def _open(self, config: ConnectionConfig | None = None) -> Probe:
        return Probe(config or self.config, self._deadline)

    # Streams.

    def _prefix(self, prefix: str) -> Finding:
        endpoint = Endpoint(self.config.endpoint.url, prefix)
        try:
            with self._open(attrs.evolve(self.config, endpoint=endpoint, symbol=self.pair)):
                return True, "status 101"
        except StreamNotFound as error:
            return False, error.reason

    def _envelope(self) -> Finding:
        if self.message is None:
            return None, _NO_TICK
        return self.message.get("results") == "streaming", f"members {', '.join(self.message)}"

    def _date_and_time(self) -> Finding:
        tick = self._tick()
        if tick is None:
            return None, _NO_TICK
        if "date" not in tick or "time" not in tick:
            return False, f"members {', '.join(tick)}"
        return _time(tick) is not None, f"{tick['date']} {tick['time']}"

    def _price(self) -> Finding:
        tick = self._tick()
        return (None, _NO_TICK) if tick is None else (isinstance(tick.get("price"), str), repr(tick.get("price")))

    def _tick(self) -> dict[str, Any] | None:
        """The stream's first tick, without its envelope."""
        return None if self.message is None else self.message.get("resultData", self.message)

    def _spot_rates(self) -> Finding:
        """Whether flat ticks come. Answers to other functions may come between them."""
        with self._open() as probe:
            probe.send("getSpotRates", pair=str(self.pair))
            while (message := probe.read()) is not None:
                if not isinstance(message, dict):
                    continue
                if message.get("pair") == str(self.pair) and "price" in message:
                    self._flat = message
                    return True, shorten(message)
                if "error" in message or "resultData" in message:
                    return False, shorten(message)
        return None, f"no tick within {LIMIT:g} s"

    def _unix_date(self) -> Finding:
        if self._flat is None:
            return None, "no tick came over the second wire"
        return {"unixDate", "UTCDate"} <= set(self._flat), f"members {', '.join(self._flat)}"

    def _contracts(self) -> Finding:
        names = self._ask("listDeribitContracts")
        if not isinstance(names, list):
            return _finding(names, False)
        options = [name for name in names if isinstance(name, str) and name.endswith(("-C", "-P"))]
        self._contract = options[0] if options else None
        return (True if options else None), f"{len(names)} contracts, {len(options)} of them options"

    def _contract_stream(self) -> Finding:
        if self._contract is None:
            return None, "no contract is known"
        message = self._ask("getDeribitContractStream", instrumentName=self._contract)
        is_ticker = isinstance(message, dict) and message.get("instrument_name") == self._contract
        return _finding(message, is_ticker)

    def _matrix(self) -> Finding:
        answer = self._ask("getFiveMinMatrix", baseInstrument="BTC", fiveMinuteDateTime="latest")
        if isinstance(answer, list):
            return True, f"an array of {len(answer)}"
        return _finding(answer, bool(answer) and "error" not in answer)

    def _unknown_pair(self) -> Finding:
        return self._refused(attrs.evolve(self.config, symbol=_NO_SUCH_PAIR), StreamNotFound)

    def _wrong_key(self) -> Finding:
        if self.any_key:
            return None, "the demo accepts any key"
        keys = KeySource.from_argument(_NO_KEY)
        return self._refused(attrs.evolve(self.config, keys=keys, symbol=self.pair), AuthenticationError)

    def _refused(self, config: ConnectionConfig, kind: type[ConnectionFailed]) -> Finding:
        try:
            with self._open(config):
                return False, "the server accepts it"
        except ConnectionFailed as error:
            if error.status is None:
                raise
            return isinstance(error, kind), f"status {error.status}"

    # Functions.

    def _ask(self, function: str, **arguments: str) -> Any:
        with self._open() as probe:
            return probe.ask(function, **arguments)

    def _answer(self, expected: dict[str, Any], function: str) -> Finding:
        answer = self._ask(function)
        return _finding(answer, answer == expected)

    def _unknown_function(self) -> Finding:
        answer = self._ask("noSuchFunction")
        return _finding(answer, isinstance(answer, dict) and "error" in answer)

    def _reference_data(self) -> Finding:
        answer = self._ask("referenceData", securityId=self.pair.base)
        return _finding(answer, isinstance(answer, dict) and bool(answer) and "error" not in answer)

    def _forms_of_time(self) -> Finding:
        with self._open() as probe:
            last = self._ask_tick(probe, None)
            if last is None:
                return None, "no tick"
            tomorrow = (last + timedelta(days=1)).date().isoformat()
            forms = ("00:00", "00:00:00", "00:00:00.000", "00:00:00.000Z")
            refused = [form for form in forms if _time(self._ask_snap(probe, tomorrow, form)) is None]
        return not refused, f"refused: {', '.join(refused)}" if refused else ", ".join(forms)

    def _snap(self) -> Finding:
        with self._open() as probe:
            last = self._ask_tick(probe, None)
            if last is None:
                return None, "no tick"
            # A request has milliseconds, and ticks may have more digits.
            asked = last + -timedelta(microseconds=last.microsecond) % timedelta(milliseconds=1)
            at, before = self._ask_tick(probe, asked), self._ask_tick(probe, asked - timedelta(milliseconds=1))
        if at is None or before is None:
            return None, "there is only one tick"
        holds = last <= at <= asked and before < last
        return holds, f"asked for {_clock(asked)}: {_clock(at)}; 1 ms earlier: {_clock(before)}"

    def _page_size(self) -> Finding:
        with self._open() as probe:
            last = self._ask_tick(probe, None)
            if last is None:
                return None, "no tick"
            after = max(last - timedelta(hours=1), _midnight(last))
            page = self._ask_page(probe, after)
        self._page = page, after, last
        return (None if len(page) < PAGE_SIZE else len(page) == PAGE_SIZE), f"{len(page)} ticks after {_clock(after)}"

    def _first_ones(self) -> Finding:
        """A full page must begin with the tick that follows the time, and end before the newest tick."""
        if self._page is None or len(self._page[0]) < PAGE_SIZE:
            return None, "no full page came"
        page, after, last = self._page
        first, end = min(page), max(page)
        with self._open() as probe:
            before = self._ask_tick(probe, first - timedelta(milliseconds=1))
        holds = end < last and (before is None or before <= after)
        return holds, f"from {_clock(first)} to {_clock(end)}; the newest tick is of {_clock(last)}"

    def _order(self) -> Finding:
        if self._page is None or len(self._page[0]) < 3:
            return None, "fewer than 3 ticks came"
        page = self._page[0]
        return (
            (False, "it is sorted by time")
            if page == sorted(page)
            else (True, f"it begins {_clock(page[0])}, {_clock(page[1])}")
        )

    def _one_day(self) -> Finding:
        with self._open() as probe:
            last = self._ask_tick(probe, None)
            if last is None:
                return None, "no tick"
            page = self._ask_page(probe, _midnight(last) - timedelta(minutes=1))
        days = sorted({time.date().isoformat() for time in page})
        if not page or (len(days) == 1 and len(page) >= PAGE_SIZE):
            return None, "no page reached midnight"
        return len(days) == 1, f"asked for the day before, from 23:59: {len(page)} ticks of {', '.join(days)}"

    def _strictly_after(self) -> Finding:
        with self._open() as probe:
            newest = self._ask_tick(probe, None)
            last = None if newest is None else self._ask_tick(probe, newest - timedelta(seconds=10))
            if last is None:
                return None, "no tick"
            if last.microsecond % 1_000:
                return None, f"the time of the tick is finer than a request: {last.time().isoformat()}"
            page = self._ask_page(probe, last)
        if not page:
            return None, f"no tick after {_clock(last)}"
        return min(page) > last, f"asked for {_clock(last)}: the first is of {_clock(min(page))}"

    def _ask_tick(self, probe: Probe, at: datetime | None) -> datetime | None:
        """The time of the last tick at or before a time. None: now."""
        moment = at or datetime.now(UTC).replace(tzinfo=None)
        return _time(self._ask_snap(probe, *_moment(moment)))

    def _ask_snap(self, probe: Probe, date: str, time: str) -> Any:
        return probe.ask("tickSnap", pair=str(self.pair), date=date, time=time)

    def _ask_page(self, probe: Probe, after: datetime) -> list[datetime]:
        """The times of a page's ticks, in its order."""
        date, time = _moment(after)
        answer = probe.ask("tickHistory", pair=str(self.pair), date=date, time=time)
        times = map(_time, answer.values() if isinstance(answer, dict) else ())
        return [time for time in times if time is not None]


def _finding(answer: object, holds: bool) -> Finding:
    return (None, _SILENT) if answer is None else (holds, shorten(answer))


def _moment(moment: datetime) -> tuple[str, str]:
    return moment.date().isoformat(), moment.time().isoformat("milliseconds")


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _clock(moment: datetime) -> str:
    return moment.time().isoformat("milliseconds")


def _time(tick: Any) -> datetime | None:
    """A tick's time. None if it is no tick."""
    try:
        if "UTCDate" in tick:
            return datetime.fromisoformat(str(tick["UTCDate"]).rstrip("Z"))
        return datetime.fromisoformat(f"{tick['date']}T{str(tick['time']).rstrip('Z')}")
    except (KeyError, ValueError, TypeError):
        return None
