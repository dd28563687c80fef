"""`Rest`: bounded requests to the REST interface of one exchange, one at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from .adapter import Adapter

if TYPE_CHECKING:
    import httpx

#: Seconds.
_TIMEOUT = 5.0
_LONGEST_REQUEST = 20.0
_LONGEST_REST = 3_600.0
#: How long to rest after a refusal that doesn't say.
_REST = 10.0
#: In bytes. The longest listing has about 5 MB.
_LONGEST_ANSWER = 32 * 2**20

# Numbers with a fraction stay as they are written, so that prices keep their digits.
_decoder = json.JSONDecoder(parse_float=str)


class RestFailed(Exception):
    """A request failed. `wait` is the number of seconds in which there must be no further one."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def decode_json(text: str) -> Any:
    """Decode a message or an answer. Raises `ValueError` or `RecursionError`."""
    # Faster than decode(), which also looks at what follows the value.
    return _decoder.raw_decode(text.lstrip())[0]


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Rest:
    """The REST interface of one exchange. Use it as an asynchronous context manager.

    It verifies certificates, follows no redirects, and uses the proxy of the environment, but none on this machine.
    """

    def __init__(self, adapter: Adapter, tls: ssl.SSLContext) -> None:
        self._base = adapter.rest_url
        self._interval = adapter.rest_interval
        self._tls = tls
        #: Opened with the first request.
        self._client: httpx.AsyncClient | None = None
        self._turn = asyncio.Lock()
        #: When the next request may begin, and until when the exchange wants none.
        self._next = self._rests_until = 0.0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def _open(self) -> httpx.AsyncClient:
        """Open the client. Raises `RestFailed`."""
        import httpx

        log = logging.getLogger("httpx")
        if log.level == logging.NOTSET:
            # At INFO, it logs each request.
            log.setLevel(logging.WARNING)
        try:
            client = httpx.AsyncClient(
                verify=self._tls,
                trust_env=not is_loopback(self._base),
                timeout=_TIMEOUT,
                limits=httpx.Limits(max_connections=1),
                follow_redirects=False,
                # Compressed answers could be far longer than they look.
                headers={"Accept-Encoding": "identity", "User-Agent": "finx-streamer"},
            )
        except ImportError:
            raise RestFailed('REST: a SOCKS proxy needs another package: pip install "httpx[socks]"') from None
        except (ValueError, httpx.InvalidURL):
            # The text quotes the proxy's URL, and perhaps a password.
            raise RestFailed("REST: the proxy of the environment can't be used") from None
        return await self._stack.enter_async_context(client)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, path: str) -> Any:
        """Return the JSON value of an answer. Raises `RestFailed`."""
        import httpx

        async with self._turn:
            now = asyncio.get_running_loop().time()
            if now < self._rests_until:
                raise RestFailed("the exchange has asked for fewer requests", self._rests_until - now)
            await asyncio.sleep(self._next - now)
            client = self._client = self._client or await self._open()
            try:
                async with asyncio.timeout(_LONGEST_REQUEST):
                    return await self._request(client, self._base + path)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
                raise RestFailed(f"REST: {_reason(error)}") from error
            except (ValueError, RecursionError):
                raise RestFailed("REST: the answer isn't JSON") from None
            finally:
                self._next = asyncio.get_running_loop().time() + self._interval

    async def _request(self, client: httpx.AsyncClient, url: str) -> Any:
        async with client.stream("GET", url) as response:
            if response.status_code != 200:
                wait = retry_after(response.headers.get("Retry-After"))
                if response.status_code in (418, 429):
                    wait = _REST if wait is None else wait
                    self._rests_until = asyncio.get_running_loop().time() + wait
                raise RestFailed(f"REST: HTTP status {response.status_code}", wait or 0.0)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise RestFailed("REST: the answer is compressed, which wasn't asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LONGEST_ANSWER:
                    raise RestFailed(f"REST: the answer is longer than {_LONGEST_ANSWER:,} bytes")
        return decode_json(body.decode())


def retry_after(value: str | None) -> float | None:
    """Read a `Retry-After` header: seconds or a date. Returns seconds, at most an hour, or None."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_REST) if seconds == seconds else None


def describe_os_error(error: OSError) -> str:
    """Say in a few words why the network, or TLS, failed."""
    if isinstance(error, socket.gaierror):
        return "its name can't be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    # The text of asyncio's errors has the address instead of the reason.
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__


def _reason(error: BaseException) -> str:
    # httpx wraps the system's errors, and its timeouts have no text.
    if "Timeout" in type(error).__name__:
        return describe_os_error(TimeoutError())
    cause, found = error.__cause__ or error.__context__, error if isinstance(error, OSError) else None
    while cause is not None:
        found = cause if isinstance(cause, OSError) and cause.errno else found
        cause = cause.__cause__ or cause.__context__
    return describe_os_error(found) if found is not None else f"{type(error).__name__} {error}".strip()[:200]
