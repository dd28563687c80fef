"""The clients' addresses: which of them count as one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.server.addresses import Address

IPV4 = st.ip_addresses(v=4)
#: Upper and lower halves, often small, so that examples share them.
HALVES = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))


def network(host: str) -> str:
    """What counts as one address."""
    found = Address.of((host, 1234, 0, 0))
    assert found is not None
    return found.network


@given(HALVES, HALVES, HALVES, HALVES)
def test_a_64_of_ipv6_counts_as_one(first: int, first_rest: int, second: int, second_rest: int) -> None:
    """Two addresses count as one exactly if they share the first 64 bits."""
    hosts = [
        str(ipaddress.IPv6Address(upper << 64 | lower)) for upper, lower in ((first, first_rest), (second, second_rest))
    ]
    if not any(ipaddress.IPv6Address(host).ipv4_mapped for host in hosts):
        assert (network(hosts[0]) == network(hosts[1])) == (first == second)


@given(IPV4, IPV4)
def test_each_ipv4_address_counts_alone(first: ipaddress.IPv4Address, second: ipaddress.IPv4Address) -> None:
    """An IPv6 socket shows an IPv4 client as ::ffff:…, which is the same client."""
    assert (network(str(first)) == network(f"::ffff:{second}")) == (first == second)
    shown = Address.of((f"::ffff:{first}", 7, 0, 0))
    assert (shown.host, shown.port) == (str(first), 7)


@pytest.mark.parametrize(
    ("peer", "host", "counted"),
    [
        (("192.0.2.7", 80), "192.0.2.7", "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 80, 0, 0), "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 80, 0, 2), "fe80::1%eth0", "fe80::/64"),
        (("::1", 80, 0, 0), "::1", "::/64"),
    ],
)
def test_addresses_as_sockets_have_them(peer: tuple[object, ...], host: str, counted: str) -> None:
    """Link-local addresses have a scope."""
    assert Address.of(peer) == Address(host, 80, counted)


@pytest.mark.parametrize("peer", [None, "", (), ("",), "/run/socket", ("not an address", 1)])
def test_a_client_that_has_left_has_no_address(peer: object) -> None:
    """The system then has none."""
    assert Address.of(peer) is None
