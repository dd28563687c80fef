"""Checks of this machine: versions, extras, the API key, the proxy, the terminal and Jupyter."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator

from .._version import __version__
from ..config.api_key import KeySource
from ..connection.attempt import ConnectionConfig
from ..errors import ConnectionFailed
from .limits import LIMIT, Deadline
from .report import Check, Verdict

_REQUIRED = ("websocket-client", "attrs")
_EXTRAS = {
    "server": ("websockets",),
    "live": ("httpx",),
    "cli": ("typer", "rich"),
    "proxy": ("python-socks",),
    "pandas": ("pandas",),
    "polars": ("polars",),
    "progress": ("tqdm",),
    "notebook": ("anywidget", "ipykernel"),
}
_JUPYTER = ("ipykernel", "IPython", "anywidget", "jupyterlab", "notebook")


def machine_checks(config: ConnectionConfig, key_source: str) -> Iterator[Check]:
    """Check this machine. `key_source` says where the API key comes from."""
    yield _versions()
    yield _extras()
    yield _api_key(config.keys, key_source)
    yield _proxy(config)
    yield _terminal()
    yield _jupyter()


def _versions() -> Check:
    packages = ", ".join(f"{name} {_version(name)}" for name in _REQUIRED)
    system = f"{platform.system()} {platform.release()}"
    python = f"Python {platform.python_version()}"
    return Check("versions", Verdict.OK, f"finx-streamer {__version__}, {python}, {packages}, {system}")


def _extras() -> Check:
    found, missing = [], []
    for extra, packages in _EXTRAS.items():
        versions = [_version(package) for package in packages]
        if all(versions):
            found.append(f"{extra} ({', '.join(map(' '.join, zip(packages, map(str, versions), strict=True)))})")
        else:
            missing.append(extra)
    text = f"installed: {', '.join(found) or 'none'}"
    return Check("extras", Verdict.OK, text + (f"; not installed: {', '.join(missing)}" if missing else ""))


def _api_key(keys: KeySource, source: str) -> Check:
    try:
        Deadline().run(lambda: _current(keys))
    except TimeoutError:
        return Check("API key", Verdict.FAILED, f"no key within {LIMIT:g} s", "Check your api_key callable.")
    except ConnectionFailed as error:
        advice = "Get a key from FinX, or try the endpoint demo without one."
        if error.__cause__ is not None:
            advice = "Check your api_key callable."
        return Check("API key", Verdict.FAILED, error.reason, advice)
    return Check("API key", Verdict.OK, source)


def _current(keys: KeySource) -> None:
    try:
        keys.current()
    except Exception:
        raise
    except BaseException as cause:  # a callable that calls sys.exit() must not end the other checks
        raise ConnectionFailed(f"the api_key callable raised {type(cause).__name__}") from cause


def _proxy(config: ConnectionConfig) -> Check:
    try:
        proxy = config.proxies.choose(config.endpoint)
    except ConnectionFailed as error:
        return Check("proxy", Verdict.FAILED, error.reason)
    return Check("proxy", Verdict.OK, "none" if proxy is None else f"{proxy.scheme}://{proxy.where}")


def _terminal() -> Check:
    if sys.stdout is None:
        return Check("terminal", Verdict.NOTE, "standard output is closed")
    encoding = (sys.stdout.encoding or "unknown").lower()
    kind = "a terminal" if sys.stdout.isatty() else "no terminal"
    text = f"standard output is {kind}, {shutil.get_terminal_size().columns} columns, encoding {encoding}"
    try:
        "→ … ·".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return Check("terminal", Verdict.NOTE, text, "Set PYTHONIOENCODING=utf-8 for arrows instead of ASCII.")
    return Check("terminal", Verdict.OK, text)


def _jupyter() -> Check:
    versions = {name: version for name in _JUPYTER if (version := _version(name))}
    if not versions:
        return Check("Jupyter", Verdict.OK, "not installed")
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    here = "in a kernel" if "ipykernel" in sys.modules else "outside of a kernel"
    if versions.get("ipykernel", "").startswith(("7.0.", "7.1.", "7.2.", "7.3.")):
        advice = "ipykernel 7.0 to 7.3 can stop reading requests: install another version."
        return Check("Jupyter", Verdict.NOTE, f"{text}; {here}", advice)
    return Check("Jupyter", Verdict.OK, f"{text}; {here}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
