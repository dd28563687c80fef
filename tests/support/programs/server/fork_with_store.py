"""Fork while the store is in use. The child exits like any program. Argument: the store file."""

import os
import sys
import threading
from pathlib import Path

from finx_streamer.server import LocalServer, SimulatedMarket

file = Path(sys.argv[1])
server = LocalServer(SimulatedMarket(["BTC:USDC"], rate=200.0, seed=1), store=file).start()
server.wait_until(lambda stats: stats.ticks_stored > 10, 20)
busy, go_on = threading.Event(), threading.Event()


def use_store() -> None:
    with server._state.recorder.store._lock:
        busy.set()
        go_on.wait(20)


user = threading.Thread(target=use_store)
user.start()
busy.wait(20)
child = os.fork()
if not child:
    sys.exit(0)
os.waitpid(child, 0)
assert Path(f"{file}-wal").exists(), "the child has deleted the parent's log"
go_on.set()
user.join()
server.stop()
print(server.stats.ticks_stored == server.stats.ticks_played)
