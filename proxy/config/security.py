"""The keys about who may use the proxy, and how: HTTPS, CORS, access control, limits, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    Strict,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from proxy.config.types import (
    A_PORT,
    AN_ORIGIN,
    AddressRanges,
    Allowed,
    HeaderNames,
    Host,
    HttpMethods,
    Name,
    OptionalPath,
    OptionalText,
    Origin,
    PasswordHash,
    PathText,
    Port,
    PositiveCount,
    ProviderUrl,
    Seconds,
    Section,
    Switch,
    Text,
    TokenHash,
    UserName,
    expand_origin,
    not_allowed,
    not_empty,
    one_or_list,
)

INSTALL_DIR: Final = Path("/opt/dicomweb-proxy")


class Ssl(Section):
    """HTTPS. `redirect_http` is True only while HTTPS is enabled.

    `self_signed_names` are names and addresses for a self-signed certificate beside those of this machine.
    `client_ca_file` holds the authorities (PEM) whose client certificates are asked for; see `auth`.
    `hsts_seconds` is the max-age of Strict-Transport-Security (RFC 6797).
    """

    enabled: Switch = False
    port: Port = 443
    cert_path: PathText = INSTALL_DIR / "certs/server.crt"
    key_path: PathText = INSTALL_DIR / "certs/server.key"
    generate_self_signed: Switch = False
    self_signed_names: Annotated[tuple[Host, ...], Allowed("a list of host names and addresses")] = ()
    client_ca_file: OptionalPath = None
    hsts_seconds: Annotated[
        int, Strict(), Field(ge=0, le=10**9), Allowed("a whole number of seconds, 0 for no such header")
    ] = 0
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
        tuple[Origin, ...],
        WrapValidator(one_or_list),
        Allowed(f"{AN_ORIGIN}; or a list of these"),
    ] = ("*",)
    methods: HttpMethods = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
    allowed_headers: HeaderNames = ("Content-Type", "Authorization", "Accept")
    credentials: Switch = True

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins as browsers send them (RFC 6454 6.2), without repeats; "*" stays "*".

        A bare host gives its https and its http origin. Scheme and host are in lower case, and a default port is
        left out.
        """
        return tuple(dict.fromkeys(origin for entry in self.origin for origin in expand_origin(entry)))


class Rights(Section):
    """What somebody who has signed in may do.

    `peers` are the names of the archives that they may use, None stands for all; `write` allows uploads (in
    dicomweb mode, every method but GET, HEAD and OPTIONS), `admin` what is about the proxy itself: emptying the cache,
    and C-ECHO on demand.
    """

    peers: Annotated[tuple[Name, ...] | None, Allowed("a list of names of peers, or null for all")] = None
    write: Switch = False
    admin: Switch = False


class User(Rights):
    """Somebody who signs in by HTTP Basic (RFC 7617)."""

    name: UserName
    password_hash: PasswordHash


class Token(Rights):
    """A program that signs in by a bearer token (RFC 6750). `expires` is a time with its zone."""

    name: Name
    token_hash: TokenHash
    expires: Annotated[AwareDatetime | None, Allowed('a time such as "2027-12-31T00:00:00Z", or null')] = None


class Jwt(Rights):
    """Bearer tokens that an identity provider signs (RFC 7519, OpenID Connect); the rights are those of all its users.

    The keys come from `jwks_file`, else from `jwks_url`, else from the issuer's discovery document. `ca_file` holds
    the authorities for those addresses, None stands for the system's own. `user_claim` names who it is.
    `write_scope` and `admin_scope` are scopes of a token (RFC 8693 4.2, claim `scope` or `scp`) that allow more.
    """

    issuer: Text
    audience: Text
    jwks_url: ProviderUrl = None
    jwks_file: OptionalPath = None
    ca_file: OptionalPath = None
    algorithms: Annotated[
        tuple[
            Annotated[
                Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
                Allowed("a signature algorithm such as RS256 or ES256; none without a public key"),
            ],
            ...,
        ],
        AfterValidator(not_empty),
        Allowed("a list of at least one signature algorithm"),
    ] = ("RS256", "ES256")
    user_claim: Text = "sub"
    write_scope: OptionalText = None
    admin_scope: OptionalText = None
    leeway: Annotated[float, Strict(), Field(ge=0, le=600), Allowed("a number of seconds from 0 to 600")] = 30.0


