"""The certificate and the private key of `serve`, which can be replaced while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from .. import ConfigurationError
from .key_files import KeyFileError, read_text, warn_if_exposed

_CERTIFICATE_OPTION, _KEY_OPTION = "--tls-cert", "--tls-key"
#: Programs often read a private key through their group.
_KEY_MODE = 0o640


class _Encrypted(Exception):
    """The private key needs a passphrase."""


class TlsFiles:
    """A TLS context for a server. `reload()` replaces its certificate; open connections go on.

    Raises `ConfigurationError` if a file is unusable.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self.context = self._newest = self._load()
        # OpenSSL calls it in each handshake, also without a server name.
        self.context.sni_callback = self._use_newest

    def reload(self) -> None:
        """Read both files again. After a `ConfigurationError`, the earlier certificate stays in use."""
        self._newest = self._load()

    def _use_newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        _check_pem(_CERTIFICATE_OPTION, self._certificate, "BEGIN CERTIFICATE-----", "a certificate")
        _check_pem(_KEY_OPTION, self._key, "PRIVATE KEY-----", "a private key")
        warn_if_exposed(_KEY_OPTION, self._key, _KEY_MODE)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, password=_refuse_passphrase)
        except _Encrypted:
            problem = f"{_KEY_OPTION} {self._key}: the key is encrypted; expected one without a passphrase"
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"{_KEY_OPTION} {self._key}: the key isn't the one of the certificate {self._certificate}"
            else:
                reason = error.reason or "damaged"
                problem = f"{_CERTIFICATE_OPTION} {self._certificate}, {_KEY_OPTION} {self._key}: unusable: {reason}"
        else:
            return context
        raise ConfigurationError(problem)


def load_tls(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Return the TLS files; None without them.

    Raises:
        ConfigurationError: Only one is given, or a file is unusable.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError(f"{_CERTIFICATE_OPTION} and {_KEY_OPTION} belong together; pass both")
    return TlsFiles(certificate, key)


def _check_pem(option: str, file: Path, marker: str, what: str) -> None:
    """Tell the common mistakes apart, which OpenSSL reports alike."""
    try:
        text = read_text(option, file)
    except KeyFileError as unreadable:
        raise ConfigurationError(str(unreadable)) from None
    if marker not in text:
        raise ConfigurationError(f"{option} {file}: the file isn't {what} in PEM format")


def _refuse_passphrase() -> str:
    # Without this, OpenSSL would ask for it on the terminal.
    raise _Encrypted
