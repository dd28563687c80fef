"""The REST client of an exchange. No test reaches a real exchange: these end before there is a connection."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from finx_streamer.server.exchanges.okx import Okx
from finx_streamer.server.exchanges.rest import Rest, RestFailed


@pytest.mark.parametrize("proxy", ["foo://user:secret@proxy:1", "http://user:secret/rest@proxy"])
def test_a_proxy_that_cannot_be_used_is_not_shown(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A password that isn't escaped looks like a port, and errors quote it."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)

    async def request() -> None:
        async with Rest(Okx(), ssl.create_default_context()) as rest:
            await rest.get("/")

    with pytest.raises(RestFailed, match=r"^REST: the proxy of the environment can't be used$") as failed:
        asyncio.run(request())
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
