"""Signing in by a client certificate: over TLS, with certificates that OpenSSL's command makes."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.app import errors
from proxy.config.checking import parse_config
from proxy.config.security import CertificateUser
from proxy.security.auth.certificates import Certificates
from proxy.security.auth.middleware import check_access, set_up_access
from proxy.security.clients import TRUSTED_PROXIES
from proxy.security.identity import identity_of
from tests.peers.process import HOST, Address, free_port, require_program
from tests.proxy.configs import MINIMAL
from tests.proxy.running import proxy_for
from tests.proxy.signing_in import basic, bearer, token, user


class Authority:
    """Certificates made by OpenSSL's command, in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._openssl = require_program("openssl", "openssl")
        self._folder = folder
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._run("req", "-x509", *self._new_key(self._key), "-subj", f"/CN={name}", "-out", self.certificate)

    def sign(self, subject: str, alternatives: str = "", days: int = 2) -> tuple[Path, Path]:
        """Make a certificate and its key; `alternatives` is a subjectAltName."""
        stem = f"{len(list(self._folder.iterdir()))}"
        request, key = self._folder / f"{stem}.csr", self._folder / f"{stem}.key"
        certificate, extensions = self._folder / f"{stem}.pem", self._folder / f"{stem}.ext"
        extensions.write_text(f"subjectAltName={alternatives}\n" if alternatives else "")
        self._run("req", *self._new_key(key), "-utf8", "-subj", subject, "-out", request)
        signing = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", str(days))
        self._run("x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", certificate)
        return certificate, key

    @staticmethod
    def _new_key(path: Path) -> tuple[object, ...]:
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path

    def _run(self, *arguments: object) -> None:
        line = [self._openssl, *map(str, arguments)]
        subprocess.run(line, check=True, capture_output=True, timeout=10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the clients' certificates, and of the server's."""
    return Authority(tmp_path_factory.mktemp("authority"), "hospital")


@contextlib.asynccontextmanager
async def https(authority: Authority, auth: dict[str, object]) -> AsyncIterator[str]:
    """Serve over TLS what says who has asked, behind access control; asks for certificates. Gives the URL."""

    async def who(request: web.Request) -> web.Response:
        identity = identity_of(request)
        assert identity is not None
        return web.json_response({"name": identity.name, "kind": identity.kind, "write": identity.write})

    ssl_keys = {"enabled": True, "clientCaFile": str(authority.certificate)}
    config = parse_config({**MINIMAL, "ssl": ssl_keys, "auth": {"enabled": True, **auth}})
    app = web.Application(middlewares=[errors, check_access])
    app[TRUSTED_PROXIES] = ()
    app.router.add_get("/who", who)
    set_up_access(app, config)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(*authority.sign("/CN=proxy", f"IP:{HOST}"))
    await web.TCPSite(runner, HOST, 0, ssl_context=context).start()
    try:
        yield f"https://{HOST}:{runner.addresses[0][1]}/who"
    finally:
        await runner.cleanup()


async def ask(
    url: str, authority: Authority, shown: tuple[Path, Path] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Ask with a certificate, or without one."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if shown is not None:
        context.load_cert_chain(*shown)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as http, http.get(url, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("subject", "alternatives", "name"),
    [
        ("/CN=Workstation 7", "", "Workstation 7"),
        ("/O=Hospital/CN=Zoë Müller", "", "Zoë Müller"),
        ("/O=Hospital/CN=x/emailAddress=Jane@Example.org", "", "jane@example.org"),
        ("/CN=x", "email:jane@example.org", "jane@example.org"),
        ("/O=x", "DNS:other.example.org, DNS:Gateway.example.org", "gateway.example.org"),
        ("/CN=first/CN=second", "", "second"),
    ],
)
async def test_each_kind_of_name(authority: Authority, subject: str, alternatives: str, name: str) -> None:
    """Common name, e-mail address and DNS name; the latter two in any case."""
    shown = authority.sign(subject, alternatives)
    async with https(authority, {"certificates": [{"name": "nobody"}, {"name": name, "write": True}]}) as url:
        for _ in range(2):
            assert await ask(url, authority, shown) == (200, {"name": name, "kind": "certificate", "write": True})


@pytest.mark.parametrize(
    ("subject", "alternatives"),
    [
        ("/CN=jane", ""),
        ("/CN=Jane2", ""),
        ("/O=Jane", ""),
        ("/CN=x", "URI:Jane"),
        ("/CN=x", "DNS:*.example.org"),
        ("/CN=GATEWAY.EXAMPLE.ORG", ""),
    ],
)
async def test_names_that_are_another(authority: Authority, subject: str, alternatives: str) -> None:
    """401: that the certificate is good is not enough."""
    shown = authority.sign(subject, alternatives)
    async with https(authority, {"certificates": [{"name": "Jane"}, {"name": "gateway.example.org"}]}) as url:
        code, answer = await ask(url, authority, shown)
        assert (code, answer["error"]) == (401, "sign in to use this proxy")


async def test_without_a_certificate(authority: Authority) -> None:
    """401 where there is no other way, and the others where there are."""
    auth = {"certificates": [{"name": "Jane"}], "users": [user("bob", "battery staple")], "tokens": [token()]}
    async with https(authority, auth) as url:
        assert (await ask(url, authority))[0] == 401
        assert (await ask(url, authority, headers=basic("bob", "battery staple")))[1]["kind"] == "basic"
        assert (await ask(url, authority, headers=bearer()))[1]["kind"] == "token"


async def test_a_certificate_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    """TLS itself refuses it, and one that has expired: there is no answer at all."""
    other = Authority(tmp_path, "hospital")
    async with https(authority, {"certificates": [{"name": "Jane"}]}) as url:
        for shown in (other.sign("/CN=Jane"), authority.sign("/CN=Jane", days=-1)):
            with pytest.raises((aiohttp.ClientError, OSError)):
                await ask(url, authority, shown)


async def test_beside_a_header(authority: Authority) -> None:
    """The header decides, also when it is wrong; one of a kind that is not set does not count."""
    shown = authority.sign("/CN=Jane")
    auth = {"certificates": [{"name": "Jane"}], "users": [user("bob", "battery staple")]}
    async with https(authority, auth) as url:
        assert (await ask(url, authority, shown, basic("bob", "battery staple")))[1]["name"] == "bob"
        assert (await ask(url, authority, shown, basic("bob", "wrong")))[0] == 401
        assert (await ask(url, authority, shown, bearer()))[1]["name"] == "Jane"


async def test_over_the_proxys_own_https(authority: Authority, tmp_path: Path) -> None:
    """With its rights, and beside it what is open; the audit tells who was refused."""
    certificate, key = authority.sign("/CN=proxy", f"IP:{HOST}", days=30)
    port, record = free_port(), tmp_path / "audit.jsonl"
    files = {"certPath": certificate, "keyPath": key, "clientCaFile": authority.certificate}
    more: dict[str, Any] = {
        "ssl": {"enabled": True, "port": port, **{name: str(path) for name, path in files.items()}},
        "auth": {"enabled": True, "certificates": [{"name": "Jane", "write": True}, {"name": "Bob"}]},
        "audit": {"file": str(record)},
    }
    async with proxy_for(Address("DEAD", free_port()), use_cget=True, **more):
        for subject, expected in (("/CN=Jane", (200, 415)), ("/CN=Bob", (200, 403)), ("/CN=Eve", (401, 401))):
            context = ssl.create_default_context(cafile=authority.certificate)
            context.load_cert_chain(*authority.sign(subject))
            connector = aiohttp.TCPConnector(ssl=context)
            async with aiohttp.ClientSession(f"https://{HOST}:{port}", connector=connector) as http:
                async with http.get("/conformance") as read, http.post("/studies", data=b"x") as written:
                    assert (read.status, written.status) == expected
                async with http.get("/ping") as response:
                    assert response.status == 200
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {line["claimed"] for line in lines if line.get("status") == 401} == {"Eve"}
    assert {"Jane", "Bob"} <= {line.get("user") for line in lines}


def test_what_python_says_of_certificates() -> None:
    """None without TLS, and an empty one where the client has shown none."""
    certificates = Certificates([CertificateUser(name="Jane"), CertificateUser(name="second", admin=True)])
    assert certificates.identify(None) is certificates.identify({}) is None
    both = {"subject": ((("commonName", "second"),), (("commonName", "Jane"),))}
    identity = certificates.identify(both)
    assert identity is not None
    assert identity.name == "Jane"
