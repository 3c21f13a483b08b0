"""The configuration: what existing files mean, what each default is, and what a wrong file is told.

Expected values are written out here from the published table of keys, not taken from the schema.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.charset import python_encoding

from proxy import config_schema
from proxy.config import (
    MISSING,
    Config,
    ConfigError,
    ConfigProblem,
    Peer,
    find_config,
    load_config,
    parse_config,
)
from proxy.dataset.charset import Encodings, encodings_of

Raw = dict[str, Any]

PUBLISHED_SHAPE = """\
{
  "proxyMode": "dimse", // or "dicomweb"

  // Used in dicomweb mode only.
  "dicomwebProxySettings": {
    "qidoForwardingUrl": "https://qido.example.com/qido",
    "wadoForwardingUrl": "https://wado.example.com/wado"
  },
  /* Used in dimse mode,
     with one peer or more. */
  "dimseProxySettings": {
    "proxyServer": { "aet": "PROXY_AE", "ip": "0.0.0.0", "port": 8888 },
    "peers": [
      { "aet": "ARCHIVE", "ip": "127.0.0.1", "port": 11112 }
    ]
  },
  "storagePath": "./data",
  "cacheRetentionMinutes": 60,
  "enableCache": false, // for testing
  "webserverPort": 3006,
  "useCget": true,
  "qidoMinChars": 0,
  "qidoAppendWildcard": true,
  "ssl": {
    "enabled": false,
    "port": 443,
    "certPath": "/opt/certs/server.crt",
    "keyPath": "/opt/certs/server.key",
    "generateSelfSigned": false,
    "redirectHttp": true
  },
  "cors": {
    // "origin": ["https://pacsbin.com"],
    "origin": ["pacsbin.com"],
    "methods": ["GET", "POST", "PUT", "DELETE", "OPTIONS"],
    "allowedHeaders": ["Content-Type", "Authorization", "Accept"],
    "credentials": true
  }
}
"""

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
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return [str(problem) for problem in caught.value.problems]


def peer_of(raw: Raw, index: int = 0) -> Peer:
    dimse = parse_config(raw).dimse
    assert dimse is not None
    return dimse.peers[index]


def load(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "config.jsonc"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def reason_of(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.path == tmp_path / "config.jsonc"
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    return caught.value.reason


class TestExistingFiles:
    def test_file_of_the_published_shape_means_what_it_says(self, tmp_path: Path) -> None:
        config = load(tmp_path, PUBLISHED_SHAPE)
        assert config.proxy_mode == "dimse"
        assert config.dimse is not None
        assert config.dicomweb is not None
        assert (config.dimse.proxy_server.aet, config.dimse.proxy_server.port) == ("PROXY_AE", 8888)
        assert [(peer.aet, peer.ip, peer.port) for peer in config.dimse.peers] == [("ARCHIVE", "127.0.0.1", 11112)]
        assert config.dimse.peers[0].use_cget is True
        assert config.enable_cache is False
        assert config.ssl.cert_path == Path("/opt/certs/server.crt")
        assert config.ssl.redirect_http is False
        assert config.cors.allowed_origins == ("https://pacsbin.com", "http://pacsbin.com")
        assert config.unsupported == ()
        assert config.warnings == ("cacheRetentionMinutes: has no effect in this version",)

    def test_json5_is_read(self, tmp_path: Path) -> None:
        text = """{
            proxyMode: 'dimse',
            dimseProxySettings: {
                proxyServer: {aet: 'PROXY', ip: '::', port: 0x1F90,},
                peers: [{aet: "A", ip: "pacs", port: 104,},],
            },
            qidoMinChars: +3,
        }"""
        config = load(tmp_path, text)
        assert config.dimse is not None
        assert config.dimse.proxy_server.port == 8080
        assert config.qido_min_chars == 3

    @pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
    def test_plain_json_is_read_with_windows_line_ends_too(self, tmp_path: Path, prefix: bytes) -> None:
        text = json.dumps(MINIMAL, indent=2).replace("\n", "\r\n").encode()
        assert load(tmp_path, prefix + text) == parse_config(MINIMAL)

    def test_key_given_twice_is_warned_of_and_the_last_one_counts(self, tmp_path: Path) -> None:
        text = PUBLISHED_SHAPE.replace('// "origin"', '"origin"').replace('"PROXY_AE"', '"X", "aet": "PROXY_AE"')
        config = load(tmp_path, text)
        assert config.cors.origin == ("pacsbin.com",)
        assert "cors.origin: given more than once, only the last counts" in config.warnings
        assert "dimseProxySettings.proxyServer.aet: given more than once, only the last counts" in config.warnings

    def test_settings_of_the_other_mode_may_be_present_and_are_checked(self) -> None:
        other = {"qidoForwardingUrl": "https://q.example/qido/", "wadoForwardingUrl": "ftp://w.example"}
        (problem,) = problems_of(having("dicomwebProxySettings", other))
        assert problem == (
            'dicomwebProxySettings.wadoForwardingUrl: "ftp://w.example" is not allowed; '
            "must be an http or https URL without user, query or fragment"
        )

    @pytest.mark.parametrize("empty", [{}, None], ids=["{}", "null"])
    def test_empty_section_of_the_other_mode_is_as_good_as_absent(self, empty: object) -> None:
        assert parse_config(having("dicomwebProxySettings", empty)).dicomweb is None

    def test_forwarding_urls_keep_their_base_path_and_may_be_equal(self) -> None:
        url = "https://dicomweb.example:8443/a/b/"
        raw = {
            "proxyMode": "dicomweb",
            "dicomwebProxySettings": {"qidoForwardingUrl": url, "wadoForwardingUrl": url},
            "dimseProxySettings": {},
        }
        config = parse_config(raw)
        assert config.dimse is None
        assert config.dicomweb is not None
        assert config.dicomweb.qido_forwarding_url == "https://dicomweb.example:8443/a/b"
        assert config.dicomweb.qido_forwarding_url == config.dicomweb.wado_forwarding_url


class TestDefaults:
    @pytest.mark.parametrize(
        ("attribute", "expected"),
        [
            ("webserver_port", 3006),
            ("webserver_host", "0.0.0.0"),
            ("public_url", None),
            ("storage_path", Path("./data")),
            ("cache_retention_minutes", 60),
            ("enable_cache", True),
            ("cache_max_size_mb", 10240),
            ("use_cget", False),
            ("use_fetch_level", "SERIES"),
            ("max_associations", 4),
            ("qido_min_chars", 0),
            ("qido_append_wildcard", True),
            ("ssl.enabled", False),
            ("ssl.port", 443),
            ("ssl.cert_path", Path("/opt/dicomweb-proxy/certs/server.crt")),
            ("ssl.key_path", Path("/opt/dicomweb-proxy/certs/server.key")),
            ("ssl.generate_self_signed", False),
            ("ssl.redirect_http", False),
            ("cors.origin", ("*",)),
            ("cors.methods", ("GET", "POST", "PUT", "DELETE", "OPTIONS")),
            ("cors.allowed_headers", ("Content-Type", "Authorization", "Accept")),
            ("cors.credentials", True),
            ("log_dir", None),
            ("log_level", "INFO"),
            ("shutdown_seconds", 20),
            ("dicomweb", None),
            ("warnings", ()),
            ("unsupported", ()),
        ],
    )
    def test_key_left_out(self, attribute: str, expected: object) -> None:
        value: Any = parse_config(MINIMAL)
        for part in attribute.split("."):
            value = getattr(value, part)
        assert value == expected

    def test_redirect_is_on_by_default_where_https_is(self) -> None:
        assert parse_config(having("ssl", {"enabled": True})).ssl.redirect_http is True
        assert parse_config(having("ssl", {"enabled": True, "redirectHttp": False})).ssl.redirect_http is False

    def test_peer_left_out(self) -> None:
        peer = peer_of(MINIMAL)
        assert peer.name == "ARCHIVE"
        assert peer.local_aet == "PROXY"
        assert peer.max_associations == 4
        assert peer.use_cget is False
        assert peer.store_aets == ()
        assert peer.default_character_set is None
        assert peer.timeouts.model_dump() == {
            "connect": 5, "associate": 5, "release": 5, "response": 30, "idle": 300, "retrieve": 300,
        }  # fmt: skip

    def test_peer_takes_what_it_leaves_out_from_the_settings_above(self) -> None:
        raw = having("maxAssociations", 7) | {"useCget": True}
        raw["dimseProxySettings"]["timeouts"] = {"connect": 2, "idle": 60}
        raw["dimseProxySettings"]["peers"].append(
            {
                "aet": "SECOND", "ip": "pacs.example.org", "port": 104, "name": "Second archive",
                "localAet": "OTHER", "maxAssociations": 4, "useCget": False, "timeouts": {"idle": 300},
            }
        )  # fmt: skip
        first, second = peer_of(raw, 0), peer_of(raw, 1)
        assert (first.max_associations, first.use_cget, first.local_aet) == (7, True, "PROXY")
        assert (first.timeouts.connect, first.timeouts.idle, first.timeouts.response) == (2, 60, 30)
        # What a peer sets itself stays, though it be equal to a default.
        assert (second.max_associations, second.use_cget, second.local_aet) == (4, False, "OTHER")
        assert (second.timeouts.connect, second.timeouts.idle, second.timeouts.response) == (2, 300, 30)
        assert (first.name, second.name) == ("ARCHIVE", "Second archive")

    def test_configuration_cannot_be_changed(self) -> None:
        config = parse_config(MINIMAL)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, "webserver_port", 1)  # noqa: B010 - the type checker would refuse it earlier
        assert hash(config.dimse) == hash(parse_config(MINIMAL).dimse)


GOOD_AND_BAD: list[tuple[str, list[object], list[object]]] = [
    ("proxyMode", ["dimse"], ["DIMSE", "", 1, None, MISSING]),
    ("dimseProxySettings", [], [None, [], "x", {}, MISSING]),
    ("dimseProxySettings.proxyServer", [], [None, [], "PROXY", MISSING]),
    ("dimseProxySettings.proxyServer.aet", ["A" * 16, " PAD "], ["", " ", "A" * 17, "A\\B", "Ä", "A\n", 1, MISSING]),
    ("dimseProxySettings.proxyServer.ip", ["::1", "localhost"], ["", "a b", None, MISSING]),
    ("dimseProxySettings.proxyServer.port", [0, 1, 65535], [-1, 65536, "104", 1.0, True, None, MISSING]),
    ("dimseProxySettings.peers", [], [[], {}, "x", None, MISSING]),
    ("dimseProxySettings.peers.0", [], ["x", [], None]),
    ("dimseProxySettings.peers.0.aet", ["A B", "~"], ["", "A" * 17, None, MISSING]),
    (
        "dimseProxySettings.peers.0.ip",
        ["10.0.0.1", "fe80::1%eth0", "pacs", "pacs.example.", "3com.example", "a" * 63, "x-1"],
        ["", "300.1.1.1", "10.0.0", "-a", "a-", "a_b", "a..b", "a" * 64, "http://a", "a:1", "[::1]", "a\n", 1, MISSING],
    ),
    ("dimseProxySettings.peers.0.port", [1, 65535], [0, 65536, "104", 104.5, True, 10**400, MISSING]),
    ("dimseProxySettings.peers.0.name", ["Archive, main site"], ["", " ", "a\nb", "x" * 65, 1, None]),
    ("dimseProxySettings.peers.0.localAet", ["OTHER"], ["", "A\\B", None]),
    ("dimseProxySettings.peers.0.maxAssociations", [1, 1000], [0, 1001, "4", True, None]),
    ("dimseProxySettings.peers.0.useCget", [True, False], ["true", 1, None]),
    ("dimseProxySettings.peers.0.storeAets", [[], ["A", "B"]], ["A", {}, None]),
    (
        "dimseProxySettings.peers.0.defaultCharacterSet",
        [None, "ISO_IR 100", "ISO_IR 192", "GB18030", "\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87"],
        ["", "latin-1", "ISO_IR 100\\ISO 2022 IR 87", "ISO 2022 IR 87\\", "ISO_IR 192\\GBK", 100],
    ),
    ("dimseProxySettings.peers.0.timeouts", [{}], [5, [], None]),
    (
        "dimseProxySettings.peers.0.timeouts.connect",
        [0.5, 86400],
        [0, -1, 86401, float("inf"), float("nan"), "5", True],
    ),
    ("dimseProxySettings.timeouts", [{}], [5, None]),
    ("dimseProxySettings.timeouts.connect", [1, 0.1], [0, "1", None]),
    ("dimseProxySettings.timeouts.associate", [1, 0.1], [0, "1", None]),
    ("dimseProxySettings.timeouts.release", [1, 0.1], [0, "1", None]),
    ("dimseProxySettings.timeouts.response", [1, 0.1], [0, "1", None]),
    ("dimseProxySettings.timeouts.idle", [1, 0.1], [0, "1", None]),
    ("dimseProxySettings.timeouts.retrieve", [1, 0.1], [0, "1", None]),
    ("dicomwebProxySettings", [None], [[], "https://a", 1]),
    ("webserverPort", [0, 1, 65535], [-1, 65536, "3006", 3006.0, True, None]),
    ("webserverHost", ["127.0.0.1", "::", "localhost"], ["", "*", "0.0.0.0:80", None]),
    (
        "publicUrl",
        [None, "http://a", "https://a.example:8443/dicom-web", "http://[::1]:3006", "HTTPS://A"],
        ["", "https://a/", "a.example", "ftp://a", "https://", "https://a?x", "https://a#x", "https://a:0",
         "https://a:", "https://a:70000", "https://a b", "https://::1", "https://[::1", "https://[a]", "https://u:p@a",
         "https://a\n", "https://a\\b", 1],
    ),
    ("storagePath", ["/var/lib/x", "data"], ["", " ", "a\0b", 1, None]),
    ("cacheRetentionMinutes", [0, 0.5, 525600], [-1, "60", True, float("inf"), None]),
    ("enableCache", [True, False], ["false", 0, None]),
    ("cacheMaxSizeMB", [1, 10**6], [0, 1.5, "10", None]),
    ("useCget", [True, False], ["yes", 1, None]),
    ("useFetchLevel", ["STUDY", "SERIES", "IMAGE"], ["series", "INSTANCE", "", None]),
    ("maxAssociations", [1, 1000], [0, 1001, 1.5, "4", None]),
    ("qidoMinChars", [0, 3], [-1, 1.5, "3", None]),
    ("qidoAppendWildcard", [True, False], ["true", None]),
    ("ssl", [{}], [True, [], None]),
    ("ssl.enabled", [False], ["false", 0, None]),
    ("ssl.port", [1, 65535], [0, 65536, "443", None]),
    ("ssl.certPath", ["relative while disabled", "/c"], ["", 1, None]),
    ("ssl.keyPath", ["relative while disabled", "/k"], ["", 1, None]),
    ("ssl.generateSelfSigned", [True], ["no", None]),
    ("ssl.redirectHttp", [True, False], ["no", None]),
    ("cors", [{}], ["*", [], None]),
    (
        "cors.origin",
        ["*", "pacsbin.com", "https://pacsbin.com", "http://localhost:80", "http://[::1]:80", "::1", [], ["*", "a.b"]],
        ["", "null", "https://pacsbin.com/", "pacsbin.com/x", " pacsbin.com", "a b", "a.b:80", "*.b", "ftp://a",
         "https://*.b", "https://u@a", "//a", "fe80::1%eth0", 1, None, {}],
    ),
    ("cors.methods", [["GET", "patch"], []], ["GET", {}, None]),
    ("cors.allowedHeaders", [["X-Own"], []], ["Accept", {}, None]),
    ("cors.credentials", [True, False], ["true", 1, None]),
    ("logDir", [None, "/var/log/x"], ["", 1, []]),
    ("logLevel", ["DEBUG", "INFO", "WARNING", "ERROR"], ["debug", "TRACE", 10, None]),
    ("shutdownSeconds", [0, 0.5, 3600], [-1, 3601, "20", float("nan"), None]),
]  # fmt: skip


def shown_path(path: str) -> str:
    parts = path.split(".")
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).removeprefix(".")


def known_keys(schema: Raw, path: str = "") -> Iterator[str]:
    """List the keys of the JSON schema that pydantic derives, as dotted paths with 0 for a list's index."""
    root = config_schema.Config.model_json_schema()["$defs"]
    for key, value in schema["properties"].items():
        yield path + key
        text = json.dumps(value)
        for name, definition in root.items():
            if f'"#/$defs/{name}"' in text:
                yield from known_keys(definition, f"{path}{key}.0." if "items" in value else f"{path}{key}.")


