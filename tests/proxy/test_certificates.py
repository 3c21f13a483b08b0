"""Certificates of HTTPS: what is said of wrong ones, and the self-signed ones that the proxy makes and renews.

OpenSSL's own program judges what is made here, and makes what the library does not.
"""

from __future__ import annotations

import datetime
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxy.config.checking import parse_config
from proxy.security.tls import self_signed
from proxy.security.tls.certificates import (
    CertificateError,
    PemFile,
    covers,
    fingerprint,
    names_of,
    read_chain,
    read_key,
)
from proxy.security.tls.checks import Checked, Severity, Wanted, check
from proxy.security.tls.https import https_files
from proxy.security.tls.interfaces import own_addresses
from proxy.security.tls.self_signed import OWN, VALID, make, new_key, provide, wanted_names, write_private
from tests.proxy.chains import DAY, NAMES, NOW, Files, Signed, authority, openssl, server
from tests.proxy.configs import MINIMAL

ROOT = authority("Hospital Root")
BETWEEN = authority("Hospital Issuing", ROOT)
LEAF = server(BETWEEN)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate with the authority in between, as it should be."""
    files = Files(tmp_path)
    files.write(LEAF.pem() + BETWEEN.pem(), LEAF.key_pem())
    return files


def checked(files: Files, now: datetime.datetime = NOW, wanted: Wanted | None = None) -> Checked:
    """Look at the files."""
    return check(files.certificate, files.key, now, wanted=wanted)


def said(files: Files, severity: Severity, **more: object) -> str:
    """What is said of them, which must be of that severity and one thing only; without the file's path."""
    (finding,) = checked(files, **more).findings  # type: ignore[arg-type]
    assert finding.severity is severity, finding
    assert str(files.folder) in finding.text
    return finding.text.replace(f"{files.folder}/", "")


# --- what is right -------------------------------------------------------------------------------------------


def test_a_chain_as_it_should_be(files: Files) -> None:
    """Nothing is said of it, and OpenSSL takes it."""
    found = checked(files, wanted=Wanted("dicom.hospital.example", "publicUrl"))
    assert (found.findings, found.worst()) == ((), None)
    assert found.context is not None
    assert found.leaf == LEAF.certificate


def test_a_root_at_the_end_is_no_fault(files: Files) -> None:
    files.write(LEAF.pem() + BETWEEN.pem() + ROOT.pem(), LEAF.key_pem())
    assert checked(files).findings == ()


# --- files that cannot be used -------------------------------------------------------------------------------


DER = LEAF.certificate.public_bytes(serialization.Encoding.DER)
ENCRYPTED = LEAF.key_pem(b"secret")
OTHER_KEY = server(BETWEEN).key_pem()


@pytest.mark.parametrize(
    ("certificate", "key", "expected"),
    [
        (b"", None, "server.crt (key: ssl.certPath) is empty"),
        (b"hello", None, "server.crt (key: ssl.certPath) holds no PEM certificate"),
        (DER, None, "server.crt (key: ssl.certPath) holds no PEM text but DER or PKCS #12; `openssl x509"),
        (LEAF.key_pem(), None, "server.crt (key: ssl.certPath) holds a private key in the place of a certificate"),
        (LEAF.pem()[:300] + b"\n-----END CERTIFICATE-----\n", None, "server.crt (key: ssl.certPath) holds a certif"),
        (b"x" * (1024 * 1024 + 1), None, "server.crt (key: ssl.certPath) is too large to be a PEM file"),
        (None, b" \n", "server.key (key: ssl.keyPath) is empty"),
        (None, b"hello", "server.key (key: ssl.keyPath) holds no PEM private key"),
        (None, LEAF.pem(), "server.key (key: ssl.keyPath) holds a certificate in the place of a private key"),
        (
            None,
            LEAF.key_pem()[:100] + b"\n-----END PRIVATE KEY-----\n",
            "server.key (key: ssl.keyPath) holds a private",
        ),
        (None, b"\x30\x82", "server.key (key: ssl.keyPath) holds no PEM text but DER; `openssl pkey -inform der`"),
        (None, ENCRYPTED, "server.key (key: ssl.keyPath) is encrypted, and nobody is there to enter its password"),
        (None, OTHER_KEY, "server.key (key: ssl.keyPath) is not the key of the certificate in"),
        (
            BETWEEN.pem() + LEAF.pem(),
            None,
            "server.crt (key: ssl.certPath) is in the wrong order: certificate 2 belongs to the key, and must be the",
        ),
    ],
    ids=[
        "empty",
        "text",
        "der",
        "key-for-it",
        "damaged",
        "large",
        "no-key",
        "text-for-key",
        "certificate-for-key",
        "damaged-key",
        "der-key",
        "encrypted",
        "other-key",
        "wrong-order",
    ],
)
def test_what_cannot_be_used(files: Files, certificate: bytes | None, key: bytes | None, expected: str) -> None:
    """Each is refused with the file, the key of the configuration, and what is wrong with it."""
    files.write(
        certificate if certificate is not None else LEAF.pem() + BETWEEN.pem(),
        key if key is not None else LEAF.key_pem(),
    )
    found = checked(files)
    texts = [each.text for each in found.findings if each.severity is Severity.BROKEN]
    assert len(texts) == 1
    assert texts[0].replace(f"{files.folder}/", "").startswith(expected)
    assert found.context is None
    with pytest.raises(CertificateError, match="server"):
        found.raise_if(Severity.BROKEN)


