"""Make a commit fail, and print what the store counts and what its database has. Argument: the store file."""

import contextlib
import os
import resource
import sqlite3
import sys

from finx_streamer.server.store import TickStore

file = sys.argv[1]
rows = [("2022-07-02", "12:00:00", "BINANCE", str(number)) for number in range(1_000)]
store = TickStore(file)
with store.opened():
    store.write([("BTC:USDC", *row) for row in rows[:500]])
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{file}-wal").st_size + 10_000, hard))
    with contextlib.suppress(sqlite3.Error):
        store.write([("ETH:USDC", *row) for row in rows])
    (stored,) = store._database.execute("SELECT count(*) FROM tick").fetchone()
    print(store.count, stored, *store.pairs)