class TestEachKey:
    @pytest.mark.parametrize(
        ("path", "value"), [(path, value) for path, good, _ in GOOD_AND_BAD for value in good], ids=repr
    )
    def test_accepts(self, path: str, value: object) -> None:
        parse_config(having(path, value))

    @pytest.mark.parametrize(
        ("path", "value"), [(path, value) for path, _, bad in GOOD_AND_BAD for value in bad], ids=ascii
    )
    def test_refuses_and_names_the_key_the_value_and_what_is_allowed(self, path: str, value: object) -> None:
        messages = problems_of(having(path, value))
        if value == {} and path == "dimseProxySettings":
            # An empty object lacks its keys, and those are what is named.
            assert all(message.startswith(shown_path(path)) for message in messages)
            return
        (message,) = messages
        complaint = "required key is missing" if value is MISSING else "is not allowed"
        assert message.startswith(f"{shown_path(path)}: ")
        assert f"{complaint}; must be " in message
        assert "\n" not in message

    def test_table_above_covers_every_key(self) -> None:
        schema = config_schema.Config.model_json_schema()
        tested = {path for path, *_ in GOOD_AND_BAD}
        untested = {key for key in known_keys(schema) if key not in tested}
        # These share their types with keys that the table has, or have tests of their own.
        shared = [f"dimseProxySettings.peers.0.timeouts.{key}" for key in ("associate", "release", "response", "idle")]
        shared += ["dimseProxySettings.peers.0.timeouts.retrieve"]
        shared += [f"dicomwebProxySettings.{key}" for key in ("qidoForwardingUrl", "wadoForwardingUrl")]
        assert untested == set(shared)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (
                "dimseProxySettings.peers.0.port",
                70000,
                "dimseProxySettings.peers[0].port: 70000 is not allowed; must be a whole number from 1 to 65535",
            ),
            (
                "dimseProxySettings.peers.0.aet",
                MISSING,
                "dimseProxySettings.peers[0].aet: required key is missing; must be an AE title: 1 to 16 printable "
                "ASCII characters, without backslash",
            ),
            ("proxyMode", MISSING, 'proxyMode: required key is missing; must be "dimse" or "dicomweb"'),
            ("useCget", "yes", 'useCget: "yes" is not allowed; must be true or false'),
            ("useCget", None, "useCget: null is not allowed; must be true or false"),
            (
                "dimseProxySettings.peers",
                {},
                "dimseProxySettings.peers: an object is not allowed; must be a list of at least one object with "
                "aet, ip and port",
            ),
            (
                "dimseProxySettings.peers",
                [],
                "dimseProxySettings.peers: a list is not allowed; must be a list of at least one object with "
                "aet, ip and port",
            ),
            (
                "dimseProxySettings.proxyServer.port",
                MISSING,
                "dimseProxySettings.proxyServer.port: required key is missing; must be a whole number from 1 to "
                "65535, or 0 for any free port, since C-MOVE needs a listener",
            ),
            (
                "dimseProxySettings.peers.0.storeAets",
                ["GOOD", ""],
                'dimseProxySettings.peers[0].storeAets[1]: "" is not allowed; must be an AE title: 1 to 16 '
                "printable ASCII characters, without backslash",
            ),
            (
                "cors.origin",
                ["*", "pacsbin.com/x"],
                'cors.origin[1]: "pacsbin.com/x" is not allowed; must be "*", a host such as "pacsbin.com", or an '
                'origin such as "https://pacsbin.com", without path',
            ),
            ("cors.methods", ["GET", "A B"], 'cors.methods[1]: "A B" is not allowed; must be an HTTP method'),
            (
                "cors.allowedHeaders",
                ["X: y\r\nEvil"],
                'cors.allowedHeaders[0]: "X: y\\r\\nEvil" is not allowed; must be the name of an HTTP header',
            ),
        ],
    )
    def test_words_of_the_message(self, path: str, value: object, message: str) -> None:
        assert problems_of(having(path, value)) == [message]

    def test_ae_titles_lose_the_spaces_around_them(self) -> None:
        raw = having("dimseProxySettings.peers.0.storeAets", ["  SCU  "])
        assert peer_of(having("dimseProxySettings.peers.0.aet", " ARCHIVE  ", raw)).aet == "ARCHIVE"
        assert peer_of(raw).store_aets == ("SCU",)

    def test_character_sets_can_all_be_decoded(self) -> None:
        terms = config_schema._SINGLE_CHARACTER_SETS | config_schema._EXTENSION_CHARACTER_SETS
        unknown = Encodings("unknown")
        assert [term for term in terms if encodings_of(term, unknown) == unknown] == []
        # pydicom does not know Latin alphabet No. 9 yet.
        assert {term for term in terms if not term.endswith("203")} <= python_encoding.keys()

    def test_password_in_a_url_is_not_repeated(self) -> None:
        for url in ("https://user:secret@host/x", "https://secret@host/x", "user:sec/ret secret@host/x"):
            (message,) = problems_of(having("publicUrl", url))
            assert "secret" not in message
            assert "host/x" in message

    def test_long_value_is_cut(self) -> None:
        (message,) = problems_of(having("logLevel", "x" * 5000))
        assert len(message) < 200


