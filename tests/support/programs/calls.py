"""Scripts that call functions."""

from __future__ import annotations

import os

from finx_streamer import ConfigurationError, FunctionClient
from tests.support.programs.common import run, url


def end_with_an_open_client() -> None:
    """Call a function, and end without closing the client."""
    client = FunctionClient("demo", url())
    print(client.call("echo", number=1))


def call_in_a_forked_child() -> None:
    """Use the client in a child, and afterwards in the parent again."""
    client = FunctionClient("demo", url())
    client.call("echo", number=1)
    if (child := os.fork()) == 0:
        try:
            client.call("echo", number=2)
        except ConfigurationError as error:
            print(error, flush=True)
        client.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(client.call("echo", number=3))


if __name__ == "__main__":
    run(globals())
