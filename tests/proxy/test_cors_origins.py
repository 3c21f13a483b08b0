"""Which origins are those of the configuration: tables of right ones, and of those that only look alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from proxy.config.checking import parse_config
from proxy.security.http.cors import Origins
from tests.peers.process import Address, free_port
from tests.proxy.configs import having
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.test_cors import access, fetched, preflight, varies

SUFFIXES = (
    "evilpacsbin.com",
    "pacsbin.com.evil.com",
    "pacsbin.com.evil",
    "pacsbin.comevil",
    "pacsbin.co",
    "pacsbin.com.",
)
ALIKE = (
    *(f"{scheme}://{host}" for scheme in ("https", "http") for host in SUFFIXES),
    "https://pacsbin.com:8443",
    "https://pacsbin.com:443",  # browsers leave the default port out
    "https://pacsbin.com:",
    "https://pacsbin.com/",
    "https://pacsbin.com?",
    "https://pacsbin.com#",
    "https://pacsbin.com\\.evil.com",
    "https://pacsbin.com@evil.com",
    "https://user@pacsbin.com",
    "https://user:pass@pacsbin.com",
    "https://pacsbin%2ecom",
    "https://pacsbinXcom",
    "https://pacsbin.com%00",
    "https://pacsbın.com",  # a dotless i
    "https://pacsbin。com",  # an ideographic full stop, which becomes a dot in an address bar
    "https://раcsbin.com",  # Cyrillic letters
    "https://xn--pacsbn-9zb.com",
    "https://PACSBIN.com",
    "https:pacsbin.com",
    "https:/pacsbin.com",
    "https:///pacsbin.com",
    "//pacsbin.com",
    "wss://pacsbin.com",
    "ftp://pacsbin.com",
    "file://",
    "chrome-extension://pacsbin.com",
    "pacsbin.com",
    "null",
    "*",
    "https://*",
    "https://pacsbin.com https://evil.com",
    "https://evil.com https://pacsbin.com",
    "https://evil.com,https://pacsbin.com",
)
"""None of these is what `"pacsbin.com"` allows."""

BELOW = (
    "https://www.pacsbin.com",
    "http://www.pacsbin.com",
    "https://a.b.c.pacsbin.com",
    "https://my-viewer.pacsbin.com",
    "https://my_viewer.pacsbin.com",
    "https://1.pacsbin.com",
    f"https://{'a' * 63}.pacsbin.com",
)
NOT_BELOW = (
    *(origin.replace("://", "://www.", 1) for origin in ALIKE if "://" in origin and "user" not in origin),
    "https://pacsbin.com",
    "https://.pacsbin.com",
    "https://a..pacsbin.com",
    "https://-.pacsbin.com",
    "https://-a.pacsbin.com",
    "https://a-.pacsbin.com",
    "https://evil.com/.pacsbin.com",
    "https://evil.com#.pacsbin.com",
    "https://evil.com?.pacsbin.com",
    "https://evil.com\\.pacsbin.com",
    "https://evil.com@www.pacsbin.com",
    "https://user:pass@www.pacsbin.com",
    "https://evil.com:80.pacsbin.com",
    "https://[::1].pacsbin.com",
    "https://*.pacsbin.com",
    "https://WWW.pacsbin.com",
    "https://wwwpacsbin.com",
    "https://www.pacsbin.com.pacsbin.org",
    "https://www.pacsbin.com\n",
    "https://ww\nw.pacsbin.com",
    "https://wüw.pacsbin.com",
    f"https://{'a' * 64}.pacsbin.com",
    "wss://www.pacsbin.com",
    "www.pacsbin.com",
)


def origins(*entries: str) -> Origins:
    """Return what the configuration makes of entries of `cors.origin`."""
    return Origins(parse_config(having("cors.origin", list(entries))).cors.allowed_origins)


def test_a_host() -> None:
    listed = origins("pacsbin.com")
    assert "https://pacsbin.com" in listed
    assert "http://pacsbin.com" in listed
    assert [origin for origin in (*ALIKE, *BELOW) if origin in listed] == []


def test_all_hosts_below_one() -> None:
    """At any depth, by http and https, but not the host itself."""
    listed = origins("*.pacsbin.com")
    assert [origin for origin in BELOW if origin not in listed] == []
    assert [origin for origin in (*NOT_BELOW, *ALIKE) if origin in listed] == []


def test_all_hosts_below_one_of_a_scheme_and_port() -> None:
    listed = origins("https://*.Pacsbin.com", "http://*.pacsbin.com:8080")
    assert "https://www.pacsbin.com" in listed
    assert "http://a.www.pacsbin.com:8080" in listed
    others = ("http://www.pacsbin.com", "https://www.pacsbin.com:8080", "http://www.pacsbin.com:80801")
    assert [origin for origin in (*others, *NOT_BELOW) if origin in listed] == []


def test_a_host_and_all_below_it() -> None:
    listed = origins("pacsbin.com", "*.pacsbin.com", "*.local.example")
    assert {"https://pacsbin.com", "https://www.pacsbin.com", "http://a.local.example"} == {
        origin
        for origin in ("https://pacsbin.com", "https://www.pacsbin.com", "http://a.local.example", "null", "*")
        if origin in listed
    }


def test_the_wildcard_lists_none() -> None:
    listed = origins("*", "pacsbin.com")
    assert "*" not in listed
    assert "https://evil.com" not in listed
    assert "https://pacsbin.com" in listed


def test_a_long_origin_costs_no_time() -> None:
    """A pattern that tries over and over would hold up everybody."""
    listed = origins("*.pacsbin.com")
    started = time.perf_counter()
    for piece in ("a", "a.", "a-", "-", "_", "a_.", "."):
        assert f"https://{piece * 4000}!" not in listed
        assert f"https://{piece * 4000}.evil.com" not in listed
    assert time.perf_counter() - started < 0.5


# --- by requests -----------------------------------------------------------------------------------------------


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """The proxy, open to hosts below one; its archive is not there."""
    cors = {"origin": ["*.pacsbin.com"]}
    async with proxy_for(Address("NOBODY", free_port()), use_cget=True, cors=cors) as proxy:
        yield proxy


async def test_pages_below_a_host_may_read_with_credentials(proxy: Proxy) -> None:
    """And only what they are is repeated, never the pattern."""
    private = {"Access-Control-Request-Private-Network": "true"}
    for origin in BELOW:
        for path in ("/ping", "/nowhere", "/studies"):
            _, headers = await fetched(proxy, path, origin)
            assert headers.getall("Access-Control-Allow-Origin") == [origin]
            assert headers.getall("Access-Control-Allow-Credentials") == ["true"]
        status, headers = await preflight(proxy, "/studies", origin, headers="authorization", **private)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert headers["Access-Control-Allow-Credentials"] == "true"
        assert headers["Access-Control-Allow-Private-Network"] == "true"


async def test_pages_of_hosts_that_look_alike_may_not(proxy: Proxy) -> None:
    for origin in (*NOT_BELOW, *ALIKE):
        if "\n" in origin or not origin.isascii():
            continue  # no browser sends these, and no client library
        status, headers = await fetched(proxy, "/ping", origin)
        assert (status, access(headers), varies(headers)) == (200, set(), True)
        status, headers = await preflight(proxy, "/ping", origin, headers="accept")
        assert (status, access(headers), varies(headers)) == (403, set(), True)
