"""`Tape`: a recording of ticks and contract tickers, to be replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..errors import ConfigurationError
from .contracts import Played, moved, seconds_of
from .recording import Recorded, Recording
from .settings import plain_number

#: The pause between two rounds of a loop in seconds, if `max_pause` is None.
_LOOP_PAUSE = 1.0


class Tape:
    """A recording of ticks, replayed in its own order::

        from finx_streamer.server import LocalServer, Tape

        tick = {"pair": "BTC:USDC", "date": "2022-07-02", "time": "15:30:00Z", "exchange": "BINANCE", "price": "19200"}
        with LocalServer(Tape([tick], loop=True)) as server:
            print(server.url)

    The pace follows the latest time so far. A late tick is sent at once. Equal lines are different trades. Clients can
    subscribe to the pairs that occur in the tape.

    A file is read twice: at once, to find its pairs and check every line, and again when it is played. So it may be
    larger than memory. An iterable is read at once and kept in memory.

    Args:
        ticks (str | os.PathLike[str] | Iterable[Mapping[str, Any]]): A file with one tick per line, or ticks. The lines
            are JSON, or CSV as `finx-streamer` writes it. gzip may compress them. Blank lines are skipped. A file that
            a crash cut off is played up to that point, with a `RuntimeWarning`. Ticks are dicts as they travel on the
            wire, a client's own ticks, such as those of `listener.recent()`, or the rows of `to_pandas`. Contract
            tickers may be among them, as JSON or dicts: FinX's, or Deribit's messages with `params.data`. A directory
            is an archive, played in recorded order.
        speed (float | None): 1.0 is real time, 10.0 is ten times as fast. With `None`, the tape is played as fast as
            the connected clients accept it, and stands still while no tick stream is connected.
        loop (bool): Whether to start again at the end, after `max_pause` seconds (1 second if that is `None`).
        wait_for (int): The number of connected streams, of ticks and Greeks, at which the tape starts. It doesn't stop
            when they disconnect: a client that isn't connected misses ticks.
        shift (bool): Whether to replace the recorded times with the time of sending, in milliseconds. A tick that was
            late in the recording stays late by the same time divided by `speed`.
        max_pause (float | None): The longest pause between two ticks in seconds of real time. With `None`, pauses are
            as long as in the recording, which may be days.

    Raises:
        ConfigurationError: An argument is out of range, the file can't be read or isn't a tape, a line is malformed
            (the error names it), or the tape has no ticks.
    """

    def __init__(
        self,
        ticks: Recorded,
        speed: float | None = 1.0,
        loop: bool = False,
        wait_for: int = 1,
        *,
        shift: bool = False,
        max_pause: float | None = 1.0,
    ) -> None:
        speed, wait_for, max_pause = map(plain_number, (speed, wait_for, max_pause))
        _check_arguments(speed, wait_for, max_pause)
        self._speed = speed
        self._loop = loop
        self._wait_for = wait_for
        self._shift = shift
        self._max_pause = max_pause
        self._recording = Recording(ticks)
        if not self._recording.pairs and not self._recording.contracts:
            raise ConfigurationError(f"{self._recording} has no ticks; expected at least one")

    @property
    def pairs(self) -> frozenset[str]:
        """The pairs that occur in the tape."""
        return self._recording.pairs

    @property
    def contracts(self) -> frozenset[str]:
        """The contracts that occur in the tape."""
        return self._recording.contracts

    @property
    def recording(self) -> Recording | None:
        """The ticks of each round. None with `shift`: those times are new in each round."""
        return None if self._shift else self._recording

    @property
    def wait_for(self) -> int:
        """The number of connected streams at which the tape starts."""
        return self._wait_for

    @property
    def paced(self) -> bool:
        """Whether ticks are due at set times (`speed` is not `None`)."""
        return self._speed is not None

    def play(self, clock: Callable[[], float]) -> Iterator[tuple[float, Played]]:
        """Play the tape from its beginning. See `Source.play`.

        Args:
            clock (Callable[[], float]): Returns the current time in seconds since 1970.

        Returns:
            Iterator[tuple[float, Tick | ContractTicker]]: When each is due, in seconds since the start, and it.
        """
        schedule = self._schedule()
        if not self._shift:
            return ((due, tick) for due, _, tick in schedule)
        return self._shifted(schedule, clock)

    def _schedule(self) -> Iterator[tuple[float, float, Played]]:
        """For each tick of all rounds: when it is due, how late it is then (both in seconds), and the tick."""
        start = 0.0
        while True:
            due = 0.0
            for due, late, tick in self._schedule_round():
                yield start + due, late, tick
            if not self._loop:
                return
            start += due + self._loop_pause

    def _schedule_round(self) -> Iterator[tuple[float, float, Played]]:
        if not self.paced and not self._shift:
            # Parsing the time is half of the work, and no one needs it here.
            return ((0.0, 0.0, tick) for tick in self._recording.read())
        return self._schedule_by_time()

    def _schedule_by_time(self) -> Iterator[tuple[float, float, Played]]:
        speed = math.inf if self._speed is None else self._speed
        max_pause = math.inf if self._max_pause is None else self._max_pause
        due = 0.0
        latest: float | None = None
        for tick in self._recording.read():
            now = seconds_of(tick)
            latest = now if latest is None else latest
            due += min(max(0.0, now - latest) / speed, max_pause)
            latest = max(latest, now)
            yield due, (latest - now) / (self._speed or 1.0), tick

    @property
    def _loop_pause(self) -> float:
        if not self.paced:
            return 0.0
        return _LOOP_PAUSE if self._max_pause is None else self._max_pause

    def _shifted(
        self, schedule: Iterator[tuple[float, float, Played]], clock: Callable[[], float]
    ) -> Iterator[tuple[float, Played]]:
        started = clock()
        for due, late, tick in schedule:
            yield due, moved(tick, (started + due if self.paced else clock()) - late)


def _check_arguments(speed: float | None, wait_for: int, max_pause: float | None) -> None:
    if speed is not None and not (0 < speed < math.inf):
        raise ConfigurationError(f"speed is {speed!r}; expected a number above 0, or None for as fast as possible")
    if not isinstance(wait_for, int) or wait_for < 0:
        raise ConfigurationError(f"wait_for is {wait_for!r}; expected a whole number, 0 or more")
    if max_pause is not None and not (0 <= max_pause < math.inf):
        raise ConfigurationError(f"max_pause is {max_pause!r}; expected seconds, 0 or more, or None for no limit")
