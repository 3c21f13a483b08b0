"""The keys of dicomweb mode: what they may be, the files and variables that they name, and what is never shown."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from proxy.cli import main
from proxy.config.checking import parse_config
from proxy.config.errors import ConfigError
from proxy.forward.errors import UpstreamSettingsError
from proxy.forward.settings import authorization, check_settings
from proxy.service import StartError, running
from tests.dul import certificates
from tests.peers.process import HOST, free_port
from tests.proxy.command import command, program, write_config
from tests.proxy.forwarding import forward_settings, forward_to, recorder

SECRET = "s3cr3t-Of-The-Archive"
URL = "https://pacs.example.org/dicom-web"
KEY = "dicomwebProxySettings.credentials"


def credentials_of(**keys: object) -> str | None:
    """Return the header for some credentials."""
    config = parse_config(forward_settings(URL, forward={"credentials": keys}))
    assert config.dicomweb is not None
    return authorization(config.dicomweb.credentials)


def problem_with(**keys: object) -> str:
    """Return what is wrong with the keys of credentials."""
    with pytest.raises(ConfigError) as caught:
        parse_config(forward_settings(URL, forward={"credentials": keys}))
    (problem,) = caught.value.problems
    return str(problem)


# --- the keys ------------------------------------------------------------------------------------------------


def test_dicomweb_mode_is_there() -> None:
    config = parse_config(forward_settings(URL))
    assert config.unsupported == ()
    assert config.dicomweb is not None
    assert config.dicomweb.rewrite_urls
    assert config.dicomweb.credentials is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, f"{KEY}.secretFile: required key is missing; must be a path, unless secretVariable is given"),
        (
            {"username": "a"},
            f"{KEY}.secretFile: required key is missing; must be a path, unless secretVariable is given",
        ),
        (
            {"secretFile": "/a", "secretVariable": "B"},
            f'{KEY}.secretVariable: "B" is not allowed; must be left out, since secretFile is given',
        ),
        (
            {"username": "a:b", "secretFile": "/a"},
            f'{KEY}.username: "a:b" is not allowed; must be a text without colon and control characters',
        ),
        (
            {"secretVariable": "not a name"},
            f'{KEY}.secretVariable: "not a name" is not allowed; must be the name of an environment variable, or null',
        ),
    ],
)
def test_credentials_that_cannot_be(keys: Mapping[str, object], said: str) -> None:
    """Just one place for the secret, and a name that can be sent (RFC 7617 2)."""
    assert problem_with(**keys) == said


@pytest.mark.parametrize("url", ["https://user:pass@pacs.example.org", "ftp://x", "https://x?a=b", "https://x#y", ""])
def test_urls_that_cannot_be(url: str) -> None:
    """No user and password above all, which would be in every log line and on the status page."""
    with pytest.raises(ConfigError) as caught:
        parse_config(forward_settings(url))
    assert "pass" not in str(caught.value).replace("password", "")
    assert len(caught.value.problems) == 2


# --- secrets -------------------------------------------------------------------------------------------------


def test_a_password_or_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file or a variable, without the line break that editors put at its end; of the rest, every character."""
    secret = tmp_path / "secret"
    for content in (b"abc.DEF-_~+/==", b"abc.DEF-_~+/==\n", b"abc.DEF-_~+/==\r\n"):
        secret.write_bytes(content)
        assert credentials_of(secretFile=str(secret)) == "Bearer abc.DEF-_~+/=="
    secret.write_text(" pä:ss \n")
    assert credentials_of(username="me", secretFile=str(secret)) == "Basic bWU6IHDDpDpzcyA="
    monkeypatch.setenv("THE_SECRET", "x")
    assert credentials_of(secretVariable="THE_SECRET") == "Bearer x"
    assert credentials_of(username="m", secretVariable="THE_SECRET") == "Basic bTp4"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"s3cr3t\nOther", "holds line breaks or control characters within the secret"),
        (b"s3cr3t\x00", "holds line breaks or control characters within the secret"),
        (b"s3cr3t with spaces", "holds no bearer token: letters, digits and any of ._~+/-= only"),
        (b"s3cr3t\xff", "is no text in UTF-8"),
        (b"s3cr3t" * 10_000, "is larger than 16384 bytes, which no secret is"),
    ],
)
def test_a_secret_that_cannot_be_used(tmp_path: Path, content: bytes | None, said: str) -> None:
    """The message says where it was looked for and why it will not do, and never what it is."""
    secret = tmp_path / "file"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(UpstreamSettingsError) as caught:
        credentials_of(secretFile=str(secret))
    assert str(caught.value) == f"{secret} (key: {KEY}.secretFile) {said}"


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    with pytest.raises(UpstreamSettingsError, match=r"^the environment variable NO_SUCH_SECRET .* is not set$"):
        credentials_of(secretVariable="NO_SUCH_SECRET")
    monkeypatch.setenv("NO_SUCH_SECRET", "")
    with pytest.raises(UpstreamSettingsError, match=r"is empty$"):
        credentials_of(secretVariable="NO_SUCH_SECRET")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read: No such file or directory"), (b"no PEM", "holds no PEM certificate")]
)
def test_authorities_that_cannot_be_used(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    config = parse_config(forward_settings(URL, forward={"caFile": str(path)}))
    assert config.dicomweb is not None
    with pytest.raises(UpstreamSettingsError) as caught:
        check_settings(config.dicomweb)
    assert str(caught.value) == f"{path} (key: dicomwebProxySettings.caFile) {said}"


# --- commands ------------------------------------------------------------------------------------------------


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where requests go, and no secret."""
    (tmp_path / "secret").write_text(SECRET)
    signing_in = {"credentials": {"username": "proxy", "secretFile": str(tmp_path / "secret")}}
    path = write_config(tmp_path, forward_settings(URL, forward=signing_in))
    assert main(["check-config", "--config", str(path)]) == 0
    assert capsys.readouterr().out == f"the configuration is valid: dicomweb mode, forwards to {URL}\n"
    path = write_config(tmp_path, forward_settings(f"{URL}/q", f"{URL}/w", forward=signing_in))
    assert main(["check-config", "--config", str(path)]) == 0
    said = f"the configuration is valid: dicomweb mode, forwards searches to {URL}/q, all else to {URL}/w\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", ["run", "check-config", "echo"])
def test_a_secret_that_is_not_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration is wrong: exit code 2."""
    signing_in = {"credentials": {"secretFile": str(tmp_path / "none")}}
    path = write_config(tmp_path, forward_settings(URL, forward=signing_in))
    assert main([name, "--config", str(path)]) == 2
    assert f"{tmp_path / 'none'} (key: {KEY}.secretFile) cannot be read" in capsys.readouterr().err


async def test_a_start_without_its_secret(tmp_path: Path) -> None:
    """Whoever starts it in a program of their own is told, too."""
    settings = forward_settings(URL, forward={"credentials": {"secretFile": str(tmp_path / "none")}})
    with pytest.raises(StartError, match="cannot be read"):
        async with running(parse_config(settings)):
            pass


async def test_echo(tmp_path: Path) -> None:
    """Whether the servers answer, one line for each; exit code 1 when one does not."""
    async with recorder() as upstream:
        dead = free_port()
        both = write_config(tmp_path, forward_settings(upstream.url, f"http://{HOST}:{dead}"))
        one = write_config(tmp_path, forward_settings(upstream.url), "one.json")
        with_both = await command("echo", "--config", str(both), cwd=tmp_path)
        with_one = await command("echo", "--config", str(one), cwd=tmp_path)
    assert (with_one.code, with_one.out, with_one.err) == (0, f"{upstream.url}: answers\n", "")
    assert with_both.code == 1
    assert with_both.out.splitlines() == [
        f"{upstream.url}: answers",
        f"http://{HOST}:{dead}: no connection to {HOST} port {dead}: Connection refused",
    ]


async def test_no_secret_is_shown_anywhere(tmp_path: Path) -> None:
    """Not in the log, on the page, in `/status`, nor in an error; not even when the upstream repeats it."""
    (tmp_path / "secret").write_text(SECRET)
    signing_in = {
        "credentials": {"secretFile": str(tmp_path / "secret")},
        "timeouts": {"connect": 0.3, "response": 0.3},
    }
    pki = certificates.make(tmp_path)
    shown = b""
    with socket.create_server((HOST, 0)) as silent:
        silent_url = f"http://{HOST}:{silent.getsockname()[1]}"
        for name, upstream in (("dead", f"http://{HOST}:{free_port()}"), ("silent", silent_url)):
            folder = tmp_path / name
            forward = {**signing_in, "caFile": str(pki.authority)}
            path = write_config(folder, forward_settings(upstream, forward=forward, logLevel="DEBUG"))
            async with program("run", "--config", str(path), folder=folder) as proxy:
                async with aiohttp.ClientSession(proxy.url) as http:
                    for target in ("/studies?PatientName=Doe", "/status", "/health", "/"):
                        async with http.get(target) as response:
                            shown += await response.read()
                shown += proxy.log().encode()
    assert b"no connection to" in shown
    assert b"did not answer in time" in shown
    for secret in (SECRET, "Doe", "Traceback"):
        assert secret.encode() not in shown


# --- what is said of it --------------------------------------------------------------------------------------


async def test_status_and_page() -> None:
    """Where requests go, and whether it answers: for programs and for people."""
    async with recorder() as qido, forward_to(qido.url, f"http://{HOST}:{(dead := free_port())}") as proxy:
        async with proxy.http.get("/status") as response:
            state = json.loads(await response.read())
            assert response.status == 200
        assert (state["status"], state["proxyMode"], state["requests"]) == ("unhealthy", "dicomweb", 0)
        assert state["upstreams"] == [
            {"url": qido.url, "up": True, "lastError": None},
            {
                "url": f"http://{HOST}:{dead}",
                "up": False,
                "lastError": f"no connection to {HOST} port {dead}: Connection refused",
            },
        ]
        assert not {"archives", "cache", "retrievals"} & set(state)
        async with proxy.http.get("/") as response:
            page = await response.text()
        assert f'<code>{qido.url}</code><td class="up">answers<td>none' in page
        assert f'<code>http://{HOST}:{dead}</code><td class="down">does not answer<td>no connection' in page
        assert "AE title" not in page
