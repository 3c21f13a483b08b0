"""The schema of the configuration: every key, its type, its default, and what is allowed, in words.

The kinds of values are in `types`, the keys about who may do what in `security`, rules between keys in `rules`.
Attributes are snake_case, the file's keys are the same names in camelCase.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, Strict

from proxy.config.errors import ConfigProblem
from proxy.config.security import Audit, Auth, Cors, HttpLimits, Ssl
from proxy.config.types import (
    AddressRanges,
    AETitle,
    Allowed,
    AssociationCount,
    CharacterSet,
    ForwardingUrl,
    Host,
    ListenPort,
    Name,
    OptionalPath,
    OptionalText,
    PathText,
    Port,
    PublicUrl,
    Seconds,
    Section,
    Switch,
    Variable,
    not_empty,
)


class Timeouts(Section):
    """Times in seconds after which a peer is given up.

    `connect` bounds the TCP connection, `associate` the answer to A-ASSOCIATE-RQ, `release` that to
    A-RELEASE-RQ, `response` that to a DIMSE request, `idle` silence within a running operation, `retrieve` a
    retrieval in which nothing arrives, whatever the archive says meanwhile. `nearline` takes the place of `retrieve`
    where the archive has to bring instances back from slow storage (Instance Availability (0008,0056) NEARLINE or
    OFFLINE).
    """

    connect: Seconds = 5.0
    associate: Seconds = 5.0
    release: Seconds = 5.0
    response: Seconds = 30.0
    idle: Seconds = 300.0
    retrieve: Seconds = 300.0
    nearline: Seconds = 1800.0


class ServerTls(Section):
    """DICOM TLS for archives that send C-STOREs (PS3.15 B), on a port of its own.

    `cert_file` and `key_file` are the proxy's (PEM). With `ca_file` a caller must show a certificate that one of those
    authorities has signed.
    """

    port: ListenPort = 2762
    cert_file: PathText
    key_file: PathText
    ca_file: OptionalPath = None


class ProxyServer(Section):
    """The proxy as an application entity: its AE title, and where its C-STORE SCP listens.

    `ip` and `port` may be left out where no peer is asked with C-MOVE: nothing listens then, and both are unused.
    `check_store_host` takes C-STOREs only from the peers' addresses, their `store_hosts` included.
    With `tls` there is a second listener, and peers that have `tls` too must send by it.
    """

    aet: AETitle
    ip: Host = "0.0.0.0"  # noqa: S104 - only where nothing listens; else the key is required
    port: ListenPort = 0
    check_store_host: Switch = True
    tls: Annotated[ServerTls | None, Allowed("an object with port, certFile, keyFile and caFile, or null")] = None


class PeerTls(Section):
    """DICOM TLS towards an archive (PS3.15 B): its certificate must always be signed by a known authority.

    `ca_file` holds the certificates of the authorities (PEM), None stands for the system's own. `cert_file` and
    `key_file` are shown to archives that ask who calls; both or neither. `check_hostname` asks that the archive's
    certificate names the `ip` that it is called by: few do, since PS3.15 does not ask for it.
    """

    ca_file: OptionalPath = None
    cert_file: OptionalPath = None
    key_file: OptionalPath = None
    check_hostname: Switch = False


class Peer(Section):
    """An archive.

    What the file leaves out here (`name`, `local_aet`, `max_associations`, `use_cget`, single `timeouts`) is
    filled in from the settings above it when the file is parsed: the values are always those that apply.
    `store_aets` are AE titles beside `aet`, `store_hosts` addresses beside `ip`, that may send C-STORE for this peer.
    `query_model` says by which Query/Retrieve Information Model it is asked: Study Root or Patient Root (PS3.4 C.6).
    `sequential` allows one C-MOVE or C-GET at a time, `uncompressed` only uncompressed transfer syntaxes.
    `default_character_set` is the Specific Character Set (0008,0005) to assume where a data set names none: one
    defined term, or several with `\\` between them (PS3.3 C.12.1.1.2). Without `tls`, DICOM is spoken in clear text.
    """

    aet: AETitle
    ip: Host
    port: Port
    name: Name = ""
    local_aet: AETitle = ""
    max_associations: AssociationCount = 4
    use_cget: Switch = False
    store_aets: Annotated[tuple[AETitle, ...], Allowed("a list of AE titles")] = ()
    store_hosts: AddressRanges = ()
    query_model: Annotated[Literal["STUDY", "PATIENT"], Allowed('"STUDY" or "PATIENT"')] = "STUDY"
    sequential: Switch = False
    uncompressed: Switch = False
    default_character_set: CharacterSet = None
    tls: Annotated[PeerTls | None, Allowed("an object with caFile, certFile, keyFile …, or null")] = None
    timeouts: Annotated[Timeouts, Allowed("an object of times in seconds")] = Timeouts()


class DimseSettings(Section):
    """The DIMSE side: the proxy's own application entity and the archives, in the file's order.

    `timeouts` are those of every peer that does not set its own.
    """

    proxy_server: Annotated[ProxyServer, Allowed("an object with aet, ip and port")]
    peers: Annotated[
        tuple[Annotated[Peer, Allowed("an object with aet, ip and port")], ...],
        AfterValidator(not_empty),
        Allowed("a list of at least one object with aet, ip and port"),
    ]
    timeouts: Annotated[Timeouts, Allowed("an object of times in seconds")] = Timeouts()


class UpstreamTimeouts(Section):
    """Times in seconds after which the upstream is given up: `connect` to be connected, TLS included, `response` until
    the head of an answer is here, `idle` without a byte of a body, either way.
    """

    connect: Seconds = 5.0
    response: Seconds = 60.0
    idle: Seconds = 120.0


class Credentials(Section):
    """How the proxy signs in at the upstream: with `username` by HTTP Basic, without by a bearer token.

    The password or token is the content of `secret_file`, or of the environment variable `secret_variable`.
    """

    username: OptionalText = None
    secret_file: OptionalPath = None
    secret_variable: Variable = None


class DicomwebSettings(Section):
    """Where requests go in dicomweb mode. Each URL keeps its base path and has no trailing slash.

    `ca_file` holds the authorities (PEM) for https, None stands for the system's own. `rewrite_urls` turns the
    upstream's addresses in answers into the proxy's own.
    """

    qido_forwarding_url: ForwardingUrl
    wado_forwarding_url: ForwardingUrl
    ca_file: OptionalPath = None
    credentials: Annotated[Credentials | None, Allowed("an object with username and secretFile, or null")] = None
    rewrite_urls: Switch = True
    timeouts: Annotated[UpstreamTimeouts, Allowed("an object of times in seconds")] = UpstreamTimeouts()


class Config(Section):
    """The whole configuration, checked, every default and fallback filled in. Made by `parse_config` only.

    `store_to` is the name of the peer that uploads go to; empty only where there are no peers. `trusted_proxies` are
    the addresses of reverse proxies, whose X-Forwarded-For, -Proto and -Host are believed.
    """

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
    public_url: PublicUrl = None
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
    store_to: Annotated[str, Strict(), Allowed("the name of a peer")] = ""
    max_upload_mb: Annotated[
        int,
        Strict(),
        Field(ge=1, le=10**9, alias="maxUploadMB"),
        Allowed("a whole number of megabytes from 1 to 1000000000"),
    ] = 4096
    use_cget: Switch = False
    use_fetch_level: Annotated[Literal["STUDY", "SERIES", "IMAGE"], Allowed('"STUDY", "SERIES" or "IMAGE"')] = "SERIES"
    max_associations: AssociationCount = 4
    qido_min_chars: Annotated[int, Strict(), Field(ge=0), Allowed("a whole number, 0 or more")] = 0
    qido_append_wildcard: Switch = True
    ssl: Annotated[Ssl, Allowed("an object with enabled, port, certPath …")] = Ssl()
    cors: Annotated[Cors, Allowed("an object with origin, methods, allowedHeaders and credentials")] = Cors()
    auth: Annotated[Auth, Allowed("an object with enabled, users, tokens …")] = Auth()
    limits: Annotated[HttpLimits, Allowed("an object with requests, connections …")] = HttpLimits()
    trusted_proxies: AddressRanges = ()
    audit: Annotated[Audit, Allowed("an object with file, journal and syslog")] = Audit()
    log_dir: OptionalPath = None
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
        """What the file holds without effect: unknown keys, and keys given twice."""
        return self._warnings

    @property
    def unsupported(self) -> tuple[ConfigProblem, ...]:
        """What is valid but not in this version: the proxy must not start with any of these."""
        return self._unsupported

    @property
    def uses_cache(self) -> bool:
        """True when instances are kept for later requests; to keep them for no time at all is not to keep them."""
        return self.enable_cache and self.cache_retention_minutes > 0

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