class TestBetweenKeys:
    def test_every_problem_of_a_file_is_reported_at_once(self) -> None:
        raw: Raw = {
            "proxyMode": "dimse",
            "webserverPort": 8888,
            "publicUrl": "nonsense",
            "dimseProxySettings": {
                "proxyServer": {"aet": "", "port": 8888},
                "peers": [
                    {"aet": "A", "ip": "pacs", "port": 104},
                    {"aet": "B", "ip": "pacs"},
                    {"aet": "A ", "ip": "PACS", "port": 104, "timeouts": {"idle": 0}},
                    "C",
                ],
            },
            "ssl": {"enabled": True, "port": 8888, "certPath": "c.crt", "keyPath": "k.key"},
            "cors": {"origin": ["a/b", "*"], "credentials": "yes"},
            "webserverprt": 1,
        }
        with pytest.raises(ConfigError) as caught:
            parse_config(raw, source=Path("config.jsonc"))
        assert sorted(problem.key for problem in caught.value.problems) == [
            "cors.credentials",
            "cors.origin[0]",
            "dimseProxySettings.peers[1].port",
            "dimseProxySettings.peers[2]",
            "dimseProxySettings.peers[2].timeouts.idle",
            "dimseProxySettings.peers[3]",
            "dimseProxySettings.proxyServer.aet",
            "dimseProxySettings.proxyServer.ip",
            "dimseProxySettings.proxyServer.port",
            "publicUrl",
            "ssl.certPath",
            "ssl.keyPath",
            "ssl.port",
        ]
        assert caught.value.path == Path("config.jsonc")
        lines = str(caught.value).splitlines()
        assert lines[0] == "config.jsonc: 13 problems"
        assert [line.strip() for line in lines[1:14]] == [str(problem) for problem in caught.value.problems]
        assert lines[14:] == ["  warning: webserverprt: unknown key, ignored; did you mean webserverPort?"]

    @pytest.mark.parametrize(
        ("changes", "clashing"),
        [
            ({"webserverPort": 8888}, ["dimseProxySettings.proxyServer.port"]),
            ({"dimseProxySettings.proxyServer.port": 3006}, ["dimseProxySettings.proxyServer.port"]),
            ({"webserverPort": 8888, "useCget": True}, []),
            ({"webserverPort": 8888, "dimseProxySettings.peers.0.useCget": True}, []),
            (
                {"webserverPort": 8888, "useCget": True, "dimseProxySettings.peers.0.useCget": False},
                ["dimseProxySettings.proxyServer.port"],
            ),
            ({"webserverPort": 443}, []),
            ({"webserverPort": 443, "ssl.enabled": True}, ["ssl.port"]),
            ({"webserverPort": 443, "ssl.enabled": True, "useCget": True}, ["ssl.port"]),
            ({"ssl.enabled": True, "ssl.port": 8888}, ["dimseProxySettings.proxyServer.port"]),
            ({"ssl.enabled": False, "ssl.port": 8888}, []),
            ({"webserverPort": 0, "dimseProxySettings.proxyServer.port": 0}, []),
        ],
    )
    def test_ports_that_are_listened_on_must_differ(self, changes: Raw, clashing: list[str]) -> None:
        raw = MINIMAL
        for path, value in changes.items():
            raw = having(path, value, raw)
        if clashing:
            assert [message.partition(":")[0] for message in problems_of(raw)] == clashing
        else:
            parse_config(raw)

    def test_port_clash_names_both_keys(self) -> None:
        assert problems_of(having("webserverPort", 8888)) == [
            "dimseProxySettings.proxyServer.port: 8888 is not allowed; must be a port other than that of webserverPort"
        ]

    def test_listener_may_be_left_out_where_no_peer_is_asked_with_c_move(self) -> None:
        raw = having("dimseProxySettings.proxyServer", {"aet": "PROXY"}) | {"useCget": True}
        assert parse_config(raw).uses_cmove is False
        mixed = having("dimseProxySettings.peers.0.useCget", False, raw)
        assert [message.partition(":")[0] for message in problems_of(mixed)] == [
            "dimseProxySettings.proxyServer.ip",
            "dimseProxySettings.proxyServer.port",
        ]

    def test_c_move_is_used_as_soon_as_one_peer_wants_it(self) -> None:
        assert parse_config(MINIMAL).uses_cmove is True
        raw = having("useCget", True)
        raw["dimseProxySettings"]["peers"].append({"aet": "B", "ip": "b", "port": 1, "useCget": False})
        assert parse_config(raw).uses_cmove is True

    @pytest.mark.parametrize(
        ("second", "equal"),
        [
            ({"aet": "ARCHIVE", "ip": "PACS.example.org", "port": 104}, True),
            ({"aet": "ARCHIVE", "ip": "pacs.example.org", "port": 105}, False),
            ({"aet": "archive", "ip": "pacs.example.org", "port": 104}, False),
            ({"aet": "ARCHIVE", "ip": "pacs2.example.org", "port": 104}, False),
        ],
    )
    def test_no_peer_is_listed_twice(self, second: Raw, equal: bool) -> None:
        raw = copy.deepcopy(MINIMAL)
        raw["dimseProxySettings"]["peers"].append(second)
        if not equal:
            parse_config(raw)
            return
        assert problems_of(raw) == [
            'dimseProxySettings.peers[1]: "ARCHIVE, PACS.example.org, 104" is not allowed; '
            "must be a peer that differs from peers[0] in aet, ip or port"
        ]

    @pytest.mark.parametrize("key", ["certPath", "keyPath"])
    def test_paths_must_be_absolute_once_https_is_enabled(self, key: str) -> None:
        assert problems_of(having("ssl", {"enabled": True, key: "server.pem"})) == [
            f'ssl.{key}: "server.pem" is not allowed; must be an absolute path, since ssl.enabled is true'
        ]

    def test_dicomweb_mode_needs_its_own_section(self) -> None:
        assert problems_of({"proxyMode": "dicomweb"}) == [
            "dicomwebProxySettings: required key is missing; "
            "must be an object with qidoForwardingUrl and wadoForwardingUrl"
        ]
        messages = problems_of({"proxyMode": "dicomweb", "dicomwebProxySettings": {}})
        assert [message.partition(": ")[0] for message in messages] == [
            "dicomwebProxySettings.qidoForwardingUrl",
            "dicomwebProxySettings.wadoForwardingUrl",
        ]


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("*", ("*",)),
            ("Pacsbin.com", ("https://pacsbin.com", "http://pacsbin.com")),
            ("HTTPS://Pacsbin.com:443", ("https://pacsbin.com",)),
            ("http://pacsbin.com:443", ("http://pacsbin.com:443",)),
            ("http://[0:0::1]:3000", ("http://[::1]:3000",)),
            ("::1", ("https://[::1]", "http://[::1]")),
            (["a.b", "https://a.b", "https://c.d"], ("https://a.b", "http://a.b", "https://c.d")),
            ([], ()),
        ],
    )
    def test_origins_are_given_as_browsers_send_them(self, origin: object, allowed: tuple[str, ...]) -> None:
        assert parse_config(having("cors.origin", origin)).cors.allowed_origins == allowed


