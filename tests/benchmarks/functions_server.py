"""The server of `functions`: one handler behind two doors, a websocket and an HTTP one, in one thread."""

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


def filled(count: int) -> TickStore:
    """A store with so many ticks, ten a second."""
    store = TickStore()
    store.opened().__enter__()
    start = datetime.fromisoformat(FIRST).replace(tzinfo=UTC)
    moments = [start + timedelta(milliseconds=100 * n) for n in range(count)]
    store.write(
        [
            (PAIR, m.date().isoformat(), f"{m.time().isoformat('milliseconds')}Z", "BINANCE", f"{19_000 + n % 999}.84")
            for n, m in enumerate(moments)
        ]
    )
    return store


async def main(count: int) -> None:
    """Serve until standard input is closed. Says where."""
    store = filled(count)

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
