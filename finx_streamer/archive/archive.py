"""Read an archive, also while it is written."""

from __future__ import annotations

import glob
import logging
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from ..config.checks import Moment, moment
from ..config.checks import pair as checked_pair
from ..errors import ConfigurationError
from ..values import Tick
from . import columns
from .coverage import Coverage, Ledger
from .journal import Entry
from .layout import EPOCH, Layout, Sealed
from .recorded import recorded
from .sealing import LEDGER, Journal, connect, metadata_of
from .verification import Verification, verify

if TYPE_CHECKING:
    import pandas
    import polars

logger = logging.getLogger("finx_streamer")
_T = TypeVar("_T")
_ROWS = 1 << 13
#: About how many ticks are sorted at once.
_SLAB = 1 << 20
#: How many hours of a file's ticks are counted.
_SAMPLES = 100
_HOUR, _MICROSECOND = timedelta(hours=1), timedelta(microseconds=1)
_GREEKS = (
    *("delta", "gamma", "vega", "theta", "rho", "mark_iv", "bid_iv", "ask_iv", "mark_price", "underlying_price"),
    *("index_price", "best_bid_price", "best_ask_price"),
)
_VIEWS = f"""
CREATE VIEW ticks AS SELECT pair, timestamp, exchange, TRY_CAST(price_text AS DOUBLE) AS price, price_text,
    make_timestamp_ns(received_ns) AS received, backfilled, id, ordinal FROM rows;
CREATE VIEW gaps AS SELECT symbol, TRY_CAST(line->>'since' AS TIMESTAMPTZ) AS since,
    TRY_CAST(line->>'until' AS TIMESTAMPTZ) AS until, COALESCE(line->>'filled' = 'true', false) AS filled,
    TRY_CAST(line->>'ticks' AS BIGINT) AS ticks, line->>'why' AS why, make_timestamp_ns(received_ns) AS received
    FROM others WHERE kind = 'gap';
CREATE VIEW greeks AS SELECT make_timestamp_ms(TRY_CAST(raw->>'timestamp' AS BIGINT)) AS timestamp, symbol,
    raw->>'instrument_name' AS instrument,
    {", ".join(f"TRY_CAST(raw->>'{name}' AS DOUBLE) AS {name}" for name in _GREEKS)},
    make_timestamp_ns(received_ns) AS received, raw
    FROM (SELECT symbol, received_ns, COALESCE(message->'resultData', message) AS raw
        FROM (SELECT symbol, received_ns, TRY_CAST(line->>'text' AS JSON) AS message
            FROM others WHERE kind = 'message'))
    WHERE raw->>'instrument_name' IS NOT NULL;
"""


