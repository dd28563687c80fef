"""Record every tick on disk and read it back. Needs the extra `[archive]`.

    with ArchiveWriter("ticks/") as writer:
        writer.put_backfilled([("BTC:USDC", "2022-07-02", "15:30:55.817Z", "BINANCE", "19200.84")])
    for tick in Archive("ticks/").ticks("BTC:USDC"):
        print(tick)

The current hour is a journal of small checksummed blocks (`journal`), written by `ArchiveWriter`. A finished hour is
sealed into Parquet (`sealing`). `Archive` reads both.
"""

from importlib import import_module

try:
    import_module("pyarrow")
    import_module("zstandard")
    import_module("duckdb")
except ImportError as error:
    raise ImportError(
        f'finx_streamer.archive needs the {error.name} package: pip install "finx-streamer[archive]"'
    ) from error

from .archive import Archive
from .coverage import Coverage
from .replay import ReplayListener
from .verification import Checked, Verification
from .writer import ArchiveWriter

__all__ = ["Archive", "ArchiveWriter", "Checked", "Coverage", "ReplayListener", "Verification"]
