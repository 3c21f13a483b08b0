"""The rules between keys of the configuration, and the keys that have no effect."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from proxy.config.checking import parse_config
from proxy.config.errors import MISSING, ConfigError
from tests.proxy.configs import MINIMAL, Raw, having, problems_of

FILES = {"certFile": "/c", "keyFile": "/k"}


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

    @pytest.mark.parametrize(
        ("tls", "messages"),
        [
            ({"certFile": "/c", "keyFile": "/k"}, []),
            ({"certFile": None, "keyFile": None}, []),
            ({"certFile": "/c"}, ["tls.keyFile: required key is missing; must be a path, since certFile is given"]),
            (
                {"certFile": None, "keyFile": "/k"},
                ["tls.certFile: null is not allowed; must be a path, since keyFile is given"],
            ),
        ],
    )
    def test_certificate_and_key_go_together(self, tls: Raw, messages: list[str]) -> None:
        raw = having("dimseProxySettings.peers.0.tls", tls, having("useCget", True))
        if messages:
            assert problems_of(raw) == [f"dimseProxySettings.peers[0].{message}" for message in messages]
        else:
            parse_config(raw)

    @pytest.mark.parametrize(
        ("listener", "problem"),
        [
            (MISSING, "required key is missing"),
            (None, "null is not allowed"),
        ],
    )
    def test_archive_with_tls_has_to_send_over_tls(self, listener: object, problem: str) -> None:
        """Or what it is asked for over TLS would come in clear text; with C-GET it comes the way it is asked for."""
        raw = having("dimseProxySettings.peers.0.tls", {})
        raw["dimseProxySettings"]["peers"].insert(0, {"aet": "PLAIN", "ip": "10.0.0.9", "port": 104})
        if listener is not MISSING:
            raw = having("dimseProxySettings.proxyServer.tls", listener, raw)
        assert problems_of(raw) == [
            f"dimseProxySettings.proxyServer.tls: {problem}; must be an object with certFile and keyFile, "
            "since peers[1] has tls and has to send its C-STOREs over TLS, unless it has useCget"
        ]
        parse_config(having("dimseProxySettings.proxyServer.tls", FILES, raw))
        parse_config(having("useCget", True, raw))
        parse_config(having("dimseProxySettings.peers.1.useCget", True, raw))

    def test_port_in_clear_text_is_needed_only_by_archives_without_tls(self) -> None:
        raw = having("dimseProxySettings.proxyServer", {"aet": "PROXY", "ip": "10.0.0.1", "tls": FILES})
        parse_config(having("dimseProxySettings.peers.0.tls", {}, raw))
        assert problems_of(raw) == [
            "dimseProxySettings.proxyServer.port: required key is missing; must be a whole number from 1 to 65535, "
            "or 0 for any free port, since C-MOVE needs a listener"
        ]

    @pytest.mark.parametrize(
        ("changes", "clash"),
        [
            ({"proxyServer.tls.port": 8888}, "dimseProxySettings.proxyServer.port"),
            ({"proxyServer.tls.port": 3006}, "webserverPort"),
            ({"proxyServer.port": 2762}, "dimseProxySettings.proxyServer.port"),
            ({"proxyServer.tls.port": 0}, None),
            ({"proxyServer.tls.port": 8888, "peers.0.tls": {}, "peers.0.useCget": True}, None),
            ({"proxyServer.tls.port": 8888, "peers.1.tls": {}}, None),
        ],
    )
    def test_port_over_tls_is_another_one_where_it_is_listened_on(self, changes: Raw, clash: str | None) -> None:
        raw = having("dimseProxySettings.proxyServer.tls", FILES)
        raw["dimseProxySettings"]["peers"].append({"aet": "PLAIN", "ip": "10.0.0.9", "port": 104})
        raw = having("dimseProxySettings.peers.0.tls", {}, raw)
        for path, value in changes.items():
            raw = having(f"dimseProxySettings.{path}", value, raw)
        if clash is None:
            parse_config(raw)
        else:
            (message,) = problems_of(raw)
            assert message.startswith("dimseProxySettings.proxyServer.tls.port: ")
            assert message.endswith(f" is not allowed; must be a port other than that of {clash}")

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

    def test_dicom_tls_of_existing_files_is_refused_and_not_dropped_silently(self) -> None:
        """Or a site whose archive is reached over TLS would go on in clear text."""
        raw = having("dimseProxySettings.proxyServer.securityOptions", {"key": "/etc/key.pem"})
        (problem,) = parse_config(raw).unsupported
        assert problem.key == "dimseProxySettings.proxyServer.securityOptions"
        assert "DICOM TLS is set by proxyServer.tls (port, certFile, keyFile, caFile) for what archives" in str(problem)


def test_names_tell_archives_apart() -> None:
    """AE titles alone need not; a name that stands in the file twice is a mistake."""
    peer = {"aet": "ARCHIVE", "ip": "10.0.0.2", "port": 104}
    raw = having("dimseProxySettings.peers", [peer, {**peer, "ip": "10.0.0.3"}, {**peer, "aet": "OTHER"}])
    dimse = parse_config(raw).dimse
    assert dimse is not None
    assert [each.name for each in dimse.peers] == ["ARCHIVE at 10.0.0.2:104", "ARCHIVE at 10.0.0.3:104", "OTHER"]
    raw = having("dimseProxySettings.peers", [{**peer, "name": "main"}, {**peer, "port": 105, "name": "main"}])
    assert problems_of(raw) == [
        'dimseProxySettings.peers[1].name: "main" is not allowed; must be a name other than that of peers[0]'
    ]


def test_uploads_go_to_a_peer_by_its_name() -> None:
    """The first one, unless the file says which; the names that there are stand in the message."""
    peer = {"aet": "ARCHIVE", "ip": "10.0.0.2", "port": 104}
    peers = [peer, {**peer, "ip": "10.0.0.3"}, {"name": "third", **peer, "port": 105}]
    raw = having("dimseProxySettings.peers", peers)
    assert parse_config(raw).store_to == "ARCHIVE at 10.0.0.2:104"
    for name in ("ARCHIVE at 10.0.0.3:104", "third"):
        assert parse_config(having("storeTo", name, raw)).store_to == name
    assert problems_of(having("storeTo", "ARCHIVE", raw)) == [
        'storeTo: "ARCHIVE" is not allowed; must be the name of a peer: "ARCHIVE at 10.0.0.2:104", '
        '"ARCHIVE at 10.0.0.3:104", "third"'
    ]
