"""Make a store fail for a while. Arguments: how, and a folder. Prints the error, then the ticks played and stored."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from finx_streamer.server import LocalServer, SimulatedMarket
from finx_streamer.server.store import TickStore

how, folder = sys.argv[1], Path(sys.argv[2])
file = folder / "ticks.db"


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Fill the file system."""
    with open(folder / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(4_096)):
            pass
    yield
    (folder / "ballast").unlink()


@contextlib.contextmanager
def limited_size() -> Iterator[None]:
    """Let no file grow beyond the size that the store's write-ahead log has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{file}-wal").stat().st_size + 10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


market = SimulatedMarket(["BTC:USDC"], rate=2_000.0, seed=1)
with LocalServer(market, store=file, store_batch=100_000, store_batch_seconds=0.02) as server:
    server.wait_until(lambda stats: stats.ticks_stored > 100, 20)
    with {"full": full_disk, "limit": limited_size}[how]():
        failed = server.wait_until(lambda stats: stats.store_error is not None, 20)
        print(failed.store_error, flush=True)
        server.wait_until(lambda stats: stats.ticks_played > failed.ticks_played + 500, 20)
        assert server.stats.ticks_stored == failed.ticks_stored
    server.wait_until(lambda stats: stats.store_error is None, 20)
stats = server.stats
store = TickStore(file)
with store.opened():
    (rows,) = store._database.execute("SELECT count(*) FROM tick").fetchone()
print(stats.ticks_played, stats.ticks_stored, store.count, rows, flush=True)
