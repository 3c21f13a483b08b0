"""The schema of the configuration: every key, its type, its default, and what is allowed, in words.

Rules about one key live here, beside the key; rules between keys, and reading files, live in `config`.
Attributes are snake_case, the file's keys are the same names in camelCase.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    Strict,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from proxy.config_errors import ConfigProblem

INSTALL_DIR: Final = Path("/opt/dicomweb-proxy")

NOT_ALLOWED: Final = "not_allowed"
"""The error type of every broken rule; its message is what is allowed. Only "missing" is left to pydantic."""


def not_allowed(allowed: str) -> PydanticCustomError:
    """Make the error of a value that breaks a rule; `allowed` follows "must be"."""
    return PydanticCustomError(NOT_ALLOWED, "{allowed}", {"allowed": allowed})


@dataclass(frozen=True, slots=True)
class Allowed:
    """Says in plain words what a type allows, in the place of whatever the checks inside it would say.

    Errors of what lies deeper (a list's item, an object's key) have words of their own and pass unchanged.
    """

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: object, check: Callable[[object], object]) -> object:
        try:
            return check(value)
        except ValidationError as error:
            if any(detail["loc"] for detail in error.errors(include_url=False, include_context=False)):
                raise
        raise not_allowed(self.text)


# --- rules -------------------------------------------------------------------------------------------------

_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?")
_URL_TEXT = re.compile(r"[!-~]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_SINGLE_CHARACTER_SETS: Final = frozenset(
    f"ISO_IR {number}" for number in (6, 13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192, 203)
) | {"GB18030", "GBK"}
_EXTENSION_CHARACTER_SETS: Final = frozenset(
    f"ISO 2022 IR {number}"
    for number in (6, 13, 58, 87, 100, 101, 109, 110, 126, 127, 138, 144, 148, 149, 159, 166, 203)
)


def is_address(text: str) -> bool:
    """Tell whether `text` is an IPv4 or IPv6 address, the latter with or without a zone."""
    if not _ADDRESS.fullmatch(text):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Tell whether `text` is an IPv4 or IPv6 address or a host name (RFC 1123 2.1)."""
    if is_address(text):
        return True
    labels = text.removesuffix(".").split(".")
    # A name that ends in digits alone is a mistyped address: no top-level domain is numeric.
    return len(text) <= 253 and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _host(value: str) -> str:
    if not is_host(value):
        raise ValueError
    return value


def _ae_title(value: str) -> str:
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError
    return title


def _name(value: str) -> str:
    if not 1 <= len(value) <= 64 or not value.isprintable() or value != value.strip():
        raise ValueError
    return value


def _path(value: object) -> Path:
    # Before pydantic's own check, for which an empty string is the working directory.
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise ValueError
    return Path(value)


def _base_url(value: str) -> str:
    # urlsplit drops tabs and line breaks without a word, so what is in the text is settled first.
    if not _URL_TEXT.fullmatch(value) or any(mark in value for mark in "?#@\\"):
        raise ValueError
    parts = urlsplit(value)
    host = parts.hostname or ""
    bracketed = parts.netloc.startswith("[")
    if parts.scheme not in _DEFAULT_PORTS or not is_host(host) or "%" in host or bracketed != (":" in host):
        raise ValueError
    if parts.port == 0 or parts.netloc.endswith(":"):
        raise ValueError
    return value


def _public_url(value: str) -> str:
    if value.endswith("/"):
        raise ValueError
    return _base_url(value)


def _forwarding_url(value: str) -> str:
    return _base_url(value).rstrip("/")


def _character_set(value: str) -> str:
    first, *others = value.split("\\")
    if others:
        # Only terms with code extensions go together, and the first may be empty (PS3.3 C.12.1.1.2).
        valid = all(term in _EXTENSION_CHARACTER_SETS for term in others)
        valid = valid and (first == "" or first in _EXTENSION_CHARACTER_SETS)
    else:
        valid = first in _SINGLE_CHARACTER_SETS | _EXTENSION_CHARACTER_SETS
    if not valid:
        raise ValueError
    return value


