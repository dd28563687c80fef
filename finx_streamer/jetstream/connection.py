"""A connection to NATS: open it, and say what is wrong. Whoever uses it connects again after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
from collections.abc import AsyncIterator
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import AuthorizationError, NoRespondersError, NoServersError
from nats.js.api import StreamInfo
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from ..config.redaction import redact
from ..errors import AuthenticationError, ConfigurationError, ConnectionFailed, FinxStreamerError
from .settings import Nats

#: Seconds.
_CONNECT_TIMEOUT, _CLOSE_TIMEOUT = 5, 2.0
REQUEST_TIMEOUT = 5.0
#: Seconds between two pings. A connection without an answer to two of them is lost.
_PING_INTERVAL = 5
#: Error codes of JetStream: not enabled for the account, not enabled at all, no such stream.
_NOT_FOR_ACCOUNT, _NOT_ENABLED, _NO_STREAM = 10039, 10076, 10059


@contextlib.asynccontextmanager
async def connected(settings: Nats, name: str) -> AsyncIterator[Client]:
    """A connection to one of the servers, in random order. `name` is shown in NATS's own monitoring.

    Raises:
        AuthenticationError: A server refuses the credentials.
        ConnectionFailed: No server can be reached now.
    """
    client = await _connect_to_any(settings, name)
    try:
        yield client
    finally:
        await _close(client)


async def _connect_to_any(settings: Nats, name: str) -> Client:
    failures: list[ConnectionFailed] = []
    for url in random.sample(settings.urls, len(settings.urls)):
        try:
            return await _connect(settings, url, name)
        except ConnectionFailed as failure:
            failures.append(failure)
    # A rejected password matters more than a server that is down.
    raise next((each for each in failures if each.permanent), failures[0])


class _Client(Client):
    """Reads what it can of any message: one with broken headers must not keep others from being read."""

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
        return super()._build_message(sid, subject.decode(errors="replace").encode(), reply, data, headers)

    async def _process_headers(self, headers: Any) -> Any:
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return None


async def _connect(settings: Nats, url: str, name: str) -> Client:
    client = _Client()
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        errors.append(error)

    def reveal_password() -> str:
        _check_encryption(client, settings, url)
        return settings.password or ""

    options: dict[str, Any] = {
        "user": settings.user,
        "password": settings.password and reveal_password,
        "nkeys_seed": None if settings.nkey_file is None else str(settings.nkey_file),
        "user_credentials": None if settings.credentials_file is None else str(settings.credentials_file),
        "tls": settings.ssl_context,
    }
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            await client.connect(
                url,
                name=name,
                error_cb=on_error,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT,
                ping_interval=_PING_INTERVAL,
                **{key: value for key, value in options.items() if value is not None},
            )
        _check_encryption(client, settings, url)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await _close(client)
        # "No servers" says nothing; what was reported before does.
        cause = errors[-1] if isinstance(error, NoServersError) and errors else error
        raise _failure(url, cause) from None
    except FinxStreamerError:
        await _close(client)
        raise
    except Exception as error:
        await _close(client)
        if (path := settings.nkey_file or settings.credentials_file) is not None:
            # nkeys raises several types of errors.
            raise ConfigurationError(f"NATS: {path} can't be used; expected an NKey's seed, or credentials") from None
        raise ConnectionFailed(f"NATS at {url} can't be reached: {_describe(error)}") from None
    except BaseException:
        await _close(client)
        raise
    return client


def _check_encryption(client: Client, settings: Nats, url: str) -> None:
    """Refuse to go on without TLS where it is wanted: nats-py uses it only if the server asks for it."""
    is_wanted = url.startswith("tls:") or settings.ssl_context is not None
    if is_wanted and not client._server_info.get("tls_required"):
        raise ConnectionFailed(f"NATS at {url} doesn't use TLS; enable it there, or use nats://", permanent=True)


async def _close(client: Client) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await client.close()


def _failure(url: str, error: BaseException) -> ConnectionFailed:
    text = str(error).lower()
    if isinstance(error, AuthorizationError) or "authorization" in text or "authentication" in text:
        return AuthenticationError(f"NATS at {url} refuses the credentials", permanent=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailed(f"NATS at {url}: its certificate isn't trusted: {error.verify_message}", permanent=True)
    return ConnectionFailed(f"NATS at {url} can't be reached: {_describe(error)}")


def _describe(error: BaseException) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError):
        # asyncio's own text is "Connect call failed", with the address.
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    if isinstance(error, APIError):
        return f"{error.description} (JetStream error {error.err_code})"
    return redact(str(error).removeprefix("nats: ")) or type(error).__name__


def translate(error: BaseException) -> FinxStreamerError:
    """Return our error for one of nats-py's.

    `ConfigurationError` if you have to change a setting, `ConnectionFailed` if another attempt may help.
    """
    if isinstance(error, FinxStreamerError):
        return error
    code = getattr(error, "err_code", None)
    no_responder = isinstance(error, NoRespondersError)
    if code in (_NOT_FOR_ACCOUNT, _NOT_ENABLED) or (isinstance(error, ServiceUnavailableError) and code is None):
        no_responder = True
    if no_responder:
        return ConfigurationError(
            "NATS has no JetStream here; start nats-server with -js and enable it for the account"
        )
    if "permissions violation" in str(error).lower():
        return ConfigurationError(f"NATS: {_describe(error)}; allow that to the user")
    return ConnectionFailed(f"NATS: {_describe(error)}")


async def find_stream(client: Client, name: str) -> StreamInfo | None:
    """Return a stream's configuration and state. None if it doesn't exist.

    Raises:
        ConfigurationError: NATS has no JetStream.
        ConnectionFailed: JetStream doesn't answer now.
    """
    try:
        return await client.jetstream(timeout=REQUEST_TIMEOUT).stream_info(name)
    except NotFoundError:
        return None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise translate(error) from None


async def list_subjects(client: Client, name: str, subjects: str) -> list[str]:
    """Return the subjects that occur in a stream, of those that a filter selects.

    Raises:
        ConnectionFailed: JetStream doesn't answer now.
    """
    found: list[str] = []
    while True:
        request = json.dumps({"subjects_filter": subjects, "offset": len(found)}).encode()
        try:
            answer = await client.request(f"$JS.API.STREAM.INFO.{name}", request, timeout=REQUEST_TIMEOUT)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise translate(error) from None
        info = json.loads(answer.data)
        page = list((info.get("state") or {}).get("subjects") or ())
        found += page
        if not page or len(found) >= info.get("total", 0):
            return found
