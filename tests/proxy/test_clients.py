"""Who has sent a request, and what it calls the proxy: by itself, and behind reverse proxies, trusted and others."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.security.clients import (
    MAX_HOPS,
    TRUSTED_PROXIES,
    client_address,
    client_host,
    client_scheme,
    counted_client,
    is_trusted_proxy,
    parse_address,
)
from tests.peers.process import HOST, Address, free_port
from tests.proxy.finding import fetch
from tests.proxy.running import Proxy, proxy_for

TRUSTED = ("10.0.0.1/32", "192.168.7.0/24", "fd00::/64")


def request_from(remote: str | None, *headers: tuple[str, str], trusted: tuple[str, ...] = TRUSTED) -> web.Request:
    """Return a request over a connection from `remote`."""
    app = web.Application()
    app[TRUSTED_PROXIES] = tuple(map(ipaddress.ip_network, trusted))
    request = make_mocked_request("GET", "/", CIMultiDict([("Host", "proxy:3006"), *headers]), app=app)
    return request.clone(remote=remote)


def forwarded_for(*values: str) -> list[tuple[str, str]]:
    """Return headers X-Forwarded-For."""
    return [("X-Forwarded-For", value) for value in values]


# --- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.1.2.3", "10.1.2.3"),
        (" 10.1.2.3\t", None),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::FFFF:0a01:0203", "10.1.2.3"),
        ("fe80::1%eth0", "fe80::1"),
        ("FD00:0::1", "fd00::1"),
        ("", None),
        (None, None),
        ("unknown", None),
        ("_hidden", None),
        ("10.1.2", None),
        ("10.1.2.3.4", None),
        ("010.1.2.3", None),  # octal to some programs, decimal to others
        ("10.1.2.3/32", None),
        ("10.1.2.3\0", None),
        ("167837955", None),
        ("localhost", None),
    ],
)
def test_addresses_are_read(text: str | None, address: str | None) -> None:
    assert parse_address(text) == (None if address is None else ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("remote", "values", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        # Anybody can write the header: only from a trusted proxy it means something.
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),
        ("203.0.113.9", ["127.0.0.1, 10.0.0.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("fd00::5", ["2001:db8::1"], "2001:db8::1"),
        # What the client has sent itself stands first, and counts for nothing.
        ("10.0.0.1", ["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["127.0.0.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["127.0.0.1,203.0.113.9 , 192.168.7.20"], "203.0.113.9"),
        ("10.0.0.1", ["192.168.7.20, 203.0.113.9, 192.168.7.20"], "203.0.113.9"),
        # Trusted to the end: the first of them is the client.
        ("10.0.0.1", ["192.168.7.21, 192.168.7.20"], "192.168.7.21"),
        # What is no address, and all before it, is not believed.
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown, 192.168.7.20"], "192.168.7.20"),
        ("10.0.0.1", ["203.0.113.9,,"], "10.0.0.1"),
        # With the client's port, as some proxies write it.
        ("10.0.0.1", ["203.0.113.9:49152"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:49152"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["evil[2001:db8::1]"], "10.0.0.1"),
        ("10.0.0.1", ["[::1]:1.2.3.4:5"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:80:90"], "10.0.0.1"),
        (None, ["203.0.113.9"], None),
        ("", ["203.0.113.9"], None),
    ],
)
def test_the_client_is_the_last_that_no_trusted_proxy_is(
    remote: str | None, values: list[str], address: str | None
) -> None:
    found = client_address(request_from(remote, *forwarded_for(*values)))
    assert found == (None if address is None else ipaddress.ip_address(address))


def test_without_trusted_proxies_no_header_is_believed() -> None:
    request = request_from("10.0.0.1", *forwarded_for("203.0.113.9"), ("X-Forwarded-Proto", "https"), trusted=())
    assert client_address(request) == ipaddress.ip_address("10.0.0.1")
    assert client_scheme(request) == "http"
    assert client_host(request) == "proxy:3006"
    assert not is_trusted_proxy(request)


def test_a_long_header_costs_no_time() -> None:
    """Entries are read from the end, and only so many."""
    hops = ", ".join(["192.168.7.20"] * 500)
    assert client_address(request_from("10.0.0.1", *forwarded_for(f"203.0.113.9, {hops}"))) == ipaddress.ip_address(
        "192.168.7.20"
    )
    enough = ", ".join(["192.168.7.20"] * (MAX_HOPS - 1))
    assert str(client_address(request_from("10.0.0.1", *forwarded_for(f"203.0.113.9, {enough}")))) == "203.0.113.9"


def test_a_trusted_proxy_is_not_counted_as_one_client() -> None:
    """One that does not say for whom it asks stands for everybody."""
    assert counted_client(request_from("10.0.0.1")) is None
    assert counted_client(request_from("10.0.0.1", *forwarded_for("192.168.7.20"))) is None
    assert str(counted_client(request_from("10.0.0.1", *forwarded_for("203.0.113.9")))) == "203.0.113.9"
    assert str(counted_client(request_from("203.0.113.9", *forwarded_for("10.0.0.1")))) == "203.0.113.9"


# --- scheme and host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "values", "scheme"),
    [
        ("10.0.0.1", ["https"], "https"),
        ("10.0.0.1", [" HTTPS "], "https"),
        ("10.0.0.1", ["http"], "http"),
        ("10.0.0.1", ["http, https"], "https"),
        ("10.0.0.1", ["https", "http"], "http"),
        ("10.0.0.1", ["javascript"], "http"),
        ("10.0.0.1", [""], "http"),
        ("203.0.113.9", ["https"], "http"),
    ],
)
def test_the_scheme_is_what_a_trusted_proxy_says(remote: str, values: list[str], scheme: str) -> None:
    headers = [("X-Forwarded-Proto", value) for value in values]
    assert client_scheme(request_from(remote, *headers)) == scheme


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy for which the tests are a trusted reverse proxy; its archive is not there."""
    async with proxy_for(Address("NOBODY", free_port()), use_cget=True, trustedProxies=[HOST]) as proxy:
        yield proxy


