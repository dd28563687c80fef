"""The clients' addresses: how they are shown, and which of them count as one."""

from __future__ import annotations

import ipaddress
from typing import Any

import attrs

#: A site has at least this much of the IPv6 address space, so a client can choose among all its addresses.
_SITE_BITS = 64


@attrs.frozen
class Address:
    """Where a client's connection comes from. An IPv4 client has its IPv4 address, also on an IPv6 socket."""

    host: str
    port: int
    #: What counts as one address: an IPv4 address, or a /64 network of IPv6.
    network: str

    @classmethod
    def of(cls, peer: Any) -> Address | None:
        """The address that a socket has for its peer. None if the peer has left already."""
        try:
            ip = ipaddress.ip_address(peer[0])
            port = int(peer[1])
        except (TypeError, IndexError, ValueError):
            return None
        if isinstance(ip, ipaddress.IPv4Address):
            return cls(str(ip), port, str(ip))
        if ip.ipv4_mapped is not None:
            return cls(str(ip.ipv4_mapped), port, str(ip.ipv4_mapped))
        site = int(ip) >> (128 - _SITE_BITS) << (128 - _SITE_BITS)
        return cls(str(ip), port, str(ipaddress.IPv6Network((site, _SITE_BITS))))
