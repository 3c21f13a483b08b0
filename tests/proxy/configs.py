"""What the tests of the configuration share: a minimal file, changes to it, and what is said of a wrong one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from proxy.config.checking import parse_config
from proxy.config.errors import MISSING, ConfigError
from proxy.config.reading import load_config
from proxy.config.schema import Config, Peer

Raw = dict[str, Any]

MINIMAL: Raw = {
    "proxyMode": "dimse",
    "dimseProxySettings": {
        "proxyServer": {"aet": "PROXY", "ip": "10.0.0.1", "port": 8888},
        "peers": [{"aet": "ARCHIVE", "ip": "pacs.example.org", "port": 104}],
    },
}


def having(path: str, value: object, base: Raw = MINIMAL) -> Raw:
    """Copy `base` with the key at a dotted path (numbers are list indices) set, or deleted for MISSING."""
    raw = copy.deepcopy(base)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    place: Any = raw
    for parent in parents:
        place = place[parent] if isinstance(parent, int) else place.setdefault(parent, {})
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return raw


def problems_of(raw: Raw) -> list[str]:
    """Return what is said of each problem of a wrong configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return [str(problem) for problem in caught.value.problems]


def peer_of(raw: Raw, index: int = 0) -> Peer:
    """Return a peer of a right configuration."""
    dimse = parse_config(raw).dimse
    assert dimse is not None
    return dimse.peers[index]


def load(tmp_path: Path, text: str | bytes) -> Config:
    """Read a file with that content."""
    path = tmp_path / "config.jsonc"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def reason_of(tmp_path: Path, text: str | bytes) -> str:
    """Return why a file with that content holds no configuration."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.path == tmp_path / "config.jsonc"
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    return caught.value.reason
