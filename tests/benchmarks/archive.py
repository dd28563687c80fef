"""What the archive costs: bytes per tick, ticks per second written, sealed and read.

    python tests/benchmarks/archive.py [ticks]

The ticks are generated: 20 pairs, prices that walk, 64 KiB chunks as a socket gives them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from finx_streamer.archive import Archive, ArchiveWriter, ReplayListener
from finx_streamer.archive.layout import Layout
from finx_streamer.archive.sealing import seal

PAIRS = [f"{base}:USDC" for base in ["BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "UNI"]]
PAIRS += [pair.replace("USDC", "USDT") for pair in PAIRS]
CHUNK = 65_536


def chunks(count: int) -> list[bytes]:
    """Return the ticks as frames, in chunks."""
    random.seed(1)
    start = datetime(2026, 8, 1, tzinfo=UTC)
    prices = {pair: random.randrange(100, 6_000_000) for pair in PAIRS}
    found, frames, size = [], [], 0
    for number in range(count):
        pair = random.choice(PAIRS)
        prices[pair] = max(1, prices[pair] + random.randrange(-3, 4))
        when = (start + timedelta(milliseconds=number // 20)).isoformat(timespec="milliseconds")
        text = (
            f'{{"results":"streaming","resultData":{{"pair":"{pair}","date":"{when[:10]}","time":"{when[11:23]}Z",'
            f'"exchange":"{random.choice(("BINANCE", "COINBASE", "KRAKEN"))}","price":"{prices[pair] / 100:.2f}"}},'
            f'"id":{number + 1}}}'
        ).encode()
        frames.append(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
        size += len(text) + 4
        if size >= CHUNK:
            found.append(b"".join(frames))
            frames, size = [], 0
    return [*found, b"".join(frames)]


def main(count: int) -> None:
    """Measure."""
    data = chunks(count)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        writer = ArchiveWriter(root, queue_bytes=1 << 40)
        begin, cpu = time.perf_counter(), time.process_time()
        now = time.time_ns()
        for number, chunk in enumerate(data):
            writer.put_frames(now + number * 700_000, chunk)
        put = time.perf_counter() - begin
        writer.flush(600)
        took, cpu = time.perf_counter() - begin, time.process_time() - cpu
        writer.close()
        (hour,) = Layout(root).find()[1]
        size = Layout(root).journal(hour).stat().st_size
        print(f"put: {put / count * 1e9:.0f} ns per tick of the caller")
        print(
            f"journal: {count / took:,.0f} ticks/s, {cpu / count * 1e9:.0f} ns CPU, {size / count:.1f} bytes per tick"
        )
        _read("journal", root, count)
        begin = time.perf_counter()
        seal(Layout(root), hour)
        took = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        print(f"sealing: {count / took:,.0f} ticks/s, {size / count:.1f} bytes per tick")
        _read("sealed", root, count)


def _read(name: str, root: Path, count: int) -> None:
    archive = Archive(root)
    query = (
        "SELECT pair, epoch_us(timestamp) // 60000000, first(price), max(price), min(price), last(price) "
        "FROM ticks GROUP BY ALL"
    )
    for what, read in (
        ("ticks()", lambda: sum(1 for _ in archive.ticks())),
        ("entries()", lambda: sum(1 for _ in archive.entries())),
        ("ReplayListener", lambda: _replay(root)),
        ("to_arrow()", archive.to_arrow),
        ("minute bars in SQL", lambda: archive.sql(query)),
    ):
        begin = time.perf_counter()
        read()
        print(f"{name}, {what}: {count / (time.perf_counter() - begin):,.0f} ticks/s")


def _replay(root: Path) -> None:
    with ReplayListener(root, on_tick=lambda tick: None) as listener:
        listener.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
