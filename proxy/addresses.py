"""IP addresses and networks as they are compared: those of callers with those of the configuration."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS = 96
"""IPv4 in IPv6, `::ffff:0:0/96` (RFC 4291 2.5.5.2): how sockets for both call an IPv4 address."""


def parse_address(text: str | None) -> Address | None:
    """Read an address; IPv4 in IPv6 is IPv4, and the zone of a link-local one does not count. None for what is none."""
    try:
        address = ipaddress.ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_network(text: str) -> Network:
    """Read a network, or an address as a network of one; IPv4 in IPv6 is IPv4. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def is_in(address: Address | None, networks: tuple[Network, ...]) -> bool:
    """Tell whether an address is in one of some networks."""
    return address is not None and any(address in network for network in networks)
