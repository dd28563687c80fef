"""`ReplayListener`: plays an archive through the callbacks and loops of a listener."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import attrs

from ..base_listener import BaseListener, delivery_settings
from ..config import checks as check
from ..config.checks import Moment
from ..config.symbols import Symbol
from ..errors import FinxStreamerError
from ..run import Run, RunSettings
from ..source import Source
from ..values import Gap, Greeks, Notice, State, Tick
from .archive import Archive
from .replay_source import Playing, ReplaySource

_FASTEST = 1e9


@attrs.frozen(kw_only=True)
class _Settings(RunSettings):
    follows_clock = False

    playing: Playing

    def open_source(self, run: Run, on_end: Callable[[BaseException | None], None]) -> Source:
        return ReplaySource(run, self.playing, self.name, self.callbacks, on_end)


class ReplayListener(BaseListener):
    """Delivers the ticks, gaps, errors and states of an archive as a `StreamListener` delivered them::

        from finx_streamer.archive import ArchiveWriter, ReplayListener

        with ArchiveWriter("ticks/") as writer:
            writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])

        with ReplayListener("ticks/", on_tick=print) as replay:
            replay.join()

    It has the callbacks, loops and methods of a `StreamListener`, but no socket. It ends at the present end of the
    archive, which may still be written. `received_ns` is as recorded. Dropped ticks and errors in callbacks aren't part
    of a recording: you get those of the replay.

    Args:
        archive (Archive | str | os.PathLike[str]): The archive, or its directory.
        *symbols (str | Pair | Option | Instrument): Only these. None for all of the archive.
        start (datetime | date | str | None): Only what was received from this time on.
        end (datetime | date | str | None): Only what was received before this time.
        speed (float | None): How fast to replay, by the times at which ticks were received: 1 is real time, 10 is ten
            times as fast. None is as fast as your callbacks accept ticks.
        max_pause (float | None): The longest pause between two ticks, in seconds, for a `speed`. None for no limit.

        on_tick (Callable[[Tick], object] | None): Called for each tick.
        on_error (Callable[[FinxStreamerError], object] | None): Called for each error where it occurred, and for damage
            to the archive. Without an `on_error` callback, errors are logged.
        on_notice (Callable[[Notice], object] | None): Called for each other message of the server.
        on_state (Callable[[str, State], object] | None): Called with the symbol and its new state.
        on_gap (Callable[[Gap], object] | None): Called once per gap.
        on_greeks (Callable[[Greeks], object] | None): Called for each message of an option, future or perpetual.

        exchanges (Iterable[str] | None): Deliver only ticks of these exchanges, named in upper case. None for all.
        parse_price (Callable[[str], Any]): Converts the decimal string that was sent to a price.

        dispatch (str): "thread" or "inline", as for `StreamListener`.
        queue_size (int): How many ticks may wait for callbacks.
        overflow (str): What happens when the queue is full, as for `StreamListener`. "block" waits for callbacks.

        keep (int | None): How many of the last ticks to keep, as for `StreamListener`.
        name (str | None): Prefix of the thread names, shown in `repr`. None generates a name.

    Raises:
        ConfigurationError: An argument is wrong, or it isn't an archive.
    """

    def __init__(
        self,
        archive: Archive | str | os.PathLike[str],
        *symbols: str | Symbol,
        start: Moment | None = None,
        end: Moment | None = None,
        speed: float | None = None,
        max_pause: float | None = None,
        on_tick: Callable[[Tick], object] | None = None,
        on_error: Callable[[FinxStreamerError], object] | None = None,
        on_notice: Callable[[Notice], object] | None = None,
        on_state: Callable[[str, State], object] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_greeks: Callable[[Greeks], object] | None = None,
        exchanges: Iterable[str] | None = None,
        parse_price: Callable[[str], Any] = float,
        dispatch: Literal["thread", "inline"] = "thread",
        queue_size: int = 65_536,
        overflow: Literal["block", "drop_oldest", "latest"] = "block",
        keep: int | None = None,
        name: str | None = None,
    ) -> None:
        self._archive = archive if isinstance(archive, Archive) else Archive(archive)
        if speed is not None:
            speed = check.number("speed", speed, 1 / _FASTEST, _FASTEST, "a multiple of real time, above 0, or None")
        playing = Playing(
            archive=self._archive,
            start=None if start is None else check.moment("start", start),
            end=None if end is None else check.moment("end", end),
            speed=speed,
            max_pause=check.seconds_or_none("max_pause", max_pause, zero=True),
            exchanges=check.exchanges(exchanges),
            parse_price=check.price_parser(parse_price),
        )
        settings = _Settings(playing=playing, **delivery_settings(dispatch, queue_size, overflow, keep, name))
        callbacks = {
            "tick": on_tick,
            "greeks": on_greeks,
            "error": on_error,
            "notice": on_notice,
            "state": on_state,
            "gap": on_gap,
        }
        super().__init__({str(symbol): symbol for symbol in map(check.symbol, symbols)}, settings, name, callbacks)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that you gave, or those that it has met so far."""
        return super().symbols or (() if self._run is None else tuple(self._run.stats().streams))

    @property
    def state(self) -> State:
        """STREAMING while it replays, STOPPED at the end, FAILED if the archive can't be read."""
        state = super().state
        return State.STREAMING if state is State.IDLE and self._run is not None else state

    def _shown(self) -> str:
        return f"{', '.join(self.symbols[:5]) or 'all symbols'} from {self._archive.path}"
