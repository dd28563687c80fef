"""A listener and a call in a process that gevent has patched. The argument is the server's URL."""

from __future__ import annotations

import sys

from gevent import monkey

monkey.patch_all()

from finx_streamer import FunctionClient, StreamListener  # noqa: E402

with StreamListener("BTC:USDC", endpoint=sys.argv[1], api_key="demo") as listener:
    for tick in listener:
        print(tick["price"])
        break
with FunctionClient("demo", sys.argv[1]) as client:
    print(client.authenticate())
