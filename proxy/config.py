"""The configuration: finding the file, reading it, and the rules between its keys.

The keys themselves and their defaults are in `config_schema`, the rules about one value in `config_types`. Every
problem of a file is reported at once, so rules between keys look at the raw file: they must hold where other keys
are wrong.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from proxy.config_errors import MISSING, ConfigError, ConfigProblem, show
from proxy.config_schema import (
    INSTALL_DIR,
    Config,
    Cors,
    DicomwebSettings,
    DimseSettings,
    Peer,
    PeerTls,
    ProxyServer,
    Ssl,
    Timeouts,
)
from proxy.config_types import A_HOST, ANY_PORT, Allowed

__all__ = [
    "INSTALL_DIR",
    "MISSING",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "Cors",
    "DicomwebSettings",
    "DimseSettings",
    "Peer",
    "PeerTls",
    "ProxyServer",
    "Ssl",
    "Timeouts",
    "find_config",
    "load_config",
    "parse_config",
]

FILE_NAMES: Final = ("config.json", "config.jsonc", "config/config.json", "config/config.jsonc")

MAX_FILE_BYTES: Final = 1024 * 1024
"""A real file has a few KiB; more is another file given by mistake, and the JSON5 reader is slow."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key that the file may hold and this version does not honour, so that the proxy must not start with it.

    It counts when the file gives `value`, or any value where that is None. `instead` is what the key must be.
    """

    key: str
    value: object
    instead: str


NOT_YET: Final = (
    NotYet("proxyMode", "dicomweb", '"dimse": forwarding to a DICOMweb server is not in this version'),
    NotYet("ssl.enabled", True, "false: HTTPS is not in this version"),
    # Or a site whose archive is reached over TLS would go on in clear text.
    NotYet(
        "dimseProxySettings.proxyServer.securityOptions",
        None,
        "left out: this version takes no C-STOREs over TLS; towards an archive, TLS is set by tls of that peer",
    ),
)
"""The one place that knows what is still to come: a line goes when its key starts to work."""

_SECTION_OF_MODE: Final = {"dimse": "dimseProxySettings", "dicomweb": "dicomwebProxySettings"}


# --- finding and reading -----------------------------------------------------------------------------------


def find_config(explicit: Path | None, *, cwd: Path, install_dir: Path = INSTALL_DIR) -> Path:
    """Find the configuration file.

    `explicit` is the path of the command line, relative to `cwd`; where it is given no other place is tried.
    Raises ConfigError that lists the places searched.
    """
    if explicit is not None:
        places = [cwd / explicit]
    else:
        places = list(dict.fromkeys(base / name for base in (cwd, install_dir) for name in FILE_NAMES))
    searched = []
    for place in places:
        try:
            if place.exists() and not place.is_dir():
                return place
            searched.append(str(place))
        except OSError as error:
            searched.append(f"{place} ({error.strerror})")
    path = None if explicit is None else places[0]
    raise ConfigError(path, reason="\n  ".join(["no configuration file found; searched:", *searched]))


def load_config(path: Path) -> Config:
    """Read a JSON, JSONC or JSON5 file in UTF-8 and check it.

    Raises ConfigError: for what cannot be read or is not JSON with a reason (line and column in the text),
    otherwise with every problem in the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, reason=f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(path, reason=f"is larger than {MAX_FILE_BYTES} bytes, so not a configuration file")
    return parse_config(_parse_text(data, path), source=path)


