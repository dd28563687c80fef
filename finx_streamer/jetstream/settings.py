"""`Nats`: where NATS is, and how to log in there."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from ..config import checks as check
from ..config.endpoint import join_host_port
from ..config.redaction import MASK, hides_arguments, remember, shown
from ..errors import ConfigurationError

_DEFAULT_PORT = 4222
_STREAM_NAME = re.compile(r"[^\s.*>/\\]{1,255}")
#: The environment variables of NATS's own command line, by field.
_VARIABLES = {
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "credentials_file": "NATS_CREDS",
    "nkey_file": "NATS_NKEY",
}
_SEED = re.compile("S[A-Z2-7]{40,}")
_URL_VARIABLE, _CA, _CERTIFICATE, _KEY = "NATS_URL", "NATS_CA", "NATS_CERT", "NATS_KEY"


def _urls(given: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        _refuse_password(given)  # before a comma in it divides it
    urls = given.split(",") if isinstance(given, str) else tuple(given)
    if not urls:
        raise ConfigurationError("NATS: no URL; expected one or more, such as nats://127.0.0.1:4222")
    return tuple(dict.fromkeys(map(_url, urls)))


def _url(text: object) -> str:
    """Check a URL and write out its port."""
    expected = "expected nats://HOST[:PORT] or tls://HOST[:PORT]"
    _refuse_password(str(text))
    try:
        parts = urlsplit(str(text).strip())
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError as error:
        raise ConfigurationError(f"NATS: {shown(text)} is not a URL ({error}); {expected}") from None
    if not isinstance(text, str) or parts.scheme not in ("nats", "tls") or not host or parts.path.strip("/"):
        raise ConfigurationError(f"NATS: {shown(text)} can't be used; {expected}")
    return f"{parts.scheme}://{join_host_port(host, port)}"


def _refuse_password(text: str) -> None:
    if "@" in text:
        # Not shown: it may be a password, with any characters in it.
        raise ConfigurationError(
            "NATS: a URL must not contain a user, password or token, because other users of the machine could see it; "
            "set NATS_USER and NATS_PASSWORD, NATS_NKEY or NATS_CREDS instead"
        )


def _path_or_none(given: str | os.PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)


def _check_file(_: Nats, field: attrs.Attribute[Any], path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        # The seed itself instead of a file with it must not be shown.
        where = _SEED.sub(MASK, str(path))
        raise ConfigurationError(f"{field.name}: {where} can't be read: {getattr(error, 'strerror', error)}") from None


@attrs.frozen(kw_only=True)
class Nats:
    """A NATS server or cluster, and how to log in::

        from finx_streamer.jetstream import Nats

        cluster = Nats(urls=["nats://10.0.0.1", "nats://10.0.0.2"], user="finx", password="…")

    Where an URL is expected, you can pass a `Nats`. With a plain URL, the rest comes from the environment variables of
    NATS's own command line: NATS_USER and NATS_PASSWORD, NATS_NKEY, NATS_CREDS, NATS_CA, NATS_CERT, NATS_KEY.

    Args:
        urls (str | Iterable[str]): `nats://HOST[:PORT]`, or `tls://`; several servers of a cluster as a list, or
            separated by commas.
        user (str | None): The user name.
        password (str | None): The user's password.
        nkey_file (str | os.PathLike[str] | None): A file with the seed of an NKey.
        credentials_file (str | os.PathLike[str] | None): A file with a JWT and the seed that belongs to it.
        ssl_context (ssl.SSLContext | None): For TLS. None uses the system's CAs, where TLS is needed.

    Raises:
        ConfigurationError: A URL can't be used, a file can't be read, or there are two ways to log in.
    """

    urls: tuple[str, ...] = attrs.field(converter=_urls)
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    nkey_file: Path | None = attrs.field(default=None, converter=_path_or_none, validator=_check_file)
    credentials_file: Path | None = attrs.field(default=None, converter=_path_or_none, validator=_check_file)
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            raise ConfigurationError("NATS: a user needs a password, and a password a user")
        if sum(each is not None for each in (self.user, self.nkey_file, self.credentials_file)) > 1:
            raise ConfigurationError("NATS: expected one way to log in: a password, an NKey or a credentials file")
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise check.refusal("ssl_context", self.ssl_context, "an ssl.SSLContext or None")
        if self.password is not None:
            remember(self.password)

    @classmethod
    @hides_arguments
    def of(cls, given: str | Iterable[str] | Nats | None = None) -> Nats:
        """Return the settings for one or more URLs, with the rest from the environment.

        Args:
            given: URLs as for `urls`, or a `Nats`, which stays as it is. None reads NATS_URL, too.

        Raises:
            ConfigurationError: There is no URL, or a setting can't be used.
        """
        if isinstance(given, Nats):
            return given
        environment = {name: value for name, value in os.environ.items() if value}
        urls = environment.get(_URL_VARIABLE) if given is None else given
        if urls is None:
            raise ConfigurationError(f"NATS: no URL; pass one, such as nats://127.0.0.1:4222, or set {_URL_VARIABLE}")
        fields: dict[str, Any] = {field: environment.get(name) for field, name in _VARIABLES.items()}
        return cls(urls=urls, ssl_context=_context(environment), **fields)

    def __str__(self) -> str:
        return ", ".join(self.urls)


Nats.__init__ = hides_arguments(Nats.__init__)  # type: ignore[method-assign]


def _context(environment: Mapping[str, str]) -> ssl.SSLContext | None:
    """A context with the files in the environment; None if there are none."""
    authority, certificate, key = (environment.get(name) for name in (_CA, _CERTIFICATE, _KEY))
    if not (authority or certificate or key):
        return None
    if (certificate is None) != (key is None):
        raise ConfigurationError(f"NATS: {_CERTIFICATE} and {_KEY} are needed together")
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigurationError(
            f"NATS: {_CA}, {_CERTIFICATE} or {_KEY} can't be used: {error.strerror or error}; expected PEM files"
        ) from None
    return context


def check_stream_name(value: Any) -> str:
    """Return the name of a JetStream stream. Raises `ConfigurationError` if it can't be one."""
    name = check.text("stream", value, "the name of a stream, such as 'FINX'")
    good = _STREAM_NAME.fullmatch(name) is not None and name.isprintable()
    check.require(good, "stream", value, "at most 255 characters, no blank and none of . * > / \\")
    return name