class CertificateUser(Rights):
    """Somebody whose client certificate has this common name, e-mail address or DNS name."""

    name: Name


class Auth(Section):
    """Who may use the proxy over HTTP. Any one of the ways to sign in that are set will do.

    `allowed_networks` holds whether `enabled` or not: from elsewhere nobody may, but for `/ping`; empty allows all.
    `open_status` shows the status page, `/health`, `/status` and metrics without signing in.
    Client certificates are those that `ssl.client_ca_file` vouches for.
    """

    enabled: Switch = False
    allowed_networks: AddressRanges = ()
    open_status: Switch = False
    users: Annotated[
        tuple[Annotated[User, Allowed("an object with name and passwordHash")], ...], Allowed("a list")
    ] = ()
    tokens: Annotated[
        tuple[Annotated[Token, Allowed("an object with name and tokenHash")], ...], Allowed("a list")
    ] = ()
    jwt: Annotated[Jwt | None, Allowed("an object with issuer and audience, or null")] = None
    certificates: Annotated[
        tuple[Annotated[CertificateUser, Allowed("an object with name")], ...], Allowed("a list of objects")
    ] = ()


class HttpLimits(Section):
    """How much the HTTP side takes at once; what is over gets 429 or 503 with Retry-After, or is closed.

    `requests` and `requests_per_client` are answers under way, `connections` and `connections_per_client` TCP
    connections, `header_seconds` the time for a request's head to arrive whole. A client is an address.
    """

    requests: PositiveCount = 512
    requests_per_client: PositiveCount = 128
    connections: PositiveCount = 2048
    connections_per_client: PositiveCount = 256
    header_seconds: Seconds = 20.0


class Syslog(Section):
    """A receiver of DICOM audit messages (PS3.15 A.5, RFC 5424): over TLS (RFC 5425) or UDP (RFC 5426).

    `ca_file` holds the authorities (PEM) one of which must have signed its certificate, None stands for the system's
    own; the certificate must name the `host` unless `check_hostname` is False. `cert_file` and `key_file` are shown to
    a receiver that asks who calls.
    """

    host: Host
    protocol: Annotated[Literal["tls", "udp"], Allowed('"tls" or "udp"')] = "tls"
    port: Annotated[Port | None, Allowed(f"{A_PORT}, or null for the usual one")] = None
    ca_file: OptionalPath = None
    cert_file: OptionalPath = None
    key_file: OptionalPath = None
    check_hostname: Switch = True

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError
        return self

    @property
    def receiver_port(self) -> int:
        """The port: where none is given, that of PS3.15 A.6 or A.7."""
        return self.port or {"tls": 6514, "udp": 514}[self.protocol]


class Audit(Section):
    """The record of who accessed what: JSON lines to `file`, to the journal, DICOM audit messages to `syslog`.

    `required` refuses requests while `file` cannot be written. `source_id` is the AuditSourceID of the messages
    (PS3.15 Table A.5.2-1), None stands for the name of this machine.
    """

    file: OptionalPath = None
    journal: Switch = False
    required: Switch = False
    syslog: Annotated[
        Syslog | None,
        Allowed("an object with host, protocol and port, and with certFile and keyFile or neither; or null"),
    ] = None
    source_id: OptionalText = None

    @field_validator("required")
    @classmethod
    def _with_file(cls, required: bool, info: ValidationInfo) -> bool:
        if required and info.data.get("file", Path()) is None:
            raise not_allowed("false, since audit.file is not set")
        return required
