"""Access control as a whole: what is open, who may do what, how to sign in is told, and that it fails closed."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.app import ROUTES
from proxy.config.checking import parse_config
from proxy.demo.archive import DemoArchive
from proxy.security.auth import ways
from proxy.security.auth.middleware import warnings_of
from proxy.security.auth.rights import needed_right
from proxy.service import running
from tests.peers.process import HOST, Address, free_port
from tests.proxy.configs import MINIMAL, having, problems_of
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.signing_in import (
    OPEN,
    PROTECTED,
    TOKEN,
    asked,
    basic,
    bearer,
    challenges,
    guarded,
    status,
    token,
    user,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

JANE = user("jane", "correct horse")
AS_JANE = basic("jane", "correct horse")
STATUS = ("/", "/health", "/status")


def located(path: str) -> str:
    """Return a path of a route, with something for its variables."""
    for name in ("study", "series", "instance", "frames", "path:.+"):
        path = path.replace(f"{{{name}}}", "1")
    return path


# --- off by default ------------------------------------------------------------------------------------------


async def test_without_auth_everybody_may_do_as_before() -> None:
    """No header is looked at, however wrong; the cache can be emptied from this machine."""
    async with proxy_for(Address("DEAD", free_port()), use_cget=True) as proxy:
        for headers in (None, AS_JANE, {"Authorization": "nonsense"}):
            assert await status(proxy, headers) == 200
        assert await status(proxy, path="/cache", method="DELETE") == 200
        assert await status(proxy, path="/dimse/echo", method="POST", data=b"{}") == 200


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, ["auth.enabled is false"]),
        ({"webserverHost": "::"}, ["auth.enabled is false"]),
        ({"webserverHost": "proxy.example.org"}, ["auth.enabled is false"]),
        ({"auth": {"users": [JANE]}}, ["auth.enabled is false (what is set below it, users, has no effect)"]),
        ({"auth": {"allowedNetworks": ["10.0.0.0/8"]}}, []),
        ({"webserverHost": "127.0.0.1"}, []),
        ({"webserverHost": "127.1.2.3"}, []),
        ({"webserverHost": "::1"}, []),
        ({"webserverHost": "localhost"}, []),
        ({"auth": {"enabled": True, "users": [JANE]}}, ["in clear text"]),
        ({"auth": {"enabled": True, "users": [JANE]}, "ssl": {"enabled": True}}, []),
        ({"auth": {"enabled": True, "users": [JANE]}, "ssl": {"enabled": True, "redirectHttp": False}}, ["clear text"]),
        ({"auth": {"enabled": True, "users": [JANE]}, "trustedProxies": ["10.0.0.1"]}, []),
        ({"auth": {"enabled": True, "users": [JANE]}, "webserverHost": "127.0.0.1"}, []),
    ],
)
def test_what_is_said_at_the_start(changes: dict[str, object], warned: list[str]) -> None:
    """One warning where anybody on the network may use the proxy, or read what is signed in with; else none."""
    said = list(warnings_of(parse_config({**MINIMAL, **changes})))
    assert len(said) == len(warned)
    assert all(part in text for part, text in zip(warned, said, strict=True))


async def test_the_warning_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """And names address and port."""
    dead = Address("DEAD", free_port())
    async with proxy_for(dead, use_cget=True, webserverHost="0.0.0.0") as proxy:
        assert await status(proxy) == 200
    said = [record.getMessage() for record in caplog.records if "auth.enabled" in record.getMessage()]
    assert said == ["whoever can reach 0.0.0.0 port 0 can use the proxy: auth.enabled is false"]


# --- what is open --------------------------------------------------------------------------------------------


async def test_nothing_but_ping_is_open() -> None:
    """Every route, and what is no route at all, for every method; nobody learns which paths there are."""
    async with guarded({"users": [JANE]}) as proxy:
        assert await status(proxy, path=OPEN) == 200
        assert await status(proxy, path="//ping/") == 200
        for method, path, _ in ROUTES:
            if path != OPEN:
                assert await status(proxy, path=located(path), method=method) == 401, path
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "PROPFIND"):
            for path in ("/nowhere", "/ping/..", "/ping/x", "/studies/", "//studies", "/%70ing%2f..", "/metrics"):
                assert await status(proxy, path=path, method=method) == 401, (method, path)


async def test_open_status() -> None:
    """The status is open by GET, and nothing besides."""
    async with guarded({"users": [JANE], "openStatus": True}) as proxy:
        for path in STATUS:
            assert await status(proxy, path=path) in (200, 503)
            assert await status(proxy, path=path, method="POST") == 401
        for path in (PROTECTED, "/studies", "/status/x"):
            assert await status(proxy, path=path) == 401
        assert await status(proxy, path="/dimse/echo", method="POST") == 401
        assert await status(proxy, path="/cache", method="DELETE") == 401


async def test_the_open_status_is_that_of_all_archives() -> None:
    """Or a load balancer, which does not sign in, would take the proxy for one whose archives do not answer."""
    auth = {"enabled": True, "users": [{**JANE, "peers": []}], "openStatus": True}
    async with (
        DemoArchive(None) as archive,
        proxy_for(Address("DEMO", archive.port), use_cget=True, auth=auth) as proxy,
    ):
        code, _, body = await asked(proxy, path="/health")
        assert (code, [each["name"] for each in json.loads(body)["archives"]]) == (200, ["DEMO"])


async def test_the_status_is_of_the_archives_that_a_user_may_use() -> None:
    users = [{**JANE, "peers": []}, user("joe", "correct horse")]
    async with guarded({"users": users}) as proxy:
        for headers, names in ((AS_JANE, []), (basic("joe", "correct horse"), ["DEAD"])):
            _, _, body = await asked(proxy, headers, "/status")
            assert [each["name"] for each in json.loads(body)["archives"]] == names


async def test_status_with_sign_in() -> None:
    async with guarded({"users": [JANE]}) as proxy:
        for path in STATUS:
            assert await status(proxy, path=path) == 401
            assert await status(proxy, AS_JANE, path) in (200, 503)


async def test_preflights_are_never_asked_to_sign_in() -> None:
    """Browsers send no credentials with them. What only looks like one is asked."""
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    async with guarded({"users": [JANE]}, cors={"origin": ["https://pacsbin.com"]}) as proxy:
        whole = {"Origin": "https://pacsbin.com", **asks}
        code, headers, _ = await asked(proxy, whole, "/studies", "OPTIONS")
        assert (code, headers["Access-Control-Allow-Origin"]) == (200, "https://pacsbin.com")
        assert "authorization" in headers["Access-Control-Allow-Headers"].lower()
        for method, part in (("OPTIONS", {"Origin": "https://pacsbin.com"}), ("OPTIONS", asks), ("GET", whole)):
            assert await status(proxy, part, "/studies", method=method) == 401


# --- how to sign in ------------------------------------------------------------------------------------------


async def test_the_challenges() -> None:
    """Bearer first, and Basic where users are set: but not for what a page's script asks for, where it would open a
    dialog of the browser."""
    async with guarded({"users": [JANE]}, cors={"origin": ["https://pacsbin.com"]}) as proxy:
        for headers in ({}, {"Sec-Fetch-Mode": "navigate"}):
            code, answered, _ = await asked(proxy, headers)
            assert code == 401
            assert answered.getall("WWW-Authenticate") == [
                'Bearer realm="DICOMweb proxy"',
                'Basic realm="DICOMweb proxy", charset="UTF-8"',
            ]
        for headers in ({"Origin": "https://pacsbin.com"}, {"Sec-Fetch-Mode": "cors"}, {"Sec-Fetch-Mode": "no-cors"}):
            _, answered, _ = await asked(proxy, headers)
            assert challenges(answered) == ["Bearer"]
    async with guarded({"tokens": [token()]}) as proxy:
        _, answered, _ = await asked(proxy)
        assert challenges(answered) == ["Bearer"]


async def test_a_page_may_read_why_it_was_refused() -> None:
    """The answer has the CORS headers that any answer has."""
    async with guarded({"tokens": [token()]}, cors={"origin": ["https://pacsbin.com"]}) as proxy:
        code, headers, body = await asked(proxy, {"Origin": "https://pacsbin.com"}, "/studies")
        assert (code, headers["Access-Control-Allow-Origin"]) == (401, "https://pacsbin.com")
        assert headers["Content-Type"].startswith("application/json")
        assert b'"statusCode": 401' in body


async def test_a_body_is_not_read_before_signing_in() -> None:
    """A client that waits for 100 gets the 401 at once; one that does not is answered before its upload is in."""
    async with guarded({"users": [JANE]}) as proxy:
        reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
        head = 'POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; type="application/dicom"\r\n'
        writer.write(f"{head}Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer.lower()
        writer.close()
        await writer.wait_closed()


# --- rights --------------------------------------------------------------------------------------------------


async def test_what_each_right_is_for() -> None:
    """403, not 401, for somebody who is known; what needs no right is open to all who have signed in."""
    people = [
        user("reader", "reader's own"),
        user("writer", "writer's own", write=True),
        user("admin", "admin's own", admin=True),
    ]
    async with guarded({"users": people}) as proxy:
        for name, writes, administers in (("reader", 403, 403), ("writer", 415, 403), ("admin", 403, 200)):
            headers = basic(name, f"{name}'s own")
            assert await status(proxy, headers) == 200
            assert await status(proxy, headers, "/studies", method="OPTIONS") == 200
            assert await status(proxy, headers, "/studies", method="POST", data=b"x") == writes
            assert await status(proxy, headers, "/studies/1.2", method="POST", data=b"x") == writes
            for path in ("/cache", "/cache/studies/1.2"):
                assert await status(proxy, headers, path, method="DELETE") == administers
            assert await status(proxy, headers, "/dimse/echo", method="POST", data=b"{}") == administers
        _, answered, body = await asked(proxy, basic("reader", "reader's own"), "/cache", "DELETE")
        assert b"without the right needed here: admin" in body
        assert "WWW-Authenticate" not in answered


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get", ""])
def test_whatever_may_change_something_needs_a_right(method: str) -> None:
    """Any method but those that RFC 9110 calls safe, on any path: in dicomweb mode all are passed on."""
    assert needed_right(method, "/studies") == needed_right(method, "") == "write"
    assert needed_right(method, "/cache") == "admin"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_changes_nothing_needs_none(method: str) -> None:
    assert needed_right(method, "/cache") is needed_right(method, "/studies") is None


async def test_rights_in_dicomweb_mode(tmp_path: Path) -> None:
    """Whatever is passed on and may change something needs `write`; of what is refused the upstream hears nothing."""
    asked_upstream: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path != "/studies":  # which the proxy itself asks for, to know whether the upstream answers
            asked_upstream.append(f"{request.method} {request.path}")
        assert "Authorization" not in request.headers
        return web.json_response([])

    upstream = web.Application()
    upstream.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(upstream)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    url = f"http://{HOST}:{runner.addresses[0][1]}"
    config = {
        "proxyMode": "dicomweb",
        "dicomwebProxySettings": {"qidoForwardingUrl": url, "wadoForwardingUrl": url},
        "webserverHost": HOST,
        "webserverPort": 0,
        "storagePath": str(tmp_path),
        "auth": {"enabled": True, "users": [JANE, user("writer", "writer's own", write=True)]},
    }
    async with running(parse_config(config)) as where, aiohttp.ClientSession() as http:
        proxy = Proxy(f"http://{HOST}:{where.http_port}", http, None)
        for path in ("/studies", "/studies/1.2", "/ping/x", "/cache", "/anything"):
            for method in ("GET", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"):
                assert await status(proxy, None, path, method=method) == 401
                if method not in ("GET", "OPTIONS"):
                    assert await status(proxy, AS_JANE, path, method=method) == 403
        assert not asked_upstream
        assert await status(proxy, AS_JANE, "/studies/1.2") == 200
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert await status(proxy, basic("writer", "writer's own"), "/studies/1.2", method=method) == 200
        assert asked_upstream == [f"{each} /studies/1.2" for each in ("GET", "POST", "PUT", "DELETE", "PATCH")]
    await runner.cleanup()


# --- networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [False, True])
async def test_only_from_allowed_networks(enabled: bool) -> None:
    """Whether anybody has to sign in or not; `/ping` from everywhere. A preflight tells nothing of what is served."""
    for networks, code in ((["10.0.0.0/8"], 403), (["127.0.0.0/8"], 200), (["10.0.0.1", "127.0.0.1"], 200)):
        auth: dict[str, object] = {"enabled": enabled, "users": [JANE], "allowedNetworks": networks, "openStatus": True}
        async with guarded(auth) as proxy:
            assert await status(proxy, AS_JANE) == code
            assert await status(proxy, path=OPEN) == 200
            assert (await status(proxy, path="/status") == 403) is (code == 403)
            if code == 403:
                _, headers, body = await asked(proxy)
                assert "WWW-Authenticate" not in headers
                assert b"from this address" in body


async def test_networks_behind_a_reverse_proxy() -> None:
    """It is the client's address that counts, and nobody can claim to have another."""
    auth: dict[str, object] = {"enabled": False, "allowedNetworks": ["10.1.0.0/16", "2001:db8::/32"]}
    async with guarded(auth, trustedProxies=["127.0.0.1"]) as proxy:
        for forwarded, code in (
            ("10.1.2.3", 200),
            ("::ffff:10.1.2.3", 200),
            ("2001:db8::7", 200),
            ("10.2.2.3", 403),
            ("10.1.2.3, 192.0.2.1", 403),
            ("nonsense", 403),
            ("", 403),
        ):
            assert await status(proxy, {"X-Forwarded-For": forwarded}) == code, forwarded
    async with guarded(auth) as proxy:
        assert await status(proxy, {"X-Forwarded-For": "10.1.2.3"}) == 403


