"""TLS contexts of servers and clients."""

from __future__ import annotations

import ssl

import trustme


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """The context of a server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a client that trusts an authority, which the system doesn't."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
