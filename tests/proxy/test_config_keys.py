"""Each key of the configuration by itself: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.charset import python_encoding

from proxy.config import types
from proxy.config.checking import parse_config
from proxy.config.errors import MISSING, ConfigError
from proxy.config.schema import Config
from proxy.dataset.charset import Encodings, encodings_of
from tests.proxy.configs import Raw, having, peer_of, problems_of

PASSWORD_HASH = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo"
OF_RIGHTS: list[tuple[str, list[object], list[object]]] = []
for who in ("users.0", "tokens.0", "jwt", "certificates.0"):
    OF_RIGHTS.append((f"auth.{who}.peers", [None, [], ["ARCHIVE"]], ["ARCHIVE", {}, True]))
    OF_RIGHTS.append((f"auth.{who}.write", [True, False], ["true", None]))
    OF_RIGHTS.append((f"auth.{who}.admin", [True, False], ["true", None]))

BASE: Raw = {
    **having("dimseProxySettings.proxyServer.tls", {"certFile": "/c", "keyFile": "/k"}),
    "auth": {
        "users": [{"name": "jane", "passwordHash": PASSWORD_HASH}],
        "tokens": [{"name": "uploader", "tokenHash": "0" * 64}],
        "jwt": {"issuer": "https://id.example.org", "audience": "proxy"},
        "certificates": [{"name": "viewer.example.org"}],
    },
    "dicomwebProxySettings": {
        "qidoForwardingUrl": "https://a.example",
        "wadoForwardingUrl": "https://a.example",
        "credentials": {"secretFile": "/s"},
    },
    "audit": {"file": "/a", "syslog": {"host": "logs.example.org", "certFile": "/c", "keyFile": "/k"}},
}
"""The minimum, with an entry in each list, and with objects that have keys of their own."""

GOOD_AND_BAD: list[tuple[str, list[object], list[object]]] = [
    ("proxyMode", ["dimse"], ["DIMSE", "", 1, None, MISSING]),
    ("dimseProxySettings", [], [None, [], "x", {}, MISSING]),
    ("dimseProxySettings.proxyServer", [], [None, [], "PROXY", MISSING]),
    ("dimseProxySettings.proxyServer.aet", ["A" * 16, " PAD "], ["", " ", "A" * 17, "A\\B", "Ä", "A\n", 1, MISSING]),
    ("dimseProxySettings.proxyServer.ip", ["::1", "localhost"], ["", "a b", None, MISSING]),
    ("dimseProxySettings.proxyServer.port", [0, 1, 65535], [-1, 65536, "104", 1.0, True, None, MISSING]),
    ("dimseProxySettings.proxyServer.checkStoreHost", [True, False], ["no", 0, None]),
    ("dimseProxySettings.proxyServer.tls", [None], [True, [], "cert.pem"]),
    ("dimseProxySettings.proxyServer.tls.port", [0, 1, 65535], [-1, 65536, "2762", 2762.0, True, None]),
    ("dimseProxySettings.proxyServer.tls.certFile", ["/etc/cert.pem", "cert.pem"], ["", 1, None, MISSING]),
    ("dimseProxySettings.proxyServer.tls.keyFile", ["/etc/key.pem", "key.pem"], ["", 1, None, MISSING]),
    ("dimseProxySettings.proxyServer.tls.caFile", [None, "/etc/ca.pem", "ca.pem"], ["", 1, True]),
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
        "dimseProxySettings.peers.0.storeHosts",
        [[], ["10.1.2.3", "10.1.0.0/16", "10.1.2.3/16", "::1", "fd00::/8", "::ffff:10.1.2.3", "fe80::1%eth0"]],
        ["10.1.2.3", {}, None],
    ),
    ("dimseProxySettings.peers.0.queryModel", ["STUDY", "PATIENT"], ["study", "SERIES", "", None]),
    ("dimseProxySettings.peers.0.sequential", [True, False], ["true", 1, None]),
    ("dimseProxySettings.peers.0.uncompressed", [True, False], ["true", 1, None]),
    ("dimseProxySettings.peers.0.tls", [{}, None, {"certFile": "/c", "keyFile": "k"}], [True, [], "ca.pem"]),
    ("dimseProxySettings.peers.0.tls.caFile", [None, "/etc/ca.pem", "ca.pem"], ["", 1, True]),
    ("dimseProxySettings.peers.0.tls.checkHostname", [True, False], ["true", None]),
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
    ("dimseProxySettings.timeouts.nearline", [1, 0.1], [0, "1", None]),
    ("dicomwebProxySettings", [None], [[], "https://a", 1]),
    ("dicomwebProxySettings.caFile", [None, "/etc/ca.pem"], ["", 1, True]),
    ("dicomwebProxySettings.rewriteUrls", [True, False], ["no", 0, None]),
    ("dicomwebProxySettings.credentials", [None], [True, [], "secret"]),
    ("dicomwebProxySettings.credentials.username", [None, "jane@example.org"], ["", "a:b", "a\n", 1]),
    ("dicomwebProxySettings.credentials.secretFile", ["/run/secret", "secret"], ["", 1, None, MISSING]),
    ("dicomwebProxySettings.credentials.secretVariable", [None], ["ALSO_GIVEN"]),
    ("dicomwebProxySettings.timeouts", [{}], [5, [], None]),
    ("dicomwebProxySettings.timeouts.connect", [0.5, 86400], [0, 86401, "5", None]),
    ("dicomwebProxySettings.timeouts.response", [60], [-1, "60", None]),
    ("dicomwebProxySettings.timeouts.idle", [120], [0, "120", None]),
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
    ("storeTo", ["ARCHIVE"], ["", "OTHER", "archive", 1, None]),
    ("maxUploadMB", [1, 10**6], [0, 1.5, "10", None]),
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
    ("ssl.selfSignedNames", [[], ["a.example", "10.0.0.1", "fd00::2"]], ["a.example", None]),
    ("ssl.clientCaFile", ["/ca.pem", None], ["", 1]),
    ("ssl.hstsSeconds", [0, 31536000], [-1, 1.5, "1", 10**10, None]),
    ("cors", [{}], ["*", [], None]),
    (
        "cors.origin",
        ["*", "pacsbin.com", "https://pacsbin.com", "http://localhost:80", "http://[::1]:80", "::1", [], ["*", "a.b"],
         "*.pacsbin.com", "https://*.pacsbin.com", "http://*.a.b.c:8080", ["*.a.b", "a.b"]],
        ["", "null", "https://pacsbin.com/", "pacsbin.com/x", " pacsbin.com", "a b", "a.b:80", "ftp://a", "https://u@a",
         "//a", "fe80::1%eth0", "*.", "*.b", "*.com", "*.com.", "https://*.b", "https://*.", "https://*", "*.*.b.c",
         "a.*.b.c", "*a.b.c", "**.a.b", "*.10.0.0.1", "*.::1", "https://*.[::1]", "*://a.b", "*.a.b:80", "*.a.b/x",
         "ftp://*.a.b", "https://*.u@a.b", "*.null", ".a.b", 1, None, {}],
    ),
    ("cors.methods", [["GET", "patch"], []], ["GET", {}, None]),
    ("cors.allowedHeaders", [["X-Own"], []], ["Accept", {}, None]),
    ("cors.credentials", [True, False], ["true", 1, None]),
    ("auth", [{}], [True, [], None]),
    ("auth.enabled", [False], ["true", 1, None]),
    ("auth.allowedNetworks", [[], ["10.0.0.0/8", "::1", "10.1.2.3/8"]], ["10.0.0.0/8", {}, None]),
    ("auth.openStatus", [True, False], ["true", None]),
    ("auth.users", [[]], [{}, "jane", None]),
    ("auth.users.0", [], ["jane", [], None]),
    ("auth.users.0.name", ["Zoë", "a b", "x" * 64], ["", " a", "a\n", "a:b", "x" * 65, 1, None, MISSING]),
    ("auth.users.0.passwordHash", [PASSWORD_HASH.replace("id", "i")],
     ["", "secret", "$2b$12$" + "a" * 53, PASSWORD_HASH + "\n", PASSWORD_HASH[:20], 1, None, MISSING]),
    ("auth.tokens", [[]], [{}, "x", None]),
    ("auth.tokens.0", [], ["x", [], None]),
    ("auth.tokens.0.name", ["a:b"], ["", None, MISSING]),
    ("auth.tokens.0.tokenHash", ["aF" * 32], ["", "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n", 1, None, MISSING]),
    ("auth.tokens.0.expires", [None, "2027-12-31T00:00:00Z", "2027-12-31T12:00:00+02:00"],
     ["", "2027-12-31", "2027-12-31T00:00:00", "soon", []]),
    ("auth.jwt", [None], [{}, "https://id.example.org", [], True]),
    ("auth.jwt.issuer", ["https://id.example.org/x/", "http://127.0.0.1:8080"], ["", 1, None, MISSING]),
    ("auth.jwt.audience", ["x"], ["", "x" * 1025, 1, [], None, MISSING]),
    (
        "auth.jwt.jwksUrl",
        [None, "https://id.example.org/certs?p=x", "http://localhost:8080/c", "http://127.0.0.1/", "http://[::1]/c"],
        ["", "http://id.example.org/c", "ftp://a", "https://u:p@a", "https://a#x", "https://a b", "https://[", "x", 1],
    ),
    ("auth.jwt.jwksFile", [None, "/etc/keys.json"], ["", 1]),
    ("auth.jwt.caFile", [None, "/etc/ca.pem"], ["", 1]),
    ("auth.jwt.algorithms", [["RS256"], ["ES512", "EdDSA", "PS384"]], [[], "RS256", {}, None]),
    ("auth.jwt.userClaim", ["preferred_username"], ["", 1, None]),
    ("auth.jwt.writeScope", [None, "dicom.write"], ["", 1]),
    ("auth.jwt.adminScope", [None, "dicom.admin"], ["", 1]),
    ("auth.jwt.leeway", [0, 0.5, 600], [-1, 601, "30", True, float("nan"), None]),
    ("auth.certificates", [[]], [{}, "x", None]),
    ("auth.certificates.0", [], ["x", [], None]),
    ("auth.certificates.0.name", ["jane@example.org"], ["", None, MISSING]),
    *OF_RIGHTS,
    ("limits", [{}], [True, [], None]),
    ("limits.requests", [1, 10**6], [0, 10**6 + 1, "512", 1.5, True, None]),
    ("limits.requestsPerClient", [1, 10**6], [0, "128", None]),
    ("limits.connections", [1, 10**6], [0, "2048", None]),
    ("limits.connectionsPerClient", [1, 10**6], [0, "256", None]),
    ("limits.headerSeconds", [0.5, 86400], [0, 86401, "20", None]),
    ("audit", [{}], [True, [], None]),
    ("audit.file", [None, "/var/log/audit.log", "audit.log"], ["", 1, []]),
    ("audit.journal", [True, False], ["true", None]),
    ("audit.required", [True, False], ["true", 1, None]),
    ("audit.sourceId", [None, "DICOMweb at the main site"], ["", 1, []]),
    ("audit.syslog", [None, {"host": "::1"}], [True, [], "logs.example.org"]),
    ("audit.syslog.host", ["10.0.0.1", "logs"], ["", "a b", "logs:514", None, MISSING]),
    ("audit.syslog.protocol", ["tls", "udp"], ["TLS", "tcp", "", None]),
    ("audit.syslog.port", [None, 1, 65535], [0, 65536, "514", 514.0, True]),
    ("audit.syslog.caFile", [None, "/etc/ca.pem"], ["", 1]),
    ("audit.syslog.certFile", ["/etc/cert.pem"], ["", 1]),
    ("audit.syslog.keyFile", ["/etc/key.pem"], ["", 1]),
    ("audit.syslog.checkHostname", [True, False], ["true", None]),
    ("trustedProxies", [[], ["10.0.0.1", "10.0.0.0/8", "::1"]], ["10.0.0.1", {}, None]),
    ("logDir", [None, "/var/log/x"], ["", 1, []]),
    ("logLevel", ["DEBUG", "INFO", "WARNING", "ERROR"], ["debug", "TRACE", 10, None]),
    ("shutdownSeconds", [0, 0.5, 3600], [-1, 3601, "20", float("nan"), None]),
]  # fmt: skip


def shown_path(path: str) -> str:
    parts = path.split(".")
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).removeprefix(".")


def known_keys(schema: Raw, path: str = "") -> Iterator[str]:
    """List the keys of the JSON schema that pydantic derives, as dotted paths with 0 for a list's index."""
    root = Config.model_json_schema()["$defs"]
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
        parse_config(having(path, value, BASE))

    @pytest.mark.parametrize(
        ("path", "value"), [(path, value) for path, _, bad in GOOD_AND_BAD for value in bad], ids=ascii
    )
    def test_refuses_and_names_the_key_the_value_and_what_is_allowed(self, path: str, value: object) -> None:
        messages = problems_of(having(path, value, BASE))
        if value == {} and path in ("dimseProxySettings", "auth.jwt"):
            # An empty object lacks its keys, and those are what is named.
            assert all(message.startswith(shown_path(path)) for message in messages)
            return
        (message,) = messages
        complaint = "required key is missing" if value is MISSING else "is not allowed"
        assert message.startswith(f"{shown_path(path)}: ")
        assert f"{complaint}; must be " in message
        assert "\n" not in message

    def test_table_above_covers_every_key(self) -> None:
        schema = Config.model_json_schema()
        tested = {path for path, *_ in GOOD_AND_BAD}
        untested = {key for key in known_keys(schema) if key not in tested}
        # These share their types with keys that the table has, or have tests of their own.
        times = ("associate", "release", "response", "idle", "retrieve", "nearline")
        shared = [f"dimseProxySettings.peers.0.timeouts.{key}" for key in times]
        shared += [f"dimseProxySettings.peers.0.tls.{key}" for key in ("certFile", "keyFile")]
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
                'origin such as "https://pacsbin.com", without path; the host may be "*.pacsbin.com", for all hosts '
                'below pacsbin.com, but not "*.com"',
            ),
            (
                "dimseProxySettings.peers.0.storeHosts",
                ["10.1.2.3", "gateway.example.org"],
                'dimseProxySettings.peers[0].storeHosts[1]: "gateway.example.org" is not allowed; must be an IPv4 or '
                'IPv6 address, or a network such as "10.1.2.0/24"',
            ),
            (
                "auth.jwt.algorithms",
                ["RS256", "HS256"],
                'auth.jwt.algorithms[1]: "HS256" is not allowed; must be a signature algorithm such as RS256 or ES256; '
                "none without a public key",
            ),
            (
                "auth.users",
                [{"name": "jane", "passwordHash": "secret"}],
                "auth.users[0].passwordHash: this value is not allowed; must be what `python -m proxy hash-password` "
                "printed",
            ),
            (
                "auth.allowedNetworks",
                ["10.0.0.0/8", "hospital"],
                'auth.allowedNetworks[1]: "hospital" is not allowed; must be an IPv4 or IPv6 address, or a network '
                'such as "10.1.2.0/24"',
            ),
            (
                "audit.syslog",
                {"host": "logs", "certFile": "/c"},
                "audit.syslog: an object is not allowed; must be an object with host, protocol and port, and with "
                "certFile and keyFile or neither; or null",
            ),
            (
                "audit",
                {"required": True},
                "audit.required: true is not allowed; must be false, since audit.file is not set",
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
        assert problems_of(having(path, value, BASE)) == [message]

    def test_ae_titles_lose_the_spaces_around_them(self) -> None:
        raw = having("dimseProxySettings.peers.0.storeAets", ["  SCU  "])
        assert peer_of(having("dimseProxySettings.peers.0.aet", " ARCHIVE  ", raw)).aet == "ARCHIVE"
        assert peer_of(raw).store_aets == ("SCU",)

    @pytest.mark.parametrize(
        "entry",
        ["", "pacs.example.org", "10.1.2", "10.1.2.3/33", "10.1.2.3-9", " 10.1.2.3", 167837955, None],
        ids=ascii,
    )
    def test_networks_are_refused_that_are_none(self, entry: object) -> None:
        (message,) = problems_of(having("dimseProxySettings.peers.0.storeHosts", ["10.1.2.3", entry]))
        assert message.startswith("dimseProxySettings.peers[0].storeHosts[1]: ")
        assert "must be an IPv4 or IPv6 address, or a network" in message

    def test_networks_may_be_written_by_an_address_in_them(self) -> None:
        peer = peer_of(having("dimseProxySettings.peers.0.storeHosts", ["10.1.2.3/16", "10.1.2.3", "fd00::1"]))
        assert [str(network) for network in peer.store_hosts] == ["10.1.0.0/16", "10.1.2.3/32", "fd00::1/128"]

    def test_networks_of_ipv4_in_ipv6_are_those_of_ipv4(self) -> None:
        """As addresses are, or such a network would have nobody in it."""
        entries = ["::ffff:10.1.2.3", "::ffff:10.1.2.3/112", "::ffff:0:0/96", "::/0"]
        networks = parse_config(having("trustedProxies", entries)).trusted_proxies
        assert list(map(str, networks)) == ["10.1.2.3/32", "10.1.0.0/16", "0.0.0.0/0", "::/0"]

    def test_character_sets_can_all_be_decoded(self) -> None:
        terms = types._SINGLE_CHARACTER_SETS | types._EXTENSION_CHARACTER_SETS
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


class TestAnythingAtAll:
    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(st.sampled_from([path for path, *_ in GOOD_AND_BAD]), JSON, max_size=4))
    def test_any_content_gives_a_configuration_or_plain_words(self, values: Raw) -> None:
        raw = BASE
        # The deepest first: having() needs the parents of a key to be as they were.
        for path, value in sorted(values.items(), key=lambda item: -item[0].count(".")):
            raw = having(path, value, raw)
        try:
            parse_config(raw)
        except ConfigError as error:
            text = str(error)
            assert not any(word in text for word in ("pydantic", "Input should", "Value error", "validation"))
            assert len(text.split("\n")) == 1 + len(error.problems) + len(error.warnings)