def _origin(value: str) -> str:
    if "://" in value:
        if urlsplit(_base_url(value)).path:
            raise ValueError
    # "null" is what browsers send for a page without an origin, not a host; and never to be trusted.
    elif value != "*" and (value == "null" or "%" in value or not is_host(value)):
        raise ValueError
    return value


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError
    return value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError
    return value


def _one_or_list(value: object, check: Callable[[object], Any]) -> Any:
    if not isinstance(value, str):
        return check(value)
    try:
        return check([value])
    except ValidationError:
        # Its error would name item 0 of a list that is not in the file.
        raise ValueError from None


def _expand_origin(entry: str) -> tuple[str, ...]:
    if entry == "*":
        return ("*",)
    scheme, separator, authority = entry.rpartition("://")
    if not separator:
        host = _origin_host(entry)
        return (f"https://{host}", f"http://{host}")
    parts = urlsplit(f"//{authority}")
    scheme = scheme.lower()
    host = _origin_host(parts.hostname or "")
    port = "" if parts.port in (None, _DEFAULT_PORTS[scheme]) else f":{parts.port}"
    return (f"{scheme}://{host}{port}",)


def _origin_host(host: str) -> str:
    if ":" in host:
        return f"[{ipaddress.ip_address(host).compressed}]"
    return host.lower()


# --- types -------------------------------------------------------------------------------------------------

A_PORT: Final = "a whole number from 1 to 65535"
ANY_PORT: Final = "a whole number from 1 to 65535, or 0 for any free port"
AN_AE_TITLE: Final = "an AE title: 1 to 16 printable ASCII characters, without backslash"
A_HOST: Final = "an IPv4 or IPv6 address or a host name"
A_TIME: Final = "a number of seconds above 0, at most 86400"
AN_ORIGIN: Final = '"*", a host such as "pacsbin.com", or an origin such as "https://pacsbin.com", without path'
A_FORWARDING_URL: Final = "an http or https URL without user, query or fragment"

Port = Annotated[int, Strict(), Field(ge=1, le=65535), Allowed(A_PORT)]
ListenPort = Annotated[int, Strict(), Field(ge=0, le=65535), Allowed(ANY_PORT)]
AETitle = Annotated[str, AfterValidator(_ae_title), Allowed(AN_AE_TITLE)]
Host = Annotated[str, AfterValidator(_host), Allowed(A_HOST)]
Seconds = Annotated[float, Strict(), Field(gt=0, le=86400, allow_inf_nan=False), Allowed(A_TIME)]
Switch = Annotated[bool, Strict(), Allowed("true or false")]
AssociationCount = Annotated[int, Strict(), Field(ge=1, le=1000), Allowed("a whole number from 1 to 1000")]
PathText = Annotated[Path, BeforeValidator(_path), Allowed("a path")]
ForwardingUrl = Annotated[str, AfterValidator(_forwarding_url), Allowed(A_FORWARDING_URL)]