class _ParsedObject(dict[str, object]):
    """An object of the file, which remembers the keys that were given more than once."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        given = list(pairs)
        super().__init__(given)
        counts = Counter(key for key, _ in given)
        self.repeated = tuple(key for key, count in counts.items() if count > 1)


def _parse_text(data: bytes, path: Path) -> _ParsedObject:
    import json5  # noqa: PLC0415 - slow to import, and most callers of this module never read a file

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _line_and_column(error.object[: error.start].decode())
        raise ConfigError(path, reason=f"is not UTF-8 text at {where}") from error
    if not text.strip():
        raise ConfigError(path, reason="is empty")
    try:
        value, problem, position = json5.parse(text, object_pairs_hook=_ParsedObject)
    except RecursionError:
        raise ConfigError(path, reason="has objects or lists nested too deeply") from None
    if problem is not None:
        where = _line_and_column(text[:position])
        hint = "look there and just before for a missing comma, quote or bracket"
        raise ConfigError(path, reason=f"is not JSON, JSONC or JSON5 near {where}: {hint}")
    if not isinstance(value, _ParsedObject):
        raise ConfigError(path, reason=f"must hold one object in braces {{ }}, not {show(value)}")
    return value


def _line_and_column(before: str) -> str:
    lines = before.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


# --- checking ----------------------------------------------------------------------------------------------


def parse_config(raw: Mapping[str, object], *, source: Path | None = None) -> Config:
    """Check the content of a configuration file and fill in defaults and fallbacks.

    `source` only names the file in errors. Raises ConfigError with every problem at once.
    """
    warnings = tuple(_ignored_keys(raw, Config, ""))
    config, problems = _validate(raw)
    problems += _between_keys(raw)
    if config is None or problems:
        raise ConfigError(source, problems, warnings=warnings)
    return _with_fallbacks(config).with_remarks(warnings, tuple(_unsupported(raw)))


def _validate(raw: Mapping[str, object]) -> tuple[Config | None, list[ConfigProblem]]:
    # The other mode's section, left as an empty object, is as good as absent.
    needed = _SECTION_OF_MODE.get(str(raw.get("proxyMode")))
    empty = {key for key in _SECTION_OF_MODE.values() if key != needed and raw.get(key) == {}}
    try:
        return Config.model_validate({key: value for key, value in raw.items() if key not in empty}), []
    except ValidationError as error:
        return None, [_translated(detail) for detail in error.errors(include_url=False)]


def _translated(detail: Mapping[str, Any]) -> ConfigProblem:
    location = detail["loc"]
    missing = detail["type"] == "missing"
    return ConfigProblem(
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix("."),
        MISSING if missing else detail["input"],
        _what_is_allowed(location) if missing else detail["msg"],
    )


def _what_is_allowed(location: tuple[str | int, ...]) -> str:
    model: type[BaseModel] = Config
    *parents, last = (part for part in location if isinstance(part, str))
    for parent in parents:
        model = _model_below(_fields(model)[parent].annotation) or model
    return next(entry.text for entry in _fields(model)[last].metadata if isinstance(entry, Allowed))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_below(annotation: object) -> type[BaseModel] | None:
    """Find the model in `Model`, `Model | None` or `tuple[Annotated[Model, …], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_below, get_args(annotation))), None)


def _dig(raw: Mapping[str, object], key: str) -> object:
    value: object = raw
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


# --- between keys ------------------------------------------------------------------------------------------

_LISTENER: Final = "dimseProxySettings.proxyServer"


def _between_keys(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    section = _SECTION_OF_MODE.get(str(raw.get("proxyMode")))
    if section is not None and raw.get(section) is None:
        yield ConfigProblem(section, raw.get(section, MISSING), _what_is_allowed((section,)))
    uses_cmove = _uses_cmove(raw)
    if uses_cmove and isinstance(_dig(raw, _LISTENER), Mapping):
        for key, allowed in (("ip", A_HOST), ("port", ANY_PORT)):
            if _dig(raw, f"{_LISTENER}.{key}") is MISSING:
                yield ConfigProblem(f"{_LISTENER}.{key}", MISSING, f"{allowed}, since C-MOVE needs a listener")
    yield from _port_clashes(raw, uses_cmove)
    yield from _repeated_peers(raw)
    yield from _repeated_names(raw)
    yield from _halves_of_pairs(raw)
    yield from _unknown_receiver(raw)


def _peers(raw: Mapping[str, object]) -> list[object]:
    peers = _dig(raw, "dimseProxySettings.peers")
    return list(peers) if isinstance(peers, (list, tuple)) else []


def _uses_cmove(raw: Mapping[str, object]) -> bool:
    # The same as Config.uses_cmove, for a file that may be wrong elsewhere.
    default = raw.get("useCget", False)
    peers = [peer for peer in _peers(raw) if isinstance(peer, Mapping)] or [{}]
    return raw.get("proxyMode") == "dimse" and not all(peer.get("useCget", default) is True for peer in peers)


def _port_clashes(raw: Mapping[str, object], uses_cmove: bool) -> Iterator[ConfigProblem]:
    defaults = {"webserverPort": _fields(Config)["webserverPort"].default}
    if _dig(raw, "ssl.enabled") is True:
        defaults["ssl.port"] = _fields(Ssl)["port"].default
    if uses_cmove:
        defaults[f"{_LISTENER}.port"] = MISSING
    taken: dict[int, str] = {}
    for key, default in defaults.items():
        given = _dig(raw, key)
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


def _unknown_receiver(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    wanted = raw.get("storeTo", MISSING)
    peers = [peer for peer in _peers(raw) if isinstance(peer, Mapping)]
    titles = Counter(str(peer.get("name") or peer.get("aet")).strip(" ") for peer in peers)
    names = []
    for peer in peers:
        aet, ip, port = (str(peer.get(key)).strip(" ") for key in ("aet", "ip", "port"))
        names.append(str(peer.get("name") or _name_without(aet, ip, port, titles)))
    if isinstance(wanted, str) and names and wanted not in names:
        yield ConfigProblem("storeTo", wanted, f"the name of a peer: {', '.join(map(show, names))}")


# --- fallbacks ---------------------------------------------------------------------------------------------


def _with_fallbacks(config: Config) -> Config:
    if config.dimse is None:
        return config
    shared = {
        "local_aet": config.dimse.proxy_server.aet,
        "max_associations": config.max_associations,
        "use_cget": config.use_cget,
    }
    names = Counter(peer.name or peer.aet for peer in config.dimse.peers)
    peers = tuple(_completed(peer, shared, config.dimse.timeouts, names) for peer in config.dimse.peers)
    dimse = config.dimse.model_copy(update={"peers": peers})
    return config.model_copy(update={"dimse": dimse, "store_to": config.store_to or peers[0].name})


def _name_without(aet: str, ip: str, port: str, names: Mapping[str, int]) -> str:
    """How a peer without a name is called; `names` counts the names, and the AE titles of those without."""
    # AE titles need not tell archives apart, where each is at an address of its own.
    return aet if names[aet] == 1 else f"{aet} at {ip}:{port}"


def _completed(peer: Peer, shared: Mapping[str, object], timeouts: Timeouts, names: Mapping[str, int]) -> Peer:
    fallbacks = {"name": _name_without(peer.aet, peer.ip, str(peer.port), names), **shared}
    update = {name: value for name, value in fallbacks.items() if name not in peer.model_fields_set}
    own = {name: getattr(peer.timeouts, name) for name in peer.timeouts.model_fields_set}
    return peer.model_copy(update={**update, "timeouts": timeouts.model_copy(update=own)})


# --- keys without effect -----------------------------------------------------------------------------------


def _is_given(raw: Mapping[str, object], entry: NotYet) -> bool:
    value = _dig(raw, entry.key)
    return value is not MISSING and (entry.value is None or value == entry.value)


def _unsupported(raw: Mapping[str, object]) -> Iterator[ConfigProblem]:
    for entry in NOT_YET:
        if _is_given(raw, entry):
            yield ConfigProblem(entry.key, _dig(raw, entry.key), entry.instead)


def _ignored_keys(raw: Mapping[str, object], model: type[BaseModel], path: str) -> Iterator[str]:
    """Name the keys of `raw` and the objects below it that are unknown to the schema or given twice."""
    fields = _fields(model)
    for key in getattr(raw, "repeated", ()):
        yield f"{path}{_key_text(key)}: given more than once, only the last counts"
    for key, value in raw.items():
        here = path + _key_text(key)
        if key not in fields:
            yield f"{here}: unknown key, ignored{_suggestion(key, model)}"
            continue
        below = _model_below(fields[key].annotation)
        places = {here: value}
        if isinstance(value, (list, tuple)):
            places = {f"{here}[{index}]": item for index, item in enumerate(value)}
        for place, item in places.items():
            if below is not None and isinstance(item, Mapping):
                yield from _ignored_keys(item, below, f"{place}.")


def _key_text(key: str) -> str:
    # Any text can be a key in quotes; line breaks and the like must not reach a log as they are.
    return key if re.fullmatch(r"[\w$-]{1,64}", key) else show(key)


def _suggestion(key: str, model: type[BaseModel]) -> str:
    """Name the nearest key of the same object, or else a key with nearly this name elsewhere in the file."""
    here = {name.lower(): name for name in _fields(model)}
    elsewhere: dict[str, str] = {}
    for path in sorted(_all_keys(Config, ""), key=lambda path: path.count(".")):
        where = path if "." in path else f"{path} at the top of the file"
        elsewhere.setdefault(path.rpartition(".")[2].lower(), where)
    for known, cutoff in ((here, 0.6), (elsewhere, 0.8)):
        for match in difflib.get_close_matches(key.lower(), known, n=1, cutoff=cutoff):
            return f"; did you mean {known[match]}?"
    return ""


def _all_keys(model: type[BaseModel], path: str) -> Iterator[str]:
    for key, field in _fields(model).items():
        yield path + key
        below = _model_below(field.annotation)
        if below is not None:
            many = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _all_keys(below, f"{path}{key}{many}.")