# --- several ways, and none ------------------------------------------------------------------------------------


async def test_any_way_will_do() -> None:
    """A user, and a program, each by its own; but not both in one request, nor the one in the form of the other."""
    async with guarded({"users": [JANE], "tokens": [token()]}) as proxy:
        assert await status(proxy, AS_JANE) == await status(proxy, bearer()) == 200
        assert await status(proxy, basic("uploader", TOKEN)) == 401
        assert await status(proxy, bearer("correct")) == 401
        for header in ("Digest username=jane", "Negotiate abc", "Basic", "Bearer", "jane", ""):
            assert await status(proxy, {"Authorization": header}) in (400, 401)


async def test_a_way_that_is_not_set_is_none() -> None:
    async with guarded({"tokens": [token()]}) as proxy:
        assert await status(proxy, AS_JANE) == 401
    async with guarded({"users": [JANE]}) as proxy:
        assert await status(proxy, bearer()) == 401


async def test_two_authorization_headers() -> None:
    """Programs in between may have looked at the other one: 400, also when both are right."""
    async with guarded({"users": [JANE], "tokens": [token()]}) as proxy:
        both = [*AS_JANE.items(), *bearer().items()]
        async with proxy.http.get(PROTECTED, headers=both) as response:
            assert response.status == 400