class TestKeysWithoutEffect:
    @pytest.mark.parametrize(
        ("path", "warning"),
        [
            ("webserverprt", "webserverprt: unknown key, ignored; did you mean webserverPort?"),
            ("UseCGet", "UseCGet: unknown key, ignored; did you mean useCget?"),
            ("xyzzy", "xyzzy: unknown key, ignored"),
            ("redirectHttp", "redirectHttp: unknown key, ignored; did you mean ssl.redirectHttp?"),
            ("warnings", "warnings: unknown key, ignored"),
            ("use_cget", "use_cget: unknown key, ignored; did you mean useCget?"),
            ("ssl.certpath", "ssl.certpath: unknown key, ignored; did you mean certPath?"),
            ("cors.orgin", "cors.orgin: unknown key, ignored; did you mean origin?"),
            ("dimseProxySettings.peer", "dimseProxySettings.peer: unknown key, ignored; did you mean peers?"),
            (
                "dimseProxySettings.maxAssociations",
                "dimseProxySettings.maxAssociations: unknown key, ignored; "
                "did you mean maxAssociations at the top of the file?",
            ),
            (
                "dimseProxySettings.proxyServer.AET",
                "dimseProxySettings.proxyServer.AET: unknown key, ignored; did you mean aet?",
            ),
            (
                "dimseProxySettings.peers.0.prot",
                "dimseProxySettings.peers[0].prot: unknown key, ignored; did you mean port?",
            ),
            (
                "dimseProxySettings.peers.0.timeouts.conect",
                "dimseProxySettings.peers[0].timeouts.conect: unknown key, ignored; did you mean connect?",
            ),
            ("a\nb", '"a\\nb": unknown key, ignored'),
        ],
    )
    def test_unknown_key_is_a_warning_with_the_nearest_known_key(self, path: str, warning: str) -> None:
        assert parse_config(having(path, {"password": "secret"})).warnings == (warning,)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("enableCache", True),
            ("cacheRetentionMinutes", 60),
            ("cacheMaxSizeMB", 10240),
            ("useFetchLevel", "SERIES"),
        ],
    )
    def test_key_of_a_later_version_is_a_warning_where_it_is_given(self, key: str, value: object) -> None:
        assert parse_config(having(key, value)).warnings == (f"{key}: has no effect in this version",)

    def test_cache_that_is_switched_off_needs_no_warning(self) -> None:
        assert parse_config(having("enableCache", False)).warnings == ()

    def test_https_is_valid_but_not_in_this_version(self) -> None:
        (problem,) = parse_config(having("ssl.enabled", True)).unsupported
        assert problem == ConfigProblem("ssl.enabled", True, "false: HTTPS is not in this version")
        assert str(problem) == ("ssl.enabled: true is not allowed; must be false: HTTPS is not in this version")

    def test_dicomweb_mode_is_valid_but_not_in_this_version(self) -> None:
        urls = {"qidoForwardingUrl": "https://q", "wadoForwardingUrl": "https://w"}
        (problem,) = parse_config({"proxyMode": "dicomweb", "dicomwebProxySettings": urls}).unsupported
        assert problem.key == "proxyMode"
        assert "forwarding to a DICOMweb server is not in this version" in str(problem)


