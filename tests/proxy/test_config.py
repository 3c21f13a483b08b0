"""The configuration: what existing files mean, and what each default is.

Expected values are written out here from the published table of keys, not taken from the schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.config.checking import parse_config
from tests.proxy.configs import MINIMAL, Raw, having, load, peer_of, problems_of

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
        assert config.storage_path == Path("./data")
        assert config.ssl.cert_path == Path("/opt/certs/server.crt")
        assert config.ssl.redirect_http is False
        assert config.cors.allowed_origins == ("https://pacsbin.com", "http://pacsbin.com")
        assert config.unsupported == ()
        assert config.warnings == ()

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
            ("store_to", "ARCHIVE"),
            ("max_upload_mb", 4096),
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
            "connect": 5, "associate": 5, "release": 5, "response": 30, "idle": 300, "retrieve": 300, "nearline": 1800,
        }  # fmt: skip
        assert (peer.query_model, peer.sequential, peer.uncompressed) == ("STUDY", False, False)
        assert (peer.store_hosts, peer.tls) == ((), None)

    def test_c_stores_are_taken_from_known_hosts_alone_unless_the_file_says_otherwise(self) -> None:
        raw = having("dimseProxySettings.proxyServer.checkStoreHost", False)
        for given, expected in ((MINIMAL, True), (raw, False)):
            dimse = parse_config(given).dimse
            assert dimse is not None
            assert dimse.proxy_server.check_store_host is expected

    def test_tls_towards_a_peer_that_is_left_empty(self) -> None:
        """The system's authorities, no certificate of our own, and a name in the archive's is not asked for."""
        tls = peer_of(having("dimseProxySettings.peers.0.tls", {}, having("useCget", True))).tls
        assert tls is not None
        assert tls.model_dump() == {"ca_file": None, "cert_file": None, "key_file": None, "check_hostname": False}

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, True),
            ({"enableCache": False}, False),
            ({"cacheRetentionMinutes": 0}, False),
            ({"cacheRetentionMinutes": 0.1}, True),
        ],
    )
    def test_no_cache_without_retention(self, changes: Raw, expected: bool) -> None:
        assert parse_config({**MINIMAL, **changes}).uses_cache is expected

    def test_peer_takes_what_it_leaves_out_from_the_settings_above(self) -> None:
        raw = having("maxAssociations", 7) | {"useCget": True}
        raw["dimseProxySettings"]["timeouts"] = {"connect": 2, "idle": 60, "nearline": 7200}
        raw["dimseProxySettings"]["peers"].append(
            {
                "aet": "SECOND", "ip": "pacs.example.org", "port": 104, "name": "Second archive",
                "localAet": "OTHER", "maxAssociations": 4, "useCget": False, "timeouts": {"idle": 300},
            }
        )  # fmt: skip
        first, second = peer_of(raw, 0), peer_of(raw, 1)
        assert (first.max_associations, first.use_cget, first.local_aet) == (7, True, "PROXY")
        assert (first.timeouts.connect, first.timeouts.idle, first.timeouts.response) == (2, 60, 30)
        assert first.timeouts.nearline == 7200
        # What a peer sets itself stays, though it be equal to a default.
        assert (second.max_associations, second.use_cget, second.local_aet) == (4, False, "OTHER")
        assert (second.timeouts.connect, second.timeouts.idle, second.timeouts.response) == (2, 300, 30)
        assert (first.name, second.name) == ("ARCHIVE", "Second archive")

    def test_configuration_cannot_be_changed(self) -> None:
        config = parse_config(MINIMAL)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, "webserver_port", 1)  # noqa: B010 - the type checker would refuse it earlier
        assert hash(config.dimse) == hash(parse_config(MINIMAL).dimse)


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
