"""The addresses that this machine has for others, as far as they stay the same (Linux)."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.addresses import Address

_SIOCGIFADDR: Final = 0x8915
"""netdevice(7): the first IPv4 address of an interface."""

_IFREQ: Final = struct.Struct("16s16s8x")
"""An interface's name, and a socket address (netdevice(7))."""

_IPV6_TABLE: Final = Path("/proc/net/if_inet6")

_CHANGING: Final = 0x01 | 0x08 | 0x20 | 0x40
"""Flags in that table: temporary (RFC 8981), a duplicate of another machine's, deprecated, tentative."""

_INTERFACES: Final = Path("/sys/class/net")

_ELSEWHERE: Final = "192.0.2.1"
"""An address that nobody has (RFC 5737)."""


def own_addresses() -> tuple[str, ...]:
    """IPv4 and IPv6 addresses of this machine's interfaces.

    Left out are loopback and link-local addresses, those that IPv6 makes up anew each day, and those of bridges to
    containers and virtual machines, which come and go, unless the way to the network is such a bridge.
    """
    outward = _outward_address()
    found = [each for name, each in (*_ipv4(), *_ipv6()) if each == outward or not _is_bridge(name)]
    return tuple(str(each) for each in dict.fromkeys(found) if not each.is_loopback and not each.is_link_local)


def _ipv4() -> Iterator[tuple[str, Address]]:
    """The interfaces that have an IPv4 address, with the first of each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, _IFREQ.pack(name.encode(), b""))
                yield name, ipaddress.IPv4Address(_IFREQ.unpack(answer)[1][4:8])


def _ipv6() -> Iterator[tuple[str, Address]]:
    """The interfaces with their IPv6 addresses, as far as these stay."""
    try:
        lines = _IPV6_TABLE.read_text(encoding="ascii").splitlines()
    except OSError:
        return  # the machine has no IPv6
    for address, _, _, _, flags, name in map(str.split, lines):
        if not int(flags, 16) & _CHANGING:
            yield name, ipaddress.IPv6Address(int(address, 16))


def _is_bridge(interface: str) -> bool:
    return (_INTERFACES / interface / "bridge").exists()


def _outward_address() -> Address | None:
    """The IPv4 address that this machine uses towards others; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((_ELSEWHERE, 9))
        except OSError:
            return None  # there is no way out
        return ipaddress.IPv4Address(asking.getsockname()[0])
