"""What the values of a configuration may be: one rule for each kind of value, and the words that say it.

The keys themselves, with their defaults, are in `schema`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from proxy.addresses import Network, parse_network

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


class Secret:
    """Marks a key whose value no message may show, not even a wrong one."""


class Section(BaseModel):
    """An object of the file. Keys that it does not know are left to the caller, who warns of them."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, extra="ignore")


# --- rules -------------------------------------------------------------------------------------------------

_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?")
_URL_TEXT = re.compile(r"[!-~]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PASSWORD_HASH = re.compile(r"\$argon2(?:id|i|d)\$v=\d+\$[a-z0-9=,]+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
_TOKEN_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

BELOW: Final = "*."
"""What stands before a host in `cors.origin` to mean all hosts below it, at any depth, and not the host itself."""

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


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError
    return parse_network(value)


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


def is_provider_url(text: str) -> bool:
    """Tell whether an identity provider may be asked at an address: nobody in between can change the answer."""
    address, _, query = text.partition("?")
    try:
        parts = urlsplit(_base_url(address))
    except ValueError:
        return False
    if query and (not _URL_TEXT.fullmatch(query) or "#" in query):
        return False
    host = parts.hostname or ""
    here = host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
    return parts.scheme == "https" or here


def _provider_url(value: str) -> str:
    if not is_provider_url(value):
        raise ValueError
    return value


def _user_name(value: str) -> str:
    # The first colon ends the name where a client sends it (RFC 7617 2).
    if ":" in value:
        raise ValueError
    return _name(value)


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
    if value == "*":
        return value
    scheme, separator, authority = value.rpartition("://")
    host = authority.removeprefix(BELOW)
    if separator:
        parts = urlsplit(_base_url(f"{scheme}://{host}"))
        if parts.path:
            raise ValueError
        host = parts.hostname or ""
    # "null" is what browsers send for a page without an origin, not a host; and never to be trusted.
    elif host == "null" or "%" in host or not is_host(host):
        raise ValueError
    if authority.startswith(BELOW) and (is_address(host) or "." not in host.removesuffix(".")):
        raise ValueError
    return value


def _password_hash(value: str) -> str:
    # PHC string format, as argon2 prints it; a password itself must be told from it.
    if not _PASSWORD_HASH.fullmatch(value):
        raise ValueError
    return value


def _token_hash(value: str) -> str:
    if not _TOKEN_HASH.fullmatch(value):
        raise ValueError
    return value.lower()


def _variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError
    return value


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError
    return value


def not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse an empty list."""
    if not value:
        raise ValueError
    return value


def one_or_list(value: object, check: Callable[[object], Any]) -> Any:
    """Take a single text for a list of one."""
    if not isinstance(value, str):
        return check(value)
    try:
        return check([value])
    except ValidationError:
        # Its error would name item 0 of a list that is not in the file.
        raise ValueError from None


def expand_origin(entry: str) -> tuple[str, ...]:
    """Write an entry of `cors.origin` as the origins that browsers send (RFC 6454 6.2); `BELOW` stays before a host."""
    if entry == "*":
        return ("*",)
    scheme, separator, authority = entry.rpartition("://")
    below = BELOW if authority.startswith(BELOW) else ""
    authority = authority.removeprefix(BELOW)
    if not separator:
        host = below + _origin_host(authority)
        return (f"https://{host}", f"http://{host}")
    parts = urlsplit(f"//{authority}")
    scheme = scheme.lower()
    host = below + _origin_host(parts.hostname or "")
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
A_NETWORK: Final = 'an IPv4 or IPv6 address, or a network such as "10.1.2.0/24"'
A_TIME: Final = "a number of seconds above 0, at most 86400"
AN_ORIGIN: Final = (
    '"*", a host such as "pacsbin.com", or an origin such as "https://pacsbin.com", without path; the host may be '
    '"*.pacsbin.com", for all hosts below pacsbin.com, but not "*.com"'
)
A_PROVIDER_URL: Final = "an https URL without user or fragment; or http, on this machine only"
A_FORWARDING_URL: Final = "an http or https URL without user, query or fragment"

Port = Annotated[int, Strict(), Field(ge=1, le=65535), Allowed(A_PORT)]
ListenPort = Annotated[int, Strict(), Field(ge=0, le=65535), Allowed(ANY_PORT)]
AETitle = Annotated[str, AfterValidator(_ae_title), Allowed(AN_AE_TITLE)]
Host = Annotated[str, AfterValidator(_host), Allowed(A_HOST)]
AddressRange = Annotated[Network, BeforeValidator(_network), Allowed(A_NETWORK)]
AddressRanges = Annotated[tuple[AddressRange, ...], Allowed("a list of addresses and networks")]
Seconds = Annotated[float, Strict(), Field(gt=0, le=86400, allow_inf_nan=False), Allowed(A_TIME)]
Switch = Annotated[bool, Strict(), Allowed("true or false")]
AssociationCount = Annotated[int, Strict(), Field(ge=1, le=1000), Allowed("a whole number from 1 to 1000")]
PathText = Annotated[Path, BeforeValidator(_path), Allowed("a path")]
ForwardingUrl = Annotated[str, AfterValidator(_forwarding_url), Allowed(A_FORWARDING_URL)]
Name = Annotated[str, AfterValidator(_name), Allowed("1 to 64 printable characters, without spaces at its ends")]
UserName = Annotated[
    str,
    AfterValidator(_user_name),
    Allowed("1 to 64 printable characters, without colon and without spaces at its ends"),
]
ProviderUrl = Annotated[Annotated[str, AfterValidator(_provider_url)] | None, Allowed(f"{A_PROVIDER_URL}; or null")]
Origin = Annotated[str, AfterValidator(_origin), Allowed(AN_ORIGIN)]
HttpMethods = Annotated[
    tuple[Annotated[str, AfterValidator(_token), AfterValidator(str.upper), Allowed("an HTTP method")], ...],
    Allowed("a list of HTTP methods"),
]
HeaderNames = Annotated[
    tuple[Annotated[str, AfterValidator(_token), Allowed("the name of an HTTP header")], ...],
    Allowed("a list of names of HTTP headers"),
]
PublicUrl = Annotated[
    Annotated[str, AfterValidator(_public_url)] | None,
    Allowed(f"{A_FORWARDING_URL} and without trailing slash, or null"),
]
CharacterSet = Annotated[
    Annotated[str, AfterValidator(_character_set)] | None,
    Allowed('a DICOM character set such as "ISO_IR 100", or null'),
]
PasswordHash = Annotated[
    str,
    AfterValidator(_password_hash),
    Allowed("what `python -m proxy hash-password` printed"),
    Secret(),
]
TokenHash = Annotated[
    str,
    AfterValidator(_token_hash),
    Allowed("a hash that `python -m proxy make-token` printed"),
    Secret(),
]
Variable = Annotated[
    Annotated[str, AfterValidator(_variable)] | None, Allowed("the name of an environment variable, or null")
]
Text = Annotated[str, Field(min_length=1, max_length=1024), Allowed("a text of 1 to 1024 characters")]
OptionalText = Annotated[Text | None, Allowed("a text of 1 to 1024 characters, or null")]
PositiveCount = Annotated[int, Strict(), Field(ge=1, le=1000000), Allowed("a whole number from 1 to 1000000")]
OptionalPath = Annotated[PathText | None, Allowed("a path, or null")]