async def test_the_token_is_taken_from_the_header_only() -> None:
    """Addresses end up in logs and histories (RFC 6750 5.3)."""
    async with guarded({"tokens": [token()]}) as proxy:
        assert await status(proxy, path=f"{PROTECTED}?access_token={TOKEN}") == 401


# --- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("secret"), OSError(5, "secret"), KeyError("secret")], ids=repr)
async def test_a_failure_within_lets_nobody_through(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without a word of what it was."""

    async def broken(*_: object) -> Any:
        raise error

    async with guarded({"users": [JANE]}) as proxy:
        monkeypatch.setattr(ways.Ways, "identify", broken)
        code, _, body = await asked(proxy, AS_JANE)
        assert code == 500
        assert b"secret" not in body


async def test_credentials_are_in_no_log_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Neither right nor wrong ones, whatever becomes of them, down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    secrets = ("correct horse", "wrong battery", TOKEN, "anotherTokenThatIsWrong", "a.b.c", "cGxhaW4")
    answers = []
    async with guarded({"users": [JANE], "tokens": [token()]}) as proxy:
        tries = [AS_JANE, bearer(), bearer("anotherTokenThatIsWrong"), bearer("a.b.c"), bearer("cGxhaW4\x80")]
        tries += [basic("jane", f"wrong battery {number}") for number in range(12)]
        tries += [{"Authorization": "Basic cGxhaW4"}, {"Authorization": f"Other {TOKEN}"}]
        for headers in tries:
            code, answered, body = await asked(proxy, headers, "/status" if headers is AS_JANE else PROTECTED)
            answers.append(f"{code} {dict(answered)} {body!r}")
    said = caplog.text + "\n".join(answers)
    encoded = [headers["Authorization"].partition(" ")[2] for headers in tries]
    for secret in (*secrets, *encoded):
        assert secret not in said, secret


# --- the configuration that is not there ----------------------------------------------------------------------


async def test_status_tells_nothing_of_auth() -> None:
    async with guarded({"users": [JANE], "tokens": [token()]}) as proxy:
        _, _, body = await asked(proxy, AS_JANE, "/status")
        assert b"argon2" not in body
        assert str(token()["tokenHash"]).encode() not in body


def test_hashes_are_in_no_repr_of_a_problem() -> None:
    """A password where its hash should be is not repeated by `check-config`."""
    (problem,) = problems_of(having("auth", {"users": [{"name": "jane", "passwordHash": "correct horse"}]}))
    assert "correct horse" not in problem
    assert "hash-password" in problem


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "signed_in", "may"),
    [
        (None, True, True),
        ("https://pacsbin.com", True, True),
        ("https://evil.example", True, False),
        ("null", True, False),
        ("https://evil.example", False, False),
        ("https://pacsbin.com", False, True),
    ],
)
async def test_a_page_of_elsewhere_cannot_use_what_the_browser_sends_by_itself(
    origin: str | None, signed_in: bool, may: bool
) -> None:
    """A request like a form's comes without a preflight, and with the password that the browser remembers."""
    auth = {"enabled": signed_in, "users": [user("jane", "correct horse", admin=True)]}
    headers = {**(AS_JANE if signed_in else {}), "Content-Type": "text/plain"}
    if origin is not None:
        headers["Origin"] = origin
    async with guarded(auth, cors={"origin": ["pacsbin.com"]}) as proxy:
        assert await status(proxy, headers, path="/cache", method="DELETE") == (200 if may else 403)
        assert await status(proxy, headers, path="/conformance") == 200, "what changes nothing is not readable to it"


async def test_the_proxy_s_own_page_and_the_wildcard() -> None:
    """The wildcard lets all pages in, but none of them with somebody's password."""
    auth = {"users": [user("jane", "correct horse", admin=True)], "tokens": [token(admin=True)]}
    async with guarded(auth, cors={"origin": "*"}) as proxy:
        for headers, expected in ((AS_JANE, 403), (bearer(), 200)):
            more = {**headers, "Origin": "https://anywhere.example"}
            assert await status(proxy, more, path="/cache", method="DELETE") == expected
        assert await status(proxy, {**AS_JANE, "Origin": proxy.url}, path="/cache", method="DELETE") == 200
    async with proxy_for(Address("DEAD", free_port()), use_cget=True) as proxy:
        headers = {"Origin": "https://anywhere.example"}
        assert await status(proxy, headers, path="/cache", method="DELETE") == 200
