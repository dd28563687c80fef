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


def peer_context(authority: trustme.CA) -> ssl.SSLContext:
    """The same for the synchronous client of `websockets`, which uses a connection on two threads.

    With TLS 1.3, one of them may read a session ticket while the other one writes. About one handshake in 500 is lost
    then.
    """
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context