def test_both_files_are_looked_at(tmp_path: Path) -> None:
    """All that is wrong is said at once."""
    found = checked(Files(tmp_path))
    assert [each.text.replace(f"{tmp_path}/", "") for each in found.findings] == [
        "server.crt (key: ssl.certPath) cannot be read: No such file or directory",
        "server.key (key: ssl.keyPath) cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize("traditional", [True, False])
def test_encrypted_keys_of_openssl(files: Files, traditional: bool) -> None:
    """Both forms that it has."""
    form = ["-traditional"] if traditional else []
    made = openssl("pkey", "-aes256", "-passout", "pass:secret", *form, given=LEAF.key_pem())
    files.write(LEAF.pem(), made.stdout)
    assert b"ENCRYPTED" in made.stdout
    with pytest.raises(CertificateError, match="is encrypted"):
        read_key(files.key)


def test_requests_and_bundles_are_told_apart(files: Files, tmp_path: Path) -> None:
    """What administrators put there by mistake: a request, and what Windows exports."""
    request = openssl("req", "-new", "-key", files.key.path, "-subj", "/CN=x").stdout
    bundle = openssl("crl2pkcs7", "-nocrl", "-certfile", files.certificate.path).stdout
    for content, expected in ((request, "certificate request"), (bundle, "PKCS #7")):
        files.certificate.path.write_bytes(content)
        with pytest.raises(CertificateError, match=expected):
            read_chain(files.certificate)


def test_what_this_system_finds_too_weak(files: Files, tmp_path: Path) -> None:
    """OpenSSL has rules of its own, and they are said in words."""
    made = openssl(
        *("req", "-x509", "-nodes", "-newkey", "rsa:1024", "-days", "90", "-subj", "/CN=x"),
        *("-addext", "subjectAltName=DNS:x", "-keyout", files.key.path, "-out", files.certificate.path),
    )
    assert made.returncode == 0
    weak, refused = checked(files, now=NOW + DAY).findings
    assert (weak.severity, refused.severity) == (Severity.DOUBTFUL, Severity.BROKEN)
    assert "has a weak key (RSA, 1024 bits; 2048 are the least)" in weak.text
    assert "cannot be used: the key of the certificate is too weak for the rules of this system" in refused.text


# --- what clients refuse, and what should not stay so --------------------------------------------------------


def test_validity(files: Files) -> None:
    end = LEAF.certificate.not_valid_after_utc
    expired = said(files, Severity.REFUSED, now=end + DAY)
    assert expired == f"server.crt (key: ssl.certPath): the certificate has expired on {end:%Y-%m-%d}"
    early = said(files, Severity.REFUSED, now=NOW - 2 * DAY)
    assert early.startswith("server.crt (key: ssl.certPath): the certificate is not valid before ")
    assert early.endswith("is the clock of this machine right?")
    soon = said(files, Severity.DOUBTFUL, now=end - 3.5 * DAY)
    assert soon == f"server.crt (key: ssl.certPath): the certificate expires on {end:%Y-%m-%d}, in 3 days"
    assert checked(files, now=end - 31 * DAY).findings == ()


def test_an_authority_that_expires(files: Files) -> None:
    between = authority("Hospital Issuing", ROOT, days=10)
    leaf = server(between)
    files.write(leaf.pem() + between.pem(), leaf.key_pem())
    assert "the authority's certificate expires on" in said(files, Severity.DOUBTFUL)


def test_names(files: Files) -> None:
    assert said(files, Severity.DOUBTFUL, wanted=Wanted("other.example", "publicUrl")) == (
        "server.crt (key: ssl.certPath): the certificate is not for other.example (key: publicUrl) "
        "but for localhost, dicom.hospital.example, 127.0.0.1"
    )
    nameless = server(BETWEEN, names=())
    files.write(nameless.pem() + BETWEEN.pem(), nameless.key_pem())
    assert "names no host (subjectAltName)" in said(files, Severity.REFUSED)


def test_a_certificate_for_something_else(files: Files) -> None:
    mail = server(BETWEEN, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION)
    files.write(mail.pem() + BETWEEN.pem(), mail.key_pem())
    assert "is not meant for servers (extendedKeyUsage)" in said(files, Severity.REFUSED)
    for usage in (None, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE):
        any_use = server(BETWEEN, usage=usage)
        files.write(any_use.pem() + BETWEEN.pem(), any_use.key_pem())
        assert checked(files).findings == ()


def test_a_chain_without_the_authority_in_between(files: Files) -> None:
    """Chrome would load it by itself; programs do not."""
    files.write(LEAF.pem(), LEAF.key_pem())
    text = said(files, Severity.DOUBTFUL)
    assert "holds no certificate of the authority that issued it (CN=Hospital Issuing)" in text
    assert "append its certificate" in text


def test_one_whose_authority_this_system_knows(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issued by a root right away, as small hospitals do: nothing is missing."""
    direct = server(ROOT)
    files.write(direct.pem(), direct.key_pem())
    root = files.folder / "root.pem"
    root.write_bytes(ROOT.pem())
    assert checked(files).worst() is Severity.DOUBTFUL
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    assert checked(files).findings == ()


def test_the_wrong_order_above_the_server(files: Files) -> None:
    files.write(LEAF.pem() + ROOT.pem() + BETWEEN.pem(), LEAF.key_pem())
    text = said(files, Severity.DOUBTFUL)
    assert "is in the wrong order, or one is missing: certificate 2 has not issued certificate 1" in text


def test_weak_signatures_and_unusual_keys(files: Files) -> None:
    arguments = ("req", "-x509", "-nodes", "-days", "90", "-subj", "/CN=x", "-addext", "subjectAltName=DNS:x")
    out = ("-keyout", files.key.path, "-out", files.certificate.path)
    assert openssl(*arguments, *out, "-newkey", "rsa:2048", "-sha1").returncode == 0
    assert "is signed by way of SHA1: too weak" in said(files, Severity.DOUBTFUL, now=NOW + DAY)
    assert openssl(*arguments, *out, "-newkey", "ed25519").returncode == 0
    assert "has a key of a kind that browsers do not take (Ed25519)" in said(files, Severity.DOUBTFUL, now=NOW + DAY)
    assert openssl(*arguments, *out, "-newkey", "rsa:3072").returncode == 0
    assert checked(files, now=NOW + DAY).findings == ()


def test_a_key_that_everybody_can_read(files: Files) -> None:
    files.key.path.chmod(0o640)
    assert checked(files).findings == ()
    files.key.path.chmod(0o644)
    assert "can be read by every user of this machine; `chmod o-rwx`" in said(files, Severity.DOUBTFUL)


@pytest.mark.parametrize(
    ("host", "is_covered"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("a.wild.example", True),
        ("wild.example", False),
        ("a.b.wild.example", False),
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("0:0:0:0:0:0:0:1", True),
        ("1.127.0.0", False),
        ("common", False),
    ],
)
def test_which_hosts_a_certificate_is_for(host: str, is_covered: bool) -> None:
    leaf = server(ROOT, names=("localhost", "*.wild.example", "127.0.0.1", "::1"), name="common")
    assert covers(leaf.certificate, host) is is_covered


# --- self-signed ---------------------------------------------------------------------------------------------


def present(files: Files) -> x509.Certificate:
    """The certificate that is there."""
    return read_chain(files.certificate)[0]


@pytest.fixture
def made(tmp_path: Path) -> Files:
    """A self-signed certificate, made today."""
    files = Files(tmp_path / "certs")
    assert provide(files.certificate, files.key, NAMES, NOW) == "there was none"
    return files


def test_what_is_made_is_what_openssl_takes(made: Files) -> None:
    """For every name, by its strict rules; as a server and as nothing else, least of all an authority."""
    path = made.certificate.path
    text = openssl("x509", "-in", path, "-noout", "-text").stdout.decode()
    for expected in (
        "Version: 3",
        "Signature Algorithm: ecdsa-with-SHA256",
        "NIST CURVE: P-256",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n",
        "DNS:localhost, DNS:dicom.hospital.example",
        "IP Address:127.0.0.1",
    ):
        assert expected in text
    verify = ("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", path)
    for name in NAMES:
        option = "-verify_ip" if name[0].isdigit() else "-verify_hostname"
        assert openssl(*verify, option, name, path).returncode == 0
    assert openssl(*verify, "-verify_hostname", "other.example", path).returncode != 0
    assert openssl("verify", "-purpose", "sslclient", "-CAfile", path, path).returncode != 0
    assert checked(made, now=datetime.datetime.now(datetime.UTC)).findings == ()


def test_how_long_it_is_valid(made: Files) -> None:
    """Browsers take 398 days at most; a clock that is an hour behind does not matter."""
    certificate = present(made)
    seconds = datetime.timedelta(seconds=1)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc + seconds == VALID <= 397 * DAY
    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(hours=1)


def test_the_files_are_for_their_owner_alone(made: Files) -> None:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (made.folder, made.certificate.path, made.key.path)]
    assert modes == [0o700, 0o600, 0o600]
    assert sorted(path.name for path in made.folder.iterdir()) == ["server.crt", "server.key"]


def test_it_stays_over_restarts(made: Files) -> None:
    """Until it ends soon; its key stays even then, since an authority may have been asked for another for it."""
    before = present(made)
    key = made.key.path.read_bytes()
    for days in (0, 1, 365):
        assert provide(made.certificate, made.key, NAMES, NOW + days * DAY) is None
        assert present(made) == before
    reason = provide(made.certificate, made.key, NAMES, NOW + 367.5 * DAY)
    assert reason == f"it was valid until {before.not_valid_after_utc:%Y-%m-%d} only"
    assert fingerprint(present(made)) != fingerprint(before)
    assert made.key.path.read_bytes() == key


def test_names_that_are_missing_are_a_reason(made: Files) -> None:
    """Those that are too many are none."""
    assert provide(made.certificate, made.key, ("localhost",), NOW) is None
    assert provide(made.certificate, made.key, (*NAMES, "new.example", "10.1.2.3"), NOW) == (
        "it was not for new.example, 10.1.2.3"
    )
    assert set(names_of(present(made))) == {*NAMES, "new.example", "10.1.2.3"}


def test_a_clock_that_was_wrong(made: Files) -> None:
    """A machine without a battery for its clock may have made it in another year."""
    assert (provide(made.certificate, made.key, NAMES, NOW - 400 * DAY) or "").startswith("it was not valid before ")


def test_a_key_that_is_gone_or_another(made: Files) -> None:
    made.key.path.unlink()
    assert provide(made.certificate, made.key, NAMES, NOW) == "its key was gone"
    assert checked(made).findings == ()
    made.key.path.write_bytes(LEAF.key_pem())
    assert provide(made.certificate, made.key, NAMES, NOW) == "its key was another"
    assert made.key.path.read_bytes() == LEAF.key_pem()
    assert checked(made).findings == ()


def test_a_key_without_certificate_is_used(tmp_path: Path) -> None:
    """As after a request to an authority, whose answer takes its time."""
    files = Files(tmp_path)
    files.key.path.write_bytes(LEAF.key_pem())
    assert provide(files.certificate, files.key, NAMES, NOW) == "there was none"
    assert files.key.path.read_bytes() == LEAF.key_pem()
    assert present(files).public_key() == LEAF.key.public_key()


def foreign(*, organization: str | None) -> Signed:
    """A self-signed certificate that somebody else has made, almost expired and for no name that is wanted."""
    key = new_key()
    certificate = make(key, ("elsewhere.example",), NOW - 390 * DAY, organization=organization or "Hospital")
    return Signed(certificate, key)


@pytest.mark.parametrize("what", ["self-signed", "by hand", "signed by an authority", "no certificate"])
def test_what_is_not_its_own_is_never_replaced(tmp_path: Path, what: str) -> None:
    """Not when it has expired, nor when it cannot be read."""
    files = Files(tmp_path)
    match what:
        case "self-signed":
            signed = foreign(organization=None)
        case "by hand":
            signed = foreign(organization=self_signed.BY_HAND)
        case _:
            signed = server(ROOT, end=NOW - 0.5 * DAY)
    files.write(b"broken" if what == "no certificate" else signed.pem(), signed.key_pem())
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    for now in (NOW, NOW + 5000 * DAY):
        assert provide(files.certificate, files.key, NAMES, now) is None
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_its_mark_in_a_certificate_of_an_authority_is_none(tmp_path: Path) -> None:
    """It has to have signed itself, too."""
    files = Files(tmp_path)
    own = make(new_key(), NAMES, NOW)
    key = new_key()
    builder = x509.CertificateBuilder(
        ROOT.certificate.subject, own.subject, key.public_key(), 1, NOW - 2 * DAY, NOW - DAY, list(own.extensions)
    )
    files.write(
        builder.sign(ROOT.key, own.signature_hash_algorithm).public_bytes(serialization.Encoding.PEM),  # type: ignore[arg-type]
        Signed(own, key).key_pem(),
    )
    assert OWN in present(files).subject.rfc4514_string()
    assert provide(files.certificate, files.key, NAMES, NOW) is None


def test_an_rsa_key_of_an_administrator_is_used(tmp_path: Path) -> None:
    files = Files(tmp_path)
    key = rsa.generate_private_key(65537, 2048)
    files.key.path.touch(0o600)
    files.key.path.write_bytes(self_signed.key_pem(key))
    assert provide(files.certificate, files.key, NAMES, NOW) == "there was none"
    assert checked(files).findings == ()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Not a folder: said with the file, its key, and the reason."""
    (tmp_path / "certs").touch()
    files = Files(tmp_path / "certs")
    with pytest.raises(CertificateError, match=r"server\.crt \(key: ssl\.certPath\) cannot be made: File exists"):
        provide(files.certificate, files.key, NAMES, NOW)


def test_a_key_that_cannot_be_used_stays(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.key.path.write_bytes(ENCRYPTED)
    with pytest.raises(CertificateError, match="is encrypted"):
        provide(files.certificate, files.key, NAMES, NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["server.key"]


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_is_for_the_user_of_the_folder(tmp_path: Path) -> None:
    """Who runs the command is often not who runs the proxy."""
    os.chown(tmp_path, 12345, 23456)
    write_private(tmp_path / "file", b"x")
    status = (tmp_path / "file").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o600)


def test_the_authorities_of_clients(files: Files) -> None:
    """They are looked at together with the certificate."""
    authorities = PemFile(files.folder / "clients.pem", "ssl.clientCaFile")
    for content, reason in (
        (None, "cannot be read: No such file"),
        (b"x", "holds no PEM certificate"),
        (ROOT.pem(), ""),
    ):
        if content is not None:
            authorities.path.write_bytes(content)
        found = check(files.certificate, files.key, NOW, client_ca=authorities)
        said = [finding.text for finding in found.findings]
        assert len(said) == bool(reason)
        assert all(text.startswith(f"{authorities} {reason}") for text in said)
    assert found.context is not None
    assert found.context.verify_mode == ssl.CERT_OPTIONAL


def test_what_a_configuration_names(tmp_path: Path) -> None:
    """The host of `publicUrl` is among the names, and so is an address that the proxy listens on by itself."""
    tls = Files(tmp_path).settings(8443, selfSignedNames=["extra.example"])
    for url, wanted in (("https://a.example/x", Wanted("a.example", "publicUrl")), ("http://a.example", None)):
        raw = {**MINIMAL, "publicUrl": url, "webserverHost": "10.1.2.3", "ssl": tls}
        named = https_files(parse_config(raw))
        assert named.names == ("a.example", "extra.example", "10.1.2.3")
        assert named.wanted == wanted
    named = https_files(parse_config({**MINIMAL, "ssl": tls}))
    assert (named.names, named.wanted) == (("extra.example",), None)


def test_the_names_of_this_machine() -> None:
    """Host names first, since the first one is the common name; no name twice, and nothing that is no name."""
    names = wanted_names(("Dicom.Hospital.Example.", "10.1.2.3", "fe80::1%eth0", "under_score", "10.1.2.3"))
    assert names[0] == "dicom.hospital.example"
    assert {"localhost", "127.0.0.1", "::1", "10.1.2.3", *own_addresses()} <= set(names)
    assert len(set(names)) == len(names)
    assert not {"under_score", "fe80::1%eth0"} & set(names)
    x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


def test_the_addresses_of_this_machine() -> None:
    """Those that others can reach it by."""
    assert all(not address.startswith(("127.", "169.254.", "fe80:", "::1")) for address in own_addresses())


def test_long_names_and_long_lists(tmp_path: Path) -> None:
    """A common name has room for 64 characters; a list of all names of a large site has room in a message."""
    long = ".".join(["a" * 60] * 4)
    files = Files(tmp_path)
    names = (long, *(f"host{number}.example" for number in range(50)))
    provide(files.certificate, files.key, names, NOW)
    assert covers(present(files), long)
    text = said(files, Severity.DOUBTFUL, wanted=Wanted("other.example"))
    assert len(text) < 1000
    assert text.endswith(", …")


def test_a_context_by_itself_takes_no_old_tls(files: Files) -> None:
    context = checked(files).context
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    old = [each["name"] for each in context.get_ciphers() if each["protocol"] == "TLSv1.2"]
    assert old
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "POLY1305" in name) for name in old)
    assert PemFile(Path("x")).error("is wrong").args == ("x is wrong",)