class Section(BaseModel):
    """An object of the file. Keys that it does not know are left to the caller, who warns of them."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, extra="ignore")


class Timeouts(Section):
    """Times in seconds after which a peer is given up.

    `connect` bounds the TCP connection, `associate` the answer to A-ASSOCIATE-RQ, `release` that to
    A-RELEASE-RQ, `response` that to a DIMSE request, `idle` silence within a running operation, `retrieve` a
    retrieval in which nothing arrives, whatever the archive says meanwhile.
    """

    connect: Seconds = 5.0
    associate: Seconds = 5.0
    release: Seconds = 5.0
    response: Seconds = 30.0
    idle: Seconds = 300.0
    retrieve: Seconds = 300.0


class ProxyServer(Section):
    """The proxy as an application entity: its AE title, and where its C-STORE SCP listens.

    `ip` and `port` may be left out where no peer is asked with C-MOVE: nothing listens then, and both are unused.
    """

    aet: AETitle
    ip: Host = "0.0.0.0"  # noqa: S104 - only where nothing listens; else the key is required
    port: ListenPort = 0


class Peer(Section):
    """An archive.

    What the file leaves out here (`name`, `local_aet`, `max_associations`, `use_cget`, single `timeouts`) is
    filled in from the settings above it when the file is parsed: the values are always those that apply.
    `store_aets` are AE titles beside `aet` that may send C-STORE for this peer. `default_character_set` is the
    Specific Character Set (0008,0005) to assume where a data set names none: one defined term, or several with
    `\\` between them (PS3.3 C.12.1.1.2).
    """

    aet: AETitle
    ip: Host
    port: Port
    name: Annotated[str, AfterValidator(_name), Allowed("1 to 64 printable characters, without spaces at its ends")] = (
        ""
    )
    local_aet: AETitle = ""
    max_associations: AssociationCount = 4
    use_cget: Switch = False
    store_aets: Annotated[tuple[AETitle, ...], Allowed("a list of AE titles")] = ()
    default_character_set: Annotated[
        Annotated[str, AfterValidator(_character_set)] | None,
        Allowed('a DICOM character set such as "ISO_IR 100", or null'),
    ] = None
    timeouts: Annotated[Timeouts, Allowed("an object of times in seconds")] = Timeouts()


class DimseSettings(Section):
    """The DIMSE side: the proxy's own application entity and the archives, in the file's order.

    `timeouts` are those of every peer that does not set its own.
    """

    proxy_server: Annotated[ProxyServer, Allowed("an object with aet, ip and port")]
    peers: Annotated[
        tuple[Annotated[Peer, Allowed("an object with aet, ip and port")], ...],
        AfterValidator(_not_empty),
        Allowed("a list of at least one object with aet, ip and port"),
    ]
    timeouts: Annotated[Timeouts, Allowed("an object of times in seconds")] = Timeouts()


class DicomwebSettings(Section):
    """Where requests go in dicomweb mode. Each URL keeps its base path and has no trailing slash."""

    qido_forwarding_url: ForwardingUrl
    wado_forwarding_url: ForwardingUrl


class Ssl(Section):
    """HTTPS. `redirect_http` is True only while HTTPS is enabled."""

    enabled: Switch = False
    port: Port = 443
    cert_path: PathText = INSTALL_DIR / "certs/server.crt"
    key_path: PathText = INSTALL_DIR / "certs/server.key"
    generate_self_signed: Switch = False
    redirect_http: Annotated[Switch, Field(validate_default=True)] = True

    @field_validator("cert_path", "key_path")
    @classmethod
    def _absolute_when_enabled(cls, path: Path, info: ValidationInfo) -> Path:
        if info.data.get("enabled") and not path.is_absolute():
            raise not_allowed("an absolute path, since ssl.enabled is true")
        return path

    @field_validator("redirect_http")
    @classmethod
    def _only_when_enabled(cls, redirect: bool, info: ValidationInfo) -> bool:
        return redirect and bool(info.data.get("enabled"))


class Cors(Section):
    """Which web pages may call the proxy. `origin` holds the file's entries; see `allowed_origins`."""

    origin: Annotated[
        tuple[Annotated[str, AfterValidator(_origin), Allowed(AN_ORIGIN)], ...],
        WrapValidator(_one_or_list),
        Allowed(f"{AN_ORIGIN}; or a list of these"),
    ] = ("*",)
    methods: Annotated[
        tuple[Annotated[str, AfterValidator(_token), AfterValidator(str.upper), Allowed("an HTTP method")], ...],
        Allowed("a list of HTTP methods"),
    ] = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
    allowed_headers: Annotated[
        tuple[Annotated[str, AfterValidator(_token), Allowed("the name of an HTTP header")], ...],
        Allowed("a list of names of HTTP headers"),
    ] = ("Content-Type", "Authorization", "Accept")
    credentials: Switch = True

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins as browsers send them (RFC 6454 6.2), without repeats; "*" stays "*".

        A bare host gives its https and its http origin. Scheme and host are in lower case, and a default port is
        left out.
        """
        return tuple(dict.fromkeys(origin for entry in self.origin for origin in _expand_origin(entry)))


class Config(Section):
    """The whole configuration, checked, every default and fallback filled in. Made by `parse_config` only."""

    proxy_mode: Annotated[Literal["dimse", "dicomweb"], Allowed('"dimse" or "dicomweb"')]
    dimse: Annotated[
        DimseSettings | None,
        Field(alias="dimseProxySettings"),
        Allowed("an object with proxyServer and peers"),
    ] = None
    dicomweb: Annotated[
        DicomwebSettings | None,
        Field(alias="dicomwebProxySettings"),
        Allowed("an object with qidoForwardingUrl and wadoForwardingUrl"),
    ] = None
    webserver_port: ListenPort = 3006
    webserver_host: Host = "0.0.0.0"  # noqa: S104 - other computers are meant to call, and always could
    public_url: Annotated[
        Annotated[str, AfterValidator(_public_url)] | None,
        Allowed(f"{A_FORWARDING_URL} and without trailing slash, or null"),
    ] = None
    storage_path: PathText = Path("./data")
    cache_retention_minutes: Annotated[
        float, Strict(), Field(ge=0, le=1e9), Allowed("a number of minutes from 0 to 1000000000")
    ] = 60.0
    enable_cache: Switch = True
    cache_max_size_mb: Annotated[
        int,
        Strict(),
        Field(ge=1, le=10**9, alias="cacheMaxSizeMB"),
        Allowed("a whole number of megabytes from 1 to 1000000000"),
    ] = 10240
    use_cget: Switch = False
    use_fetch_level: Annotated[Literal["STUDY", "SERIES", "IMAGE"], Allowed('"STUDY", "SERIES" or "IMAGE"')] = "SERIES"
    max_associations: AssociationCount = 4
    qido_min_chars: Annotated[int, Strict(), Field(ge=0), Allowed("a whole number, 0 or more")] = 0
    qido_append_wildcard: Switch = True
    ssl: Annotated[Ssl, Allowed("an object with enabled, port, certPath …")] = Ssl()
    cors: Annotated[Cors, Allowed("an object with origin, methods, allowedHeaders and credentials")] = Cors()
    log_dir: Annotated[PathText | None, Allowed("a path, or null")] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Allowed('"DEBUG", "INFO", "WARNING" or "ERROR"')
    ] = "INFO"
    shutdown_seconds: Annotated[
        float, Strict(), Field(ge=0, le=3600), Allowed("a number of seconds from 0 to 3600")
    ] = 20.0

    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _unsupported: tuple[ConfigProblem, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the file holds without effect: unknown keys, keys given twice, and keys of later versions."""
        return self._warnings

    @property
    def unsupported(self) -> tuple[ConfigProblem, ...]:
        """What is valid but not in this version: the proxy must not start with any of these."""
        return self._unsupported

    @property
    def uses_cmove(self) -> bool:
        """True when some peer is asked with C-MOVE, so that the C-STORE SCP must listen."""
        dimse = self.dimse if self.proxy_mode == "dimse" else None
        return dimse is not None and not all(peer.use_cget for peer in dimse.peers)

    def with_remarks(self, warnings: tuple[str, ...], unsupported: tuple[ConfigProblem, ...]) -> Config:
        """Copy this configuration with what parsing found beside it."""
        config = self.model_copy()
        config._warnings = warnings
        config._unsupported = unsupported
        return config
