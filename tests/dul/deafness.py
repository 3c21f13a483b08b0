"""Half-open TCP connections: a peer whose machine or network is gone says nothing, not even that it is."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest

_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0 bytes of whatever arrives


def make_deaf(connected: socket.socket) -> None:
    """Have the kernel drop all that arrives on a socket unacknowledged: its peer is alone from now on."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)  # or its own end would be noticed, and told
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    program = ctypes.create_string_buffer(_DROP_ALL)
    connected.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def notice_within(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Shorten what tells of a half-open connection, for those that are opened from now on; 2 s are the least."""
    monkeypatch.setattr("dul.limits.KEEPALIVE_IDLE", seconds - 1)
    monkeypatch.setattr("dul.limits.KEEPALIVE_INTERVAL", 1)
    monkeypatch.setattr("dul.limits.KEEPALIVE_PROBES", 1)
    monkeypatch.setattr("dul.limits.SILENCE_TIMEOUT", seconds)
