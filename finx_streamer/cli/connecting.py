"""What the commands that connect to a server share: their clients, and errors as exit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from .. import ConfigurationError, Endpoint, FinxStreamerError, FunctionClient, StreamListener
from .. import demo as demo_market
from .key_files import api_key
from .options import WireName
from .terminal import say, say_error, with_options


class _HastyClient(FunctionClient):
    _fail_fast = True


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Print an error as one line, and exit with its code."""
    try:
        yield
    except (ConfigurationError, ImportError) as error:
        say(f"error: {with_options(str(error))}")
        raise typer.Exit(2) from None
    except FinxStreamerError as error:
        say_error(error)
        raise typer.Exit(1) from None
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        say(f"error: {file}{error.strerror or error}")
        raise typer.Exit(1) from None


@contextmanager
def metrics_exposed(port: int | None) -> Iterator[None]:
    """Serve metrics on a port, and print the page's address. None: don't."""
    if port is None:
        yield
        return
    from .. import metrics

    with metrics.expose(port) as page:
        say(f"metrics: {page.url}")
        yield


def function_client(
    endpoints: list[str], key_file: Path | None, proxy: str | None, allow_insecure: bool, timeout: float, retry: bool
) -> FunctionClient:
    return (FunctionClient if retry else _HastyClient)(
        key_for(endpoints, key_file),
        with_wire(endpoints, None, WireName.URL),
        timeout,
        parse_price=str,
        proxy=without_password(proxy),
        allow_insecure=allow_insecure,
    )


def new_listener(
    symbols: list[str],
    endpoints: list[str],
    key: str | Callable[[], str] | None,
    proxy: str | None,
    allow_insecure: bool,
    prefix: str | None,
    wire: WireName,
    keep_alive: float | None,
    **settings: Any,
) -> StreamListener:
    """Return a listener with the options that all commands with one have, and further settings."""
    return StreamListener(
        *symbols,
        api_key=key,
        endpoint=with_wire(endpoints, prefix, wire),
        proxy=without_password(proxy),
        allow_insecure=allow_insecure,
        keep_alive="auto" if keep_alive is None else keep_alive,
        **settings,
    )


def key_for(endpoints: list[str], file: Path | None) -> str | Callable[[], str] | None:
    return None if endpoints == [demo_market.NAME] and file is None else api_key(file)


def with_wire(endpoints: list[str], prefix: str | None, wire: WireName) -> str | Endpoint | list[str | Endpoint]:
    """Return what `--endpoint` says once or more often, as an argument of a listener or client."""
    found = [one_with_wire(endpoint, prefix, wire) for endpoint in endpoints]
    return found[0] if len(found) == 1 else found


def one_with_wire(endpoint: str, prefix: str | None, wire: WireName) -> str | Endpoint:
    if endpoint == demo_market.NAME and (prefix is not None or wire is not WireName.URL):
        raise ConfigurationError(
            "--prefix and --wire can't be used with --endpoint demo; remove them, or run finx-streamer serve and pass "
            "its URL"
        )
    url = Endpoint.of(endpoint).url if endpoint != demo_market.NAME else endpoint
    return endpoint if prefix is None and wire is WireName.URL else Endpoint(url, prefix, wire.value)


def without_password(proxy: str | None) -> str | None:
    if proxy and "@" in proxy:
        raise ConfigurationError(
            "--proxy: other users of this machine can see arguments, so don't pass a user name and password here; "
            "set the environment variable https_proxy instead"
        )
    return proxy