class Archive:
    """Reads what an `ArchiveWriter` records, while it records or afterwards::

        from finx_streamer.archive import Archive, ArchiveWriter

        with ArchiveWriter("ticks/") as writer:
            writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
        archive = Archive("ticks/")
        print(list(archive.ticks("BTC:USDC")))
        print(archive.sql("select exchange, count(*) from ticks group by all"))

    Args:
        path (str | os.PathLike[str]): The directory.

    Raises:
        ConfigurationError: It isn't an archive.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._layout = Layout(self.path)
        if not (self.path / "journal").is_dir():
            raise ConfigurationError(f"{self.path}: not an archive; expected a directory that was recorded into")

    def __repr__(self) -> str:
        return f"Archive({str(self.path)!r})"

    def ticks(
        self,
        pair: str | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        parse_price: Callable[[str], Any] = float,
    ) -> Iterator[Tick]:
        """Return ticks in the order of their own times. Memory doesn't grow with their number.

        Damaged blocks of the journal are left out, and a warning is logged. `to_arrow` and `sql` do the same.

        Args:
            pair (str | None): Only this pair.
            start (datetime | date | str | None): Only ticks from this time on.
            end (datetime | date | str | None): Only ticks before this time.
            parse_price (Callable[[str], Any]): Converts the text of a price.

        Returns:
            Iterator[Tick]: The ticks.

        Raises:
            ConfigurationError: An argument isn't valid.
            Exception: A sealed file is damaged. It is a `duckdb.Error`, raised while you iterate.
        """
        selection = _Selection.of(pair, start, end)
        return (tick for batch in self._batches(selection) for tick in columns.ticks_of(batch, parse_price))

    def entries(
        self, start: Moment | None = None, end: Moment | None = None, *, parse_price: Callable[[str], Any] = float
    ) -> Iterator[Tick | Entry]:
        """Return everything in the order in which it was recorded.

        Args:
            start (datetime | date | str | None): Only what was received from this time on.
            end (datetime | date | str | None): Only what was received before this time.
            parse_price (Callable[[str], Any]): Converts the text of a price.

        Returns:
            Iterator[Tick | Entry]: Ticks, and entries with `at` (received, in nanoseconds since 1970), `kind`, `symbol`
            and `fields`. The kind "message" has the text of a message that isn't a tick in `fields["text"]`. The others
            are those of `ArchiveWriter.put_event`, and its own "open", "close" and "seal". Damage is left out, and
            noted as a "gap" with `damaged`.

        Raises:
            ConfigurationError: An argument isn't valid.
        """
        runs = self.runs(start, end, partial(columns.ticks_of, parse_price=parse_price))
        return chain.from_iterable((run,) if isinstance(run, Entry) else run for run in runs)

    def runs(
        self,
        start: Moment | None,
        end: Moment | None,
        convert: Callable[[pa.RecordBatch], list[_T]],
        pairs: Collection[str] = (),
    ) -> Iterator[list[_T] | Entry]:
        """Return what `entries` does, with ticks in lists. For this package.

        Args:
            start: As for `entries`.
            end: As for `entries`.
            convert: Returns an element for each row of ticks.
            pairs: Only ticks of these; none for all.
        """
        selection = _Selection.of(None, start, end)
        return self._runs(selection, convert, pa.array(pairs, pa.string()))

    def to_arrow(self, pair: str | None = None, start: Moment | None = None, end: Moment | None = None) -> pa.Table:
        """Return ticks as a table, sorted by time.

        The columns are `timestamp`, `pair`, `exchange`, `price` (a double), `received` and `backfilled`.

        Args:
            pair (str | None): Only this pair.
            start (datetime | date | str | None): Only ticks from this time on.
            end (datetime | date | str | None): Only ticks before this time.
        """
        selection = _Selection.of(pair, start, end)
        found = self._query(
            selection,
            "SELECT timestamp, pair, exchange, price, received, backfilled FROM ticks "
            f"WHERE {selection.condition} ORDER BY timestamp, ordinal",
        )
        assert found is not None
        return found

    def to_pandas(
        self, pair: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> pandas.DataFrame:
        """Return ticks as a `pandas.DataFrame`, as `to_arrow` does. Needs the extra `[pandas]`.

        Args:
            pair (str | None): Only this pair.
            start (datetime | date | str | None): Only ticks from this time on.
            end (datetime | date | str | None): Only ticks before this time.
        """
        return self.to_arrow(pair, start, end).to_pandas()

    def to_polars(
        self, pair: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> polars.DataFrame:
        """Return ticks as a `polars.DataFrame`, as `to_arrow` does. Needs the extra `[polars]`.

        Args:
            pair (str | None): Only this pair.
            start (datetime | date | str | None): Only ticks from this time on.
            end (datetime | date | str | None): Only ticks before this time.
        """
        try:
            import polars
        except ImportError:
            raise ConfigurationError(
                'to_polars needs polars, which is not installed: pip install "finx-streamer[polars]"'
            ) from None
        frame: polars.DataFrame = polars.from_arrow(self.to_arrow(pair, start, end))  # type: ignore[assignment, unused-ignore]
        return frame

    def sql(self, query: str) -> pa.Table:
        """Run a query of DuckDB's SQL.

        Args:
            query (str): It can use the views `ticks` (pair, timestamp, exchange, price, price_text, received,
                backfilled, id, ordinal), `greeks` (timestamp, symbol, instrument, the numbers of `Greeks`, received,
                raw) and `gaps` (symbol, since, until, filled, ticks, why, received).

        Returns:
            pyarrow.Table: The result.

        Raises:
            ConfigurationError: The query has no result.
            Exception: The query isn't valid. It is a `duckdb.Error`.
        """
        found = self._query(_Selection(), query)
        if found is None:
            raise ConfigurationError(f"sql: {query[:60]!r} has no result; expected a SELECT")
        return found

    def coverage(self, pair: str) -> list[Coverage]:
        """Return what the archive has of a pair: the intervals that are complete, and those that aren't, and why.

        Time before, between and after the intervals wasn't recorded.

        Args:
            pair (str): The pair.

        Returns:
            list[Coverage]: The intervals, in order, without overlaps.

        Raises:
            ConfigurationError: It isn't a pair.
        """
        name = str(checked_pair(pair))
        return self.ledger().coverage(name)

    def ledger(self) -> Ledger:
        """Return the events that `coverage` reads."""
        return self._read(self._ledger)

    def _ledger(self) -> Ledger:
        sealed, journals = self._layout.find()
        ledger = Ledger()
        for each in sealed:
            note = metadata_of(each.ticks)
            ledger.add(note["hours"], map(Entry.parse, note["ledger"]), note["last_ns"])
        for hour in journals:
            journal = Journal(self._layout.journal(hour), hour)
            events = [each for each in journal.read() if isinstance(each, Entry) and each.kind in LEDGER]
            ledger.add([hour], events, journal.last_ns)
        return ledger

    def verify(self) -> Verification:
        """Check every block and file: whether it can be read, its order, its counts; and what isn't covered.

        Returns:
            Verification: What was checked, and what is damaged or missing.
        """
        return verify(self._layout, self.ledger)

    def _query(self, selection: _Selection, query: str) -> pa.Table | None:
        def read() -> pa.Table | None:
            with _Database(self._layout, selection) as database:
                result = database.connection.sql(query)
                return None if result is None else result.to_arrow_table()

        return self._read(read)

    def _read(self, read: Callable[[], _T]) -> _T:
        """Read, and again if a file was sealed or merged meanwhile: then it has another name."""
        while True:
            files = self._layout.find()
            try:
                return read()
            except (FileNotFoundError, duckdb.IOException):
                if self._layout.find() == files:
                    raise

    def _batches(self, selection: _Selection) -> Iterator[pa.RecordBatch]:
        done = selection.start
        while True:
            started = False
            files = self._layout.find()
            try:
                with _Database(self._layout, attrs.evolve(selection, start=done)) as database:
                    for slab in database.slabs():
                        started = False
                        for batch in database.read(slab):
                            started = True
                            yield batch
                        done = slab.end
                return
            except (FileNotFoundError, duckdb.IOException):
                # A file that was sealed or merged meanwhile has another name.
                if started or self._layout.find() == files:
                    raise

    def _runs(
        self, selection: _Selection, convert: Callable[[pa.RecordBatch], list[_T]], pairs: pa.Array
    ) -> Iterator[list[_T] | Entry]:
        low = -1 if selection.start is None else _ns(selection.start)
        high = 1 << 62 if selection.end is None else _ns(selection.end)
        for ticks, others in recorded(self._layout, low, high):
            places = others["ordinal"].to_pylist()
            events = (Entry.parse(line.as_py()) for line in others["line"])  # one by one: there may be many
            done = 0
            for batch in ticks.combine_chunks().to_batches(_ROWS):
                kept = batch.filter(pc.is_in(batch["pair"], pairs)) if len(pairs) else batch
                if not len(kept):
                    continue
                found = convert(kept)
                ordinals = kept["ordinal"].to_pylist() if done < len(places) else []
                at = 0
                while done < len(places) and places[done] < ordinals[-1]:
                    until = bisect_left(ordinals, places[done])
                    if until > at:
                        yield found[at:until]
                    yield next(events)
                    at, done = until, done + 1
                yield found[at:] if at else found
            yield from events


@attrs.frozen
class _Selection:
    """Which ticks are read. The end isn't included."""

    pair: str | None = None
    start: datetime | None = None
    end: datetime | None = None

    @classmethod
    def of(cls, pair: str | None, start: Moment | None, end: Moment | None) -> _Selection:
        """Check arguments."""
        return cls(
            None if pair is None else str(checked_pair(pair)),
            None if start is None else moment("start", start),
            None if end is None else moment("end", end),
        )

    @property
    def condition(self) -> str:
        """The condition in SQL."""
        parts = ["true"]
        if self.pair is not None:
            parts.append(f"pair = {_quoted(self.pair)}")
        if self.start is not None:
            parts.append(f"timestamp >= TIMESTAMPTZ {_quoted(self.start.isoformat())}")
        if self.end is not None:
            parts.append(f"timestamp < TIMESTAMPTZ {_quoted(self.end.isoformat())}")
        return " AND ".join(parts)


