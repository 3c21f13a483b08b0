"""Rules between keys.

Every problem of a file is reported at once, so they look at the raw file: they must hold where other keys are wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from proxy.config.access_rules import between_auth_keys
from proxy.config.errors import MISSING, ConfigProblem, show
from proxy.config.keys import dig, fields, what_is_allowed
from proxy.config.schema import Config, ServerTls
from proxy.config.security import Ssl
from proxy.config.types import A_HOST, ANY_PORT

SECTION_OF_MODE: Final = {"dimse": "dimseProxySettings", "dicomweb": "dicomwebProxySettings"}

_LISTENER: Final = "dimseProxySettings.proxyServer"
_TLS_LISTENER: Final = f"{_LISTENER}.tls"


def between_keys(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    """Every rule that a file breaks."""
    section = SECTION_OF_MODE.get(str(raw.get("proxyMode")))
    if section is not None and raw.get(section) is None:
        yield ConfigProblem(section, raw.get(section, MISSING), what_is_allowed((section,)))
    senders = _senders(raw)
    yield from _missing_listener(raw, senders)
    yield from _port_clashes(raw, senders)
    yield from _repeated_peers(raw)
    yield from _repeated_names(raw)
    yield from _halves_of_pairs(raw)
    yield from _unknown_receiver(raw)
    yield from _upstream_credentials(raw)
    yield from between_auth_keys(raw, _peer_names(raw))


def _peers(raw: Mapping[str, object]) -> list[object]:
    peers = dig(raw, "dimseProxySettings.peers")
    return list(peers) if isinstance(peers, (list, tuple)) else []


def _senders(raw: Mapping[str, object]) -> dict[int, bool]:
    """The peers that are asked by C-MOVE and so send C-STOREs, by index, and whether they do so over TLS.

    Where there is no peer to be seen, as if there were one: the file may be wrong elsewhere.
    """
    if raw.get("proxyMode") != "dimse":
        return {}
    default = raw.get("useCget", False)
    peers = {index: peer for index, peer in enumerate(_peers(raw)) if isinstance(peer, Mapping)} or {0: {}}
    return {
        index: isinstance(peer.get("tls"), Mapping)
        for index, peer in peers.items()
        if peer.get("useCget", default) is not True
    }


def _missing_listener(raw: Mapping[str, object], senders: Mapping[int, bool]) -> Iterator[ConfigProblem]:
    if not senders or not isinstance(dig(raw, _LISTENER), Mapping):
        return
    needed = {"ip": A_HOST} if all(senders.values()) else {"ip": A_HOST, "port": ANY_PORT}
    for key, allowed in needed.items():
        if dig(raw, f"{_LISTENER}.{key}") is MISSING:
            yield ConfigProblem(f"{_LISTENER}.{key}", MISSING, f"{allowed}, since C-MOVE needs a listener")
    over_tls = [index for index, has_tls in senders.items() if has_tls]
    tls = dig(raw, _TLS_LISTENER)
    # Or images would come in clear text from an archive that is asked for them over TLS.
    if over_tls and (tls is MISSING or tls is None):
        reason = f"since peers[{over_tls[0]}] has tls and has to send its C-STOREs over TLS, unless it has useCget"
        yield ConfigProblem(_TLS_LISTENER, tls, f"an object with certFile and keyFile, {reason}")


def _port_clashes(raw: Mapping[str, object], senders: Mapping[int, bool]) -> Iterator[ConfigProblem]:
    defaults = {"webserverPort": fields(Config)["webserverPort"].default}
    if dig(raw, "ssl.enabled") is True:
        defaults["ssl.port"] = fields(Ssl)["port"].default
    if not all(senders.values()):
        defaults[f"{_LISTENER}.port"] = MISSING
    if any(senders.values()) and isinstance(dig(raw, _TLS_LISTENER), Mapping):
        defaults[f"{_TLS_LISTENER}.port"] = fields(ServerTls)["port"].default
    taken: dict[int, str] = {}
    for key, default in defaults.items():
        given = dig(raw, key)
        port = default if given is MISSING else given
        # Port 0 is any free port, which never clashes.
        if not isinstance(port, int) or port == 0:
            continue
        if port in taken:
            yield ConfigProblem(key, port, f"a port other than that of {taken[port]}")
        taken.setdefault(port, key)


def _repeated_peers(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    first: dict[tuple[str, str, object], int] = {}
    for index, peer in enumerate(_peers(raw)):
        if not isinstance(peer, Mapping):
            continue
        aet, ip, port = peer.get("aet"), peer.get("ip"), peer.get("port")
        if not isinstance(aet, str) or not isinstance(ip, str) or not isinstance(port, int):
            continue
        earlier = first.setdefault((aet.strip(" "), ip.lower(), port), index)
        if earlier != index:
            allowed = f"a peer that differs from peers[{earlier}] in aet, ip or port"
            yield ConfigProblem(f"dimseProxySettings.peers[{index}]", f"{aet}, {ip}, {port}", allowed)


def _repeated_names(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    """Names that the file gives must tell archives apart: warnings and metrics go by them."""
    first: dict[str, int] = {}
    for index, peer in enumerate(_peers(raw)):
        name = peer.get("name") if isinstance(peer, Mapping) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            allowed = f"a name other than that of peers[{first[name]}]"
            yield ConfigProblem(f"dimseProxySettings.peers[{index}].name", name, allowed)


def _halves_of_pairs(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    for index, peer in enumerate(_peers(raw)):
        tls = peer.get("tls") if isinstance(peer, Mapping) else None
        if not isinstance(tls, Mapping):
            continue
        for given, other in (("certFile", "keyFile"), ("keyFile", "certFile")):
            if tls.get(given) is not None and tls.get(other) is None:
                key = f"dimseProxySettings.peers[{index}].tls.{other}"
                yield ConfigProblem(key, tls.get(other, MISSING), f"a path, since {given} is given")


def _upstream_credentials(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    key = "dicomwebProxySettings.credentials"
    credentials = dig(raw, key)
    if not isinstance(credentials, Mapping):
        return
    given = [name for name in ("secretFile", "secretVariable") if credentials.get(name) is not None]
    if not given:
        value = credentials.get("secretFile", MISSING)
        yield ConfigProblem(f"{key}.secretFile", value, "a path, unless secretVariable is given")
    elif len(given) > 1:
        yield ConfigProblem(
            f"{key}.secretVariable", credentials["secretVariable"], "left out, since secretFile is given"
        )
    username = credentials.get("username")
    # The first colon ends the name where it is sent (RFC 7617 2).
    if isinstance(username, str) and (":" in username or not username.isprintable()):
        yield ConfigProblem(f"{key}.username", username, "a text without colon and control characters")


def _unknown_receiver(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    wanted, names = raw.get("storeTo", MISSING), _peer_names(raw)
    if isinstance(wanted, str) and names and wanted not in names:
        yield ConfigProblem("storeTo", wanted, f"the name of a peer: {', '.join(map(show, names))}")


def _peer_names(raw: Mapping[str, object]) -> list[str]:
    # The same as in `checking`, for a file that may be wrong elsewhere.
    peers = [peer for peer in _peers(raw) if isinstance(peer, Mapping)]
    titles = Counter(str(peer.get("name") or peer.get("aet")).strip(" ") for peer in peers)
    names = []
    for peer in peers:
        aet, ip, port = (str(peer.get(key)).strip(" ") for key in ("aet", "ip", "port"))
        names.append(str(peer.get("name") or name_without(aet, ip, port, titles)))
    return names


def name_without(aet: str, ip: str, port: str, names: Mapping[str, int]) -> str:
    """How a peer without a name is called; `names` counts the names, and the AE titles of those without."""
    # AE titles need not tell archives apart, where each is at an address of its own.
    return aet if names[aet] == 1 else f"{aet} at {ip}:{port}"