async def base(proxy: Proxy, **headers: str) -> str:
    """Return the address that the proxy gives for itself."""
    found: Any = (await fetch(proxy, "/conformance", Accept="application/json", **headers)).json
    return str(found["base"])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "pacs.example"}, "http://pacs.example"),
        ({"Host": "pacs.example:8080"}, "http://pacs.example:8080"),
        ({"Host": "pacs.example", "X_Forwarded_Proto": "https"}, "https://pacs.example"),
        ({"Host": "pacs.example:443", "X_Forwarded_Proto": "https"}, "https://pacs.example"),
        ({"Host": "pacs.example:80", "X_Forwarded_Proto": "https"}, "https://pacs.example:80"),
        ({"Host": "inner:3006", "X_Forwarded_Host": "pacs.example"}, "http://pacs.example"),
        (
            {"Host": "inner:3006", "X_Forwarded_Host": "pacs.example:8443", "X_Forwarded_Proto": "https"},
            "https://pacs.example:8443",
        ),
        ({"Host": "inner", "X_Forwarded_Host": "[2001:db8::1]:8080"}, "http://[2001:db8::1]:8080"),
        # Of several, what the nearest has set: the first may be the client's own.
        ({"Host": "inner", "X_Forwarded_Host": "evil.example, pacs.example"}, "http://pacs.example"),
    ],
)
async def test_behind_a_trusted_proxy_addresses_are_the_clients(
    behind: Proxy, headers: dict[str, str], expected: str
) -> None:
    assert await base(behind, **headers) == expected


@pytest.mark.parametrize("host", ["evil.example/x", "user@evil.example", 'a"b', "a b", "http://evil", "a:0", "a:99999"])
async def test_a_forwarded_host_that_is_none_is_not_repeated(behind: Proxy, host: str) -> None:
    assert await base(behind, X_Forwarded_Host=host, X_Forwarded_Proto="https") == behind.url.replace("http", "https")


async def test_anybody_elses_headers_change_no_address() -> None:
    async with proxy_for(Address("NOBODY", free_port()), use_cget=True, trustedProxies=["203.0.113.1"]) as proxy:
        said = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https", "X_Forwarded_For": "127.0.0.1"}
        assert await base(proxy, **said) == proxy.url
        assert await base(proxy, **said, Host="pacs.example") == proxy.url.replace(HOST, "pacs.example")


async def test_a_configured_address_is_the_one_that_is_given() -> None:
    public = "https://pacs.example/dicom-web"
    async with proxy_for(Address("NOBODY", free_port()), trustedProxies=[HOST], publicUrl=public) as proxy:
        assert await base(proxy, X_Forwarded_Host="evil.example") == public
