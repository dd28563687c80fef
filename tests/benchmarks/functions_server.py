"""The server of the `functions` benchmark: one handler behind a WebSocket and an HTTP server, in one thread."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta

import aiohttp.web
import websockets
from functions import FIRST, KEY, PAIR
from websockets.asyncio.server import ServerConnection, serve

from finx_streamer.server.functions import prepare, read_call
from finx_streamer.server.store import TickStore


def filled_store(count: int) -> TickStore:
    """Return a store with `count` ticks, ten per second."""
    store = TickStore()
    store.opened().__enter__()
    start = datetime.fromisoformat(FIRST).replace(tzinfo=UTC)
    times = [start + timedelta(milliseconds=100 * n) for n in range(count)]
    store.write(
        [
            (PAIR, t.date().isoformat(), f"{t.time().isoformat('milliseconds')}Z", "BINANCE", f"{19_000 + n % 999}.84")
            for n, t in enumerate(times)
        ]
    )
    return store


async def main(count: int) -> None:
    """Print the two ports and serve until standard input is closed."""
    store = filled_store(count)

    def answer(message: str) -> str:
        call = read_call(message, KEY, KEY.__eq__)
        assert call is not None
        prepared = prepare(call, frozenset({PAIR}))
        return prepared if isinstance(prepared, str) else prepared(store)

    async def on_websocket(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                await connection.send(answer(str(message)))
        except websockets.ConnectionClosed:
            pass

    async def on_request(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=answer(await request.text()), content_type="application/json")

    app = aiohttp.web.Application()
    app.router.add_post("/call", on_request)
    runner = aiohttp.web.AppRunner(app, access_log=None)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with serve(on_websocket, "127.0.0.1", 0, compression=None) as server:
        ports = [runner.addresses[0][1], next(iter(server.sockets)).getsockname()[1]]
        print(json.dumps(ports), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