class _Database:
    """The archive at one moment, as tables of DuckDB: `rows` of ticks, and `others`."""

    def __init__(self, layout: Layout, selection: _Selection) -> None:
        self._selection = selection
        sealed, journals = layout.find()
        self._spill = tempfile.TemporaryDirectory(prefix="finx-archive-", ignore_cleanup_errors=True)
        self.connection = connect(Path(self._spill.name))
        #: The hours of ticks' times, with about how many ticks each has.
        self._hours: dict[datetime, int] = {}
        try:
            self._define(layout, sealed, journals)
        except BaseException:
            self.close()
            raise

    def _define(self, layout: Layout, sealed: list[Sealed], journals: list[int]) -> None:
        self.connection.register("no_ticks", columns.TICKS.empty_table())
        self.connection.register("no_events", columns.EVENTS.empty_table())
        self.connection.execute("CREATE TABLE new_ticks AS SELECT * FROM no_ticks")
        self.connection.execute("CREATE TABLE new_events AS SELECT * FROM no_events")
        for hour in journals:
            journal = Journal(layout.journal(hour), hour)
            for ticks, events in journal.tables():
                self._insert("new_ticks", ticks, self._selection.condition)
                self._insert("new_events", events, "true")
            if any(not damage.torn for damage in journal.damage):
                logger.warning("%s is damaged, and its damaged blocks are left out; see verify", layout.journal(hour))
        # This says clearly what is wrong with a file.
        notes = [metadata_of(each.ticks) for each in sealed]
        for view, table, names in (
            ("rows", "new_ticks", [each.ticks for each in sealed]),
            ("others", "new_events", [each.events for each in sealed]),
        ):
            paths = ", ".join(_quoted(glob.escape(str(name))) for name in names)
            files = f"UNION ALL SELECT * FROM read_parquet([{paths}], hive_partitioning=false)" if names else ""
            self.connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {table} {files}")
        self.connection.execute(_VIEWS)
        for note in notes:
            for pair, (count, first, last) in note["counts"].items():
                if self._selection.pair in (None, pair):
                    self._count(count, first, last)
        query = (
            "SELECT count(*), min(us), max(us) FROM (SELECT epoch_us(timestamp) AS us FROM new_ticks) GROUP BY us // ?"
        )
        for count, first, last in self.connection.execute(query, [_HOUR // _MICROSECOND]).fetchall():
            self._count(count, first, last)

    def _insert(self, name: str, table: pa.Table, condition: str) -> None:
        if len(table):
            self.connection.register("batch", table)
            self.connection.execute(f"INSERT INTO {name} SELECT * FROM batch WHERE {condition}")
            self.connection.unregister("batch")

    def _count(self, count: int, first_us: int, last_us: int) -> None:
        first, last = EPOCH + first_us * _MICROSECOND, EPOCH + last_us * _MICROSECOND
        low = first if self._selection.start is None else max(first, self._selection.start)
        high = last if self._selection.end is None else min(last, self._selection.end)
        hour = low.replace(minute=0, second=0, microsecond=0)
        hours = max((high - hour) // _HOUR + 1, 0)
        # Only an estimate: the slabs have all ticks anyway.
        samples = range(0, hours, hours // _SAMPLES + 1)
        for number in samples:
            when = hour + number * _HOUR
            self._hours[when] = self._hours.get(when, 0) + count // len(samples) + 1

    def slabs(self) -> Iterator[_Selection]:
        """Return parts of the selection that together are all of it, in order of time."""
        start, size = self._selection.start, 0
        for hour in sorted(self._hours):
            if size and size + self._hours[hour] > _SLAB:
                yield attrs.evolve(self._selection, start=start, end=hour)
                start, size = hour, 0
            size += self._hours[hour]
        if self._hours:
            yield attrs.evolve(self._selection, start=start)

    def read(self, selection: _Selection) -> Iterator[pa.RecordBatch]:
        """Return a part's ticks. What doesn't fit into memory is sorted on disk."""
        query = f"SELECT * FROM rows WHERE {selection.condition} ORDER BY timestamp, ordinal"
        yield from self.connection.sql(query).to_arrow_reader(_ROWS)

    def close(self) -> None:
        """Release its memory and files."""
        self.connection.close()
        self._spill.cleanup()

    def __enter__(self) -> _Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ns(when: datetime) -> int:
    return (when - EPOCH) // _MICROSECOND * 1_000


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
