"""The keys below `auth` and their rules; and the libraries and files that they need, as the commands see them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.config.checking import parse_config
from proxy.security.auth.errors import MissingLibraryError
from proxy.security.auth.middleware import check_access_settings
from proxy.service import StartError, running
from tests.peers.process import Address
from tests.proxy.command import write_config
from tests.proxy.configs import MINIMAL, Raw, having, problems_of
from tests.proxy.running import settings
from tests.proxy.signing_in import OTHER_RSA_KEY, jwk, token, user

JANE = user("jane", "correct horse")
PROVIDER: Raw = {"issuer": "https://id.example.org/realms/x", "audience": "proxy"}
FORWARDING = {"qidoForwardingUrl": "https://pacs.example.com", "wadoForwardingUrl": "https://pacs.example.com"}


def having_auth(auth: Raw, base: Raw = MINIMAL) -> Raw:
    """Return a configuration with these keys below `auth`."""
    return having("auth", auth, base)


# --- rules between keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [{}, {"users": []}, {"users": [], "tokens": [], "certificates": [], "jwt": None}])
def test_somebody_must_be_able_to_sign_in(empty: Raw) -> None:
    assert problems_of(having_auth({"enabled": True, **empty})) == [
        "auth.enabled: true is not allowed; must be false, or one of users, tokens, jwt, certificates set, so that "
        "somebody can sign in"
    ]
    parse_config(having_auth({"enabled": False, **empty}))


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("users[0]", {"users": [{**JANE, "peers": ["ARCHIVE", "OTHER"]}]}),
        ("tokens[1]", {"tokens": [token(), token("b", "c", peers=["ARCHIVE", "OTHER"])]}),
        ("certificates[0]", {"certificates": [{"name": "x", "peers": ["ARCHIVE", "OTHER"]}]}),
        ("jwt", {"jwt": {**PROVIDER, "peers": ["ARCHIVE", "OTHER"]}}),
    ],
    ids=["users", "tokens", "certificates", "jwt"],
)
def test_peers_must_be_there(key: str, entry: Raw) -> None:
    """By the names that they have with or without `name`; in dicomweb mode there are none, so nothing may be limited
    to any."""
    assert problems_of(having_auth(entry)) == [
        f'auth.{key}.peers[1]: "OTHER" is not allowed; must be the name of a peer: "ARCHIVE"'
    ]
    raw = having_auth(entry)
    raw["dimseProxySettings"]["peers"].append({"aet": "X", "name": "OTHER", "ip": "10.0.0.9", "port": 104})
    parse_config(raw)
    forwarding = having_auth(entry, {"proxyMode": "dicomweb", "dicomwebProxySettings": FORWARDING})
    assert problems_of(forwarding) == [
        f"auth.{key}.peers: a list is not allowed; must be left out, since there are no peers in dicomweb mode"
    ]


def test_no_peers_are_no_peers() -> None:
    """An empty list allows none, `null` all: the one must not become the other."""
    auth = parse_config(having_auth({"users": [{**JANE, "peers": []}, user("bob", "x", peers=None)]})).auth
    assert [each.peers for each in auth.users] == [(), None]


@pytest.mark.parametrize(
    ("auth", "messages"),
    [
        (
            {"users": [JANE, user("bob", "x"), user("jane", "y")]},
            ['auth.users[2].name: "jane" is not allowed; must be another than that of users[0]'],
        ),
        (
            {"users": [user("Zoë", "x"), user("Zoe\u0308", "y")]},
            ['auth.users[1].name: "Zoe\u0308" is not allowed; must be another than that of users[0]'],
        ),
        (
            {"tokens": [token("a", "x"), token("a", "y")]},
            ['auth.tokens[1].name: "a" is not allowed; must be another than that of tokens[0]'],
        ),
        (
            {"certificates": [{"name": "a"}, {"name": "a"}]},
            ['auth.certificates[1].name: "a" is not allowed; must be another than that of certificates[0]'],
        ),
        ({"users": [JANE], "tokens": [token("jane")]}, []),
    ],
)
def test_names_tell_people_apart(auth: Raw, messages: list[str]) -> None:
    if messages:
        assert problems_of(having_auth(auth)) == messages
    else:
        parse_config(having_auth(auth))


def test_one_token_is_nobody_elses() -> None:
    """And its hash is not repeated."""
    first, second = token("a", "x"), token("b", "x")
    second["tokenHash"] = str(second["tokenHash"]).upper()
    (problem,) = problems_of(having_auth({"tokens": [first, second]}))
    assert problem.startswith("auth.tokens[1].tokenHash: ")
    assert problem.endswith("must be another than that of tokens[0]")
    assert str(second["tokenHash"]) not in problem


def test_certificates_need_https_that_asks_for_them() -> None:
    auth = {"enabled": True, "certificates": [{"name": "a"}]}
    assert problems_of(having_auth(auth)) == [
        "ssl.enabled: required key is missing; must be true, since auth.certificates is set",
        "ssl.clientCaFile: required key is missing; must be a path, since auth.certificates is set",
    ]
    parse_config(having("ssl", {"enabled": True, "clientCaFile": "/etc/ca.pem"}, having_auth(auth)))
    parse_config(having_auth({**auth, "enabled": False}))


@pytest.mark.parametrize(
    ("issuer", "usable"),
    [
        ("https://id.example.org", True),
        ("https://id.example.org/realms/x/", True),
        ("http://127.0.0.1:8080/realms/x", True),
        ("http://localhost:8080", True),
        ("http://id.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("https://id.example.org?x=1", False),
        ("https://user:pass@id.example.org", False),
        ("id.example.org", False),
    ],
)
def test_keys_are_fetched_by_https(issuer: str, usable: bool) -> None:
    """From where the issuer is, unless the file says where else; on loopback http will do."""
    raw = having_auth({"jwt": {"issuer": issuer, "audience": "x"}})
    if usable:
        parse_config(raw)
    else:
        (problem,) = problems_of(raw)
        assert problem.startswith("auth.jwt.issuer: ")
        assert "since neither jwksUrl nor jwksFile is set" in problem
        assert "pass" not in problem
    for other in ({"jwksUrl": "https://id.example.org/certs?p=x"}, {"jwksFile": "/etc/keys.json"}):
        parse_config(having_auth({"jwt": {"issuer": issuer, "audience": "x", **other}}))


# --- what is not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "auth", "message"),
    [
        (
            "argon2",
            {"users": [JANE]},
            "passwords (key: auth.users) need argon2-cffi, which comes with the extra auth: pip install '.[auth]'",
        ),
        (
            "jwt",
            {"jwt": PROVIDER},
            "tokens of an identity provider (key: auth.jwt) need PyJWT, which comes with the extra auth: "
            "pip install '.[auth]'",
        ),
    ],
    ids=["argon2", "jwt"],
)
async def test_a_library_that_is_missing(
    library: str,
    auth: Raw,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`check-config` says which extra has it, and the proxy does not start; where it is not needed all is well."""
    monkeypatch.setitem(sys.modules, library, None)
    raw = settings(Address("PACS", 104), useCget=True, auth={"enabled": True, **auth})
    assert main(["check-config", "--config", str(write_config(tmp_path, raw))]) == 3
    assert capsys.readouterr().err == message + "\n"
    with pytest.raises(StartError) as caught:
        async with running(parse_config(raw)):
            pass
    assert str(caught.value) == message
    check_access_settings(parse_config({**raw, "auth": {"enabled": False, **auth}}))
    check_access_settings(parse_config({**raw, "auth": {"enabled": True, "tokens": [token()]}}))
    if library == "argon2":
        with pytest.raises(MissingLibraryError):
            check_access_settings(parse_config(raw))
        monkeypatch.setattr("sys.stdin", (tmp_path / "config.json").open())
        assert main(["hash-password"]) == 3
        sys.stdin.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("nonsense", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no set of keys: it has no list named keys"),
        ('{"keys": {}}', "is no set of keys: it has no list named keys"),
        ('{"keys": []}', "holds no key that can verify signatures"),
        ('{"keys": [1, null, {"kty": "oct", "k": "AAAA"}]}', "holds no key that can verify signatures"),
    ],
)
def test_a_file_of_keys_that_holds_none(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with key and path."""
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    raw = settings(Address("PACS", 104), auth={"enabled": True, "jwt": {**PROVIDER, "jwksFile": str(path)}})
    assert main(["check-config", "--config", str(write_config(tmp_path, raw))]) == 2
    assert capsys.readouterr().err == f"auth.jwt.jwksFile: {path} {said}\n"


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), ("nonsense", "holds no PEM certificate")])
def test_a_file_of_authorities_that_holds_none(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    raw = settings(Address("PACS", 104), auth={"enabled": True, "jwt": {**PROVIDER, "caFile": str(path)}})
    assert main(["check-config", "--config", str(write_config(tmp_path, raw))]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"auth.jwt.caFile: {path}: ")
    assert said in shown


def test_a_valid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all ways at once; no hash is shown."""
    keys = tmp_path / "keys.json"
    keys.write_text(f'{{"keys": [{str(jwk(OTHER_RSA_KEY, "one")).replace(chr(39), chr(34))}]}}')
    auth = {"enabled": True, "users": [JANE], "tokens": [token()], "jwt": {**PROVIDER, "jwksFile": str(keys)}}
    assert main(["check-config", "--config", str(write_config(tmp_path, settings(Address("A", 1), auth=auth)))]) == 0
    shown = capsys.readouterr()
    assert "argon2" not in shown.out + shown.err
    assert str(token()["tokenHash"]) not in shown.out + shown.err