class TestFindingTheFile:
    NAMES = ("config.json", "config.jsonc", "config/config.json", "config/config.jsonc")

    @pytest.fixture
    def places(self, tmp_path: Path) -> list[Path]:
        places = [tmp_path / base / name for base in ("cwd", "install") for name in self.NAMES]
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("{}")
        return places

    def test_places_are_tried_in_the_published_order(self, tmp_path: Path, places: list[Path]) -> None:
        for place in places:
            assert find_config(None, cwd=tmp_path / "cwd", install_dir=tmp_path / "install") == place
            place.unlink()
        with pytest.raises(ConfigError) as caught:
            find_config(None, cwd=tmp_path / "cwd", install_dir=tmp_path / "install")
        assert str(caught.value).splitlines() == [
            "configuration: no configuration file found; searched:",
            *(f"  {place}" for place in places),
        ]

    def test_path_of_the_command_line_counts_alone(self, tmp_path: Path, places: list[Path]) -> None:
        own = tmp_path / "own.json5"
        own.write_text("{}")
        assert find_config(own, cwd=tmp_path / "cwd", install_dir=tmp_path / "install") == own
        assert find_config(Path("../own.json5"), cwd=tmp_path / "cwd").samefile(own)
        missing = tmp_path / "missing.json"
        with pytest.raises(ConfigError) as caught:
            find_config(missing, cwd=tmp_path / "cwd", install_dir=tmp_path / "install")
        assert caught.value.path == missing
        assert str(places[0]) not in str(caught.value)

    def test_directory_of_that_name_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").mkdir()
        (tmp_path / "config.jsonc").write_text("{}")
        assert find_config(None, cwd=tmp_path, install_dir=tmp_path) == tmp_path / "config.jsonc"

    def test_place_that_cannot_be_looked_at_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"\(File name too long\)"):
            find_config(Path("x" * 300), cwd=tmp_path)


