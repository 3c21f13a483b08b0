"""`python -m proxy cert`: what it says, makes, and refuses to overwrite; and how OpenSSL and an authority take it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.cli import main
from proxy.security.tls.certificates import PemFile, fingerprint, read_chain, read_key
from proxy.security.tls.self_signed import BY_HAND, OWN, key_pem, provide
from tests.peers.process import free_port
from tests.proxy.chains import DAY, NAMES, NOW, Files, authority, openssl, server
from tests.proxy.command import command, write_config
from tests.proxy.running import settings
from tests.proxy.securing import BETWEEN, NOBODY, new_certificate

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cert(capsys: Captured, *arguments: object) -> tuple[int, list[str], list[str]]:
    """Run the command; returns its exit code, what it prints, and what it complains about."""
    code = main(["cert", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err.splitlines()


def configured(folder: Path, **more: object) -> tuple[Files, Path]:
    """A configuration with HTTPS, and the files that it names."""
    files = Files(folder / "certs")
    tls = {"ssl": files.settings(free_port(), **more), "publicUrl": "https://dicom.hospital.example"}
    return files, write_config(folder, settings(NOBODY, use_cget=True, **tls))  # type: ignore[arg-type]


# --- show ----------------------------------------------------------------------------------------------------


def test_show(tmp_path: Path, capsys: Captured) -> None:
    """Each certificate of a file, with what OpenSSL says is its fingerprint."""
    files = new_certificate(tmp_path)
    code, out, err = cert(capsys, "show", files.certificate.path)
    assert (code, err) == (0, [])
    leaf = read_chain(files.certificate)[0]
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    said = openssl("x509", "-in", files.certificate.path, "-noout", "-fingerprint", "-sha256").stdout.decode()
    assert out[:7] == [
        f"{files.certificate.path}, certificate 1 of 2",
        "  subject:      CN=dicom.hospital.example",
        "  names:        localhost, dicom.hospital.example, 127.0.0.1",
        "  issuer:       CN=Hospital Issuing",
        f"  valid:        {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC (299 days left)",
        "  key:          ECDSA P-256",
        f"  SHA-256:      {said.strip().rpartition('=')[2]}",
    ]
    assert out[7] == f"{files.certificate.path}, certificate 2 of 2"
    assert "  issuer:       CN=Hospital Root" in out


def test_show_of_the_configured_one(tmp_path: Path, capsys: Captured) -> None:
    files, config = configured(tmp_path)
    provide(files.certificate, files.key, NAMES, NOW)
    for arguments in (["--config", config], []):
        code, out, _ = cert(capsys, "show", *arguments)
        assert (code, out[0]) == (0, str(files.certificate.path))
        assert "  issuer:       itself" in out


def test_show_of_what_is_no_certificate(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "x").write_text("x")
    assert cert(capsys, "show", "x") == (2, [], ["x holds no PEM certificate"])
    assert cert(capsys, "show", "y") == (2, [], ["y cannot be read: No such file or directory"])


# --- check ---------------------------------------------------------------------------------------------------


def test_check(tmp_path: Path, capsys: Captured) -> None:
    """Exit code 0 for what can be used, 1 for what cannot or clients refuse; warnings change nothing."""
    files = new_certificate(tmp_path)
    given = ("--cert", files.certificate.path, "--key", files.key.path)
    fine = f"{files.certificate.path} and {files.key.path} can be used"
    assert cert(capsys, "check", *given) == (0, [fine], [])
    assert cert(capsys, "check", *given, "--host", "localhost") == (0, [fine], [])
    files.key.path.chmod(0o644)
    code, out, _ = cert(capsys, "check", *given, "--host", "other.example")
    assert (code, [line.partition(":")[0] for line in out[:-1]], out[-1]) == (0, ["warning", "warning"], fine)
    expired = server(BETWEEN, end=NOW - 0.5 * DAY)
    files.write(expired.pem() + BETWEEN.pem(), expired.key_pem())
    code, out, _ = cert(capsys, "check", *given)
    assert code == 1
    assert any(line.startswith("error: ") and "has expired" in line for line in out)
    assert fine not in out
    code, out, _ = cert(capsys, "check", "--cert", "nothing.crt", "--key", "nothing.key")
    assert (code, len(out)) == (1, 2)


def test_check_of_the_configured_ones(tmp_path: Path, capsys: Captured) -> None:
    """By the name that clients call the proxy by; `check-config` says the same, and knows what is still to be made."""
    files, config = configured(tmp_path)
    assert cert(capsys, "check")[0] == 1
    assert main(["check-config"]) == 2
    assert "server.crt (key: ssl.certPath) cannot be read" in capsys.readouterr().err
    configured(tmp_path, generateSelfSigned=True)
    assert main(["check-config"]) == 0
    capsys.readouterr()
    assert not files.folder.exists()
    provide(files.certificate, files.key, ("localhost",), NOW)
    configured(tmp_path)
    code, out, _ = cert(capsys, "check", "--config", config)
    assert code == 0
    assert "the certificate is not for dicom.hospital.example (key: publicUrl) but for localhost" in out[0]
    assert main(["check-config"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("warning: ")
    assert "not for dicom.hospital.example" in shown.err
    assert shown.out.startswith("the configuration is valid")


def test_check_config_where_nothing_can_be_made(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path, generateSelfSigned=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["check-config"]) == 2
    assert f"cannot be made: this user may not write to {tmp_path}" in capsys.readouterr().err


# --- make ----------------------------------------------------------------------------------------------------


def test_make(tmp_path: Path, capsys: Captured) -> None:
    """For the names that are given, else for those of the machine and the configuration."""
    files, _ = configured(tmp_path, selfSignedNames=["extra.example"])
    code, out, err = cert(capsys, "make")
    assert (code, err) == (0, [])
    assert out[:2] == [f"made the key {files.key.path}", f"made the certificate {files.certificate.path}"]
    names = next(line for line in out if line.startswith("  names:"))
    assert all(name in names for name in ("dicom.hospital.example", "extra.example", "localhost", "127.0.0.1"))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (files.folder, files.key.path, files.certificate.path)]
    assert modes == [0o700, 0o600, 0o600]
    assert openssl("verify", "-CAfile", files.certificate.path, files.certificate.path).returncode == 0
    assert OWN in read_chain(files.certificate)[0].subject.rfc4514_string()


def test_make_overwrites_when_it_is_told_to(tmp_path: Path, capsys: Captured) -> None:
    """The key stays. What has names that somebody has chosen, the proxy does not replace by itself."""
    given = ("--cert", "a.crt", "--key", "a.key", "--name", "one.example", "--name", "10.0.0.1", "two.example")
    assert cert(capsys, "make", *given)[0] == 0
    key, certificate = Path("a.key").read_bytes(), Path("a.crt").read_bytes()
    assert cert(capsys, "make", *given) == (2, [], ["a.crt is there already; --force overwrites it"])
    assert Path("a.crt").read_bytes() == certificate
    code, out, _ = cert(capsys, "make", *given, "--force")
    assert (code, out[0]) == (0, "made the certificate a.crt")
    assert Path("a.key").read_bytes() == key
    assert Path("a.crt").read_bytes() != certificate
    assert "  names:        one.example, two.example, 10.0.0.1" in out
    assert any(BY_HAND in line for line in out)


@pytest.mark.parametrize("name", ["", "a b", "under_score", "fe80::1%eth0", "*.example", "http://x"])
def test_names_that_are_none(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cert", "make", "--cert", "a", "--key", "b", "--name", name])
    assert ended.value.code == 2
    assert "not an IPv4 or IPv6 address or a host name" in capsys.readouterr().err


def test_where_nothing_can_be_written(tmp_path: Path, capsys: Captured) -> None:
    """Exit code 3, as for everything that the machine does not allow."""
    (tmp_path / "file").touch()
    code, _, err = cert(capsys, "make", "--cert", "file/a.crt", "--key", "file/a.key", "--name", "a.example")
    assert (code, err) == (3, ["file/a.key cannot be written: File exists"])


# --- request -------------------------------------------------------------------------------------------------


def test_request(tmp_path: Path, capsys: Captured) -> None:
    """OpenSSL finds the names and the proof that the key is there; the key is made once, and used again."""
    code, out, err = cert(capsys, "request", "--key", "new/a.key", "--name", "a.example", "10.0.0.1", "::1")
    assert (code, err) == (0, [])
    assert out[:2] == [
        "made the key new/a.key, which stays here",
        "made the request new/a.csr for a.example, 10.0.0.1, ::1 (ECDSA P-256)",
    ]
    assert [stat.S_IMODE(Path(path).stat().st_mode) for path in ("new", "new/a.key", "new/a.csr")] == [
        0o700,
        0o600,
        0o600,
    ]
    done = openssl("req", "-in", "new/a.csr", "-verify", "-noout", "-text")
    said = (done.stdout + done.stderr).decode()
    assert "verify OK" in said
    assert "Subject: CN = a.example" in said
    assert "DNS:a.example, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1" in said
    assert "TLS Web Server Authentication" in said
    key = Path("new/a.key").read_bytes()
    assert cert(capsys, "request", "--key", "new/a.key", "--name", "a.example")[0] == 2
    code, out, _ = cert(capsys, "request", "--key", "new/a.key", "--name", "a.example", "--out", "b.csr")
    assert (code, out[0]) == (0, "made the request b.csr for a.example (ECDSA P-256)")
    assert Path("new/a.key").read_bytes() == key


def test_request_with_what_the_authority_asks_for(tmp_path: Path, capsys: Captured) -> None:
    """A subject of its own, and a key that the hospital has already, of whatever kind."""
    path = tmp_path / "rsa.key"
    path.write_bytes(key_pem(rsa.generate_private_key(65537, 2048)))
    subject = "CN=a.example,OU=Radiology,O=St. Mary\\, Springfield,C=DE"
    code, out, _ = cert(capsys, "request", "--key", path, "--name", "a.example", "--subject", subject)
    assert (code, "RSA, 2048 bits" in out[0]) == (0, True)
    said = openssl("req", "-in", tmp_path / "rsa.csr", "-verify", "-noout", "-subject").stdout.decode()
    assert said.strip() == 'subject=C = DE, O = "St. Mary, Springfield", OU = Radiology, CN = a.example'
    with pytest.raises(SystemExit):
        main(["cert", "request", "--key", str(path), "--subject", "nonsense"])
    assert 'not a distinguished name such as "CN=' in capsys.readouterr().err


def test_from_the_request_to_the_certificate_of_an_authority(tmp_path: Path, capsys: Captured) -> None:
    """While the authority takes its time, the proxy goes on with its self-signed one, renewals included."""
    files, _ = configured(tmp_path, generateSelfSigned=True)
    assert provide(files.certificate, files.key, NAMES, NOW) == "there was none"
    assert cert(capsys, "request")[0] == 0
    assert provide(files.certificate, files.key, NAMES, NOW + 380 * DAY) is not None
    request = x509.load_pem_x509_csr((files.folder / "server.csr").read_bytes())
    hospital = authority("Hospital Root")
    builder = x509.CertificateBuilder(
        hospital.certificate.subject, request.subject, request.public_key(), 7, NOW - DAY, NOW + 300 * DAY
    )
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(hospital.key, hashes.SHA256())
    files.certificate.path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    code, out, _ = cert(capsys, "check", "--host", "dicom.hospital.example")
    assert (code, len(out)) == (0, 2), out
    assert "holds no certificate of the authority that issued it" in out[0]
    assert provide(files.certificate, files.key, NAMES, NOW + 5000 * DAY) is None
    assert read_key(files.key).public_key() == signed.public_key()


# --- as a program --------------------------------------------------------------------------------------------


async def test_as_a_program(tmp_path: Path) -> None:
    """It asks nothing, also where a key has a password."""
    made = await command("cert", "make", "--cert", "a.crt", "--key", "a.key", "--name", "a.example", cwd=tmp_path)
    assert (made.code, made.err) == (0, "")
    shown = await command("cert", "show", "a.crt", cwd=tmp_path)
    assert shown.out.splitlines()[1:] == made.out.splitlines()[2:]
    match = re.search(r"SHA-256: +(\S+)", shown.out)
    assert match is not None
    assert match[1] == fingerprint(read_chain(PemFile(tmp_path / "a.crt"))[0])
    (tmp_path / "b.key").write_bytes(server(BETWEEN).key_pem(b"secret"))
    refused = await command("cert", "make", "--cert", "b.crt", "--key", "b.key", "--name", "a.example", cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("b.key is encrypted, and nobody is there to enter its password")
    assert not (tmp_path / "b.crt").exists()
    usage = await command("cert", cwd=tmp_path)
    assert (usage.code, usage.err.startswith("usage: ")) == (2, True)
