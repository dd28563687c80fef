"""What this package assumes about FinX beyond its published document, checked against the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import attrs

from ..config.api_key import KeySource
from ..config.endpoint import Endpoint
from ..config.symbols import Pair
from ..connection.attempt import ConnectionConfig
from ..errors import AuthenticationError, ConnectionFailed, StreamNotFound
from ..functions.history import PAGE_SIZE
from .probe import Probe
from .report import Check, Verdict

_NO_SUCH_PAIR = Pair("FINXDOCTOR", "NOSUCHPAIR")
_NO_KEY = "finx-doctor-wrong-key"

Finding = tuple[bool | None, str]


@attrs.define
class Assumptions:
    """Confirms or refutes each assumption with one or two requests.

    Args:
        config: A connection that works, without a symbol.
        pair: A pair that the server has.
        message: The first message of its stream.
    """

    config: ConnectionConfig
    pair: Pair
    message: dict[str, object] | None

    def run(self) -> Iterator[Check]:
        """Yield one check for each assumption: OK if it is confirmed, NOTE if it is refuted, SKIPPED if not seen."""
        facts: dict[str, Callable[[], Finding]] = {
            "streams under streaming/ (S)": lambda: self._prefix("streaming"),
            "streams under streamer/ (D)": lambda: self._prefix("streamer"),
            "enveloped ticks (S)": self._envelope,
            "second wire (D)": self._second_wire,
            "keepAlive answer (D)": self._keep_alive,
            "unknown function (O)": self._unknown_function,
            "unknown pair is 404 (O)": self._unknown_pair,
            "wrong key is 401 (O)": self._wrong_key,
            "snap: at or before (D)": self._snap,
            "page of 1,000 ticks (D)": self._page_size,
            "history: strictly after (O)": self._strictly_after,
            "closed after 300 s (D)": lambda: (None, "takes too long to see; keep_alive=270 avoids it anyway"),
        }
        for name, look in facts.items():
            try:
                holds, found = look()
            except ConnectionFailed as error:
                holds, found = None, error.reason
            verdict = {True: Verdict.OK, False: Verdict.NOTE, None: Verdict.SKIPPED}[holds]
            said = {True: "confirmed", False: "refuted", None: "not seen"}[holds]
            yield Check(name, verdict, f"{said}: {found}")

    # Streams.

    def _prefix(self, prefix: str) -> Finding:
        endpoint = Endpoint(self.config.endpoint.url, prefix)
        try:
            with Probe(attrs.evolve(self.config, endpoint=endpoint, symbol=self.pair)):
                return True, "101"
        except StreamNotFound as error:
            return False, error.reason

    def _envelope(self) -> Finding:
        if self.message is None:
            return None, "no tick came"
        return self.message.get("results") == "streaming", ", ".join(self.message)

    def _second_wire(self) -> Finding:
        with Probe(self.config) as probe:
            message = probe.ask({"functionName": "getSpotRates", "pair": str(self.pair)})
        if message is None:
            return None, "getSpotRates got no answer"
        return message.get("pair") == str(self.pair), f"getSpotRates: {_short(message)}"

    def _unknown_pair(self) -> Finding:
        return self._refused(attrs.evolve(self.config, symbol=_NO_SUCH_PAIR), StreamNotFound)

    def _wrong_key(self) -> Finding:
        keys = KeySource.from_argument(_NO_KEY)
        return self._refused(attrs.evolve(self.config, keys=keys, symbol=self.pair), AuthenticationError)

    def _refused(self, config: ConnectionConfig, kind: type[ConnectionFailed]) -> Finding:
        try:
            with Probe(config):
                return False, "101: the server accepts it"
        except ConnectionFailed as error:
            if error.status is None:
                raise
            return isinstance(error, kind), str(error.status)

    # Functions.

    def _keep_alive(self) -> Finding:
        with Probe(self.config) as probe:
            message = probe.ask({"functionName": "keepAlive"})
        return message == {"keepAlive": True}, _short(message)

    def _unknown_function(self) -> Finding:
        with Probe(self.config) as probe:
            message = probe.ask({"functionName": "noSuchFunction"})
        return (None if message is None else "error" in message), _short(message)

    def _snap(self) -> Finding:
        with Probe(self.config) as probe:
            last = self._ask_tick(probe, None)
            if last is None:
                return None, "no tick"
            at, before = self._ask_tick(probe, last), self._ask_tick(probe, last - timedelta(milliseconds=1))
        if at is None or before is None:
            return None, "there is only one tick"
        return at == last and before < last, f"asked for {last.time()}: {at.time()}; 1 ms earlier: {before.time()}"

    def _page_size(self) -> Finding:
        page = self._page(timedelta(hours=1))
        text = f"{len(page)} ticks"
        return (None if len(page) < PAGE_SIZE else len(page) == PAGE_SIZE), text

    def _strictly_after(self) -> Finding:
        with Probe(self.config) as probe:
            newest = self._ask_tick(probe, None)
            last = None if newest is None else self._ask_tick(probe, newest - timedelta(seconds=10))
            if last is None:
                return None, "no tick"
            page = self._ask_page(probe, last)
        return (all(time > last for time in page) if page else None), f"{len(page)} ticks after {last.time()}"

    def _page(self, ago: timedelta) -> list[datetime]:
        with Probe(self.config) as probe:
            last = self._ask_tick(probe, None)
            return [] if last is None else self._ask_page(probe, max(last - ago, _midnight(last)))

    def _ask_tick(self, probe: Probe, at: datetime | None) -> datetime | None:
        moment = at or datetime.max.replace(year=2999)
        answer = probe.ask({"functionName": "tickSnap", "pair": str(self.pair), **_moment(moment)})
        return None if answer is None else _time(answer)

    def _ask_page(self, probe: Probe, after: datetime) -> list[datetime]:
        answer = probe.ask({"functionName": "tickHistory", "pair": str(self.pair), **_moment(after)}) or {}
        times = [_time(tick) for tick in answer.values() if isinstance(tick, dict)]
        return [time for time in times if time is not None]


def _moment(moment: datetime) -> dict[str, str]:
    return {"date": moment.date().isoformat(), "time": moment.time().isoformat("milliseconds")}


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _time(tick: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(f"{tick['date']}T{str(tick['time']).rstrip('Z')}")
    except (KeyError, ValueError):
        return None


def _short(message: dict[str, Any] | None) -> str:
    text = "no answer" if message is None else str(message)
    return text if len(text) <= 80 else f"{text[:80]}…"