class TestReadingTheFile:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ('{\n  "proxyMode": "dimse"\n  "useCget": true\n}', "line 3, column 3"),
            ('{\r\n  "proxyMode": "dimse,\r\n}', "line 2, column 23"),
            ('\ufeff{"proxyMode": dimse}', "line 1, column 15"),
            ('{"peers": [1, 2', "line 1, column 16"),
            ("{} /* never closed", "line 1, column 19"),
        ],
    )
    def test_error_of_syntax_gives_line_and_column(self, tmp_path: Path, text: str, where: str) -> None:
        reason = reason_of(tmp_path, text)
        assert reason.startswith(f"is not JSON, JSONC or JSON5 near {where}: ")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "is empty"),
            (" \n", "is empty"),
            ("[1]", "must hold one object in braces { }, not a list"),
            ("null", "must hold one object in braces { }, not null"),
            (b'{\n "logDir": "\xe4"}', "is not UTF-8 text at line 2, column 13"),
            (b"\xef\xbb\xbf\xff", "is not UTF-8 text at line 1, column 1"),
            ("[" * 100_000, "has objects or lists nested too deeply"),
            ("{}" + " " * 1024 * 1024, "is larger than 1048576 bytes, so not a configuration file"),
        ],
        ids=["empty", "blank", "list", "null", "latin-1", "bom", "deep", "large"],
    )
    def test_what_is_no_configuration_is_told(self, tmp_path: Path, text: str | bytes, reason: str) -> None:
        assert reason_of(tmp_path, text) == reason

    def test_number_too_long_to_be_read_is_told(self, tmp_path: Path) -> None:
        assert "near line" in reason_of(tmp_path, '{"webserverPort": ' + "9" * 5000 + "}")

    def test_file_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load_config(tmp_path)

    def test_problems_name_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, '{"proxyMode": "dimse"}')
        assert str(caught.value).startswith(f"{tmp_path / 'config.jsonc'}: 1 problem\n")

    def test_reader_of_json5_is_loaded_only_for_a_file(self) -> None:
        code = "import sys, proxy.config; print('json5' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


class TestAnythingAtAll:
    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(st.sampled_from([path for path, *_ in GOOD_AND_BAD]), JSON, max_size=4))
    def test_any_content_gives_a_configuration_or_plain_words(self, values: Raw) -> None:
        raw = MINIMAL
        # The deepest first: having() needs the parents of a key to be as they were.
        for path, value in sorted(values.items(), key=lambda item: -item[0].count(".")):
            raw = having(path, value, raw)
        try:
            parse_config(raw)
        except ConfigError as error:
            text = str(error)
            assert not any(word in text for word in ("pydantic", "Input should", "Value error", "validation"))
            assert len(text.split("\n")) == 1 + len(error.problems) + len(error.warnings)


def test_dicom_tls_of_existing_files_is_refused_and_not_dropped_silently() -> None:
    raw = having("dimseProxySettings.proxyServer.securityOptions", {"key": "/etc/key.pem"})
    (problem,) = parse_config(raw).unsupported
    assert problem.key == "dimseProxySettings.proxyServer.securityOptions"
    assert "DICOM TLS is not in this version" in str(problem)
