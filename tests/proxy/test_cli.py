"""The commands: what they print, where, and with which exit code; and what reaches the log."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy import __version__
from proxy.cli import main
from proxy.logs import FILE_NAME
from tests.corpus import Corpus
from tests.peers.orthanc import Orthanc
from tests.peers.process import HOST, Address, free_port
from tests.proxy.command import command, get, program, write_config
from tests.proxy.running import PROXY_AET, settings

NOBODY = Address("NOBODY", 104)

WRONG: dict[str, object] = {
    "proxyMode": "dimse",
    "webserverPort": "3006",
    "webserverHots": "127.0.0.1",
    "shutdownSeconds": -1,
    "dimseProxySettings": {"proxyServer": {"aet": "THIS_TITLE_IS_TOO_LONG"}, "peers": [{"aet": "PACS", "ip": "a b"}]},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- the command line ----------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dicomweb-proxy {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("run", "check-config", "echo", "demo", "--version"))


@pytest.mark.parametrize(
    "arguments",
    [[], ["start"], ["run", "--port", "1"], ["run", "--config"], ["demo", "--port", "x"], ["--verbose"]],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and how it is done, on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith("usage: ")
    assert not shown.out


async def test_the_console_script(tmp_path: Path) -> None:
    """It is the same program under another name, which it uses for itself."""
    script = Path(sys.executable).with_name("dicomweb-proxy")
    if not script.exists():
        found = shutil.which("dicomweb-proxy")
        assert found, "the console script is not installed"
        script = Path(found)
    by_script, by_module = await asyncio.gather(
        command(str(script), "--help", cwd=tmp_path, module=False), command("--help", cwd=tmp_path)
    )
    assert (by_script.code, by_module.code) == (0, 0)
    assert by_script.out.startswith("usage: dicomweb-proxy ")
    assert by_module.out.startswith("usage: python -m proxy ")


# --- the configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "check-config", "echo"])
def test_every_error_at_once(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2; each line names the key, the value and what is allowed; a misspelt key is named too."""
    path = write_config(tmp_path, WRONG)
    assert main([name, "--config", str(path)]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    first, *lines = shown.err.splitlines()
    assert first == f"{path}: 7 problems"
    for expected in (
        'webserverPort: "3006" is not allowed; must be a whole number from 1 to 65535, or 0 for any free port',
        "shutdownSeconds: -1 is not allowed; must be a number of seconds from 0 to 3600",
        'dimseProxySettings.proxyServer.aet: "THIS_TITLE_IS_TOO_LONG" is not allowed; must be an AE title',
        "dimseProxySettings.proxyServer.ip: required key is missing; must be an IPv4 or IPv6 address or a host name",
        "dimseProxySettings.proxyServer.port: required key is missing; must be a whole number",
        'dimseProxySettings.peers[0].ip: "a b" is not allowed; must be an IPv4 or IPv6 address or a host name',
        "dimseProxySettings.peers[0].port: required key is missing; must be a whole number from 1 to 65535",
        "warning: webserverHots: unknown key, ignored; did you mean webserverHost?",
    ):
        assert any(line.strip().startswith(expected) for line in lines), (expected, lines)
    assert len(lines) == 8


async def test_a_wrong_configuration_of_the_program_itself(tmp_path: Path) -> None:
    """As a process: no traceback."""
    ended = await command("run", "--config", str(write_config(tmp_path, WRONG)), cwd=tmp_path)
    assert ended.code == 2
    assert "7 problems" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"proxyMode": "dimse"\n  "webserverPort": 1}', "near line 2, column 3"),
        (b"", "is empty"),
        (b"[]", "must hold one object"),
        (b'{"proxyMode": "\xff"}', "is not UTF-8 text at line 1, column 16"),
    ],
)
def test_a_file_that_is_no_configuration(
    tmp_path: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    assert main(["run", "--config", "other.json"]) == 2
    assert re.match(rf"{re.escape(str(path))}: .*{said}", capsys.readouterr().err)


def test_no_configuration_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists every place that was searched, or the one that was given."""
    assert main(["run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    names = ("config.json", "config.jsonc", "config/config.json", "config/config.jsonc")
    assert lines[0].endswith("no configuration file found; searched:")
    places = [folder / name for folder in (tmp_path, Path("/opt/dicomweb-proxy")) for name in names]
    assert [line.strip() for line in lines[1:]] == [str(place) for place in places]
    assert main(["check-config", "--config", "here.json"]) == 2
    assert capsys.readouterr().err.splitlines()[1].strip() == str(tmp_path / "here.json")


def test_the_working_directory_is_searched_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(["config/config.jsonc", "config/config.json", "config.jsonc", "config.json"], 1):
        write_config(tmp_path, settings(*[Address(f"PACS{each}", 104) for each in range(number)]), name)
        assert main(["check-config"]) == 0
        assert f"{number} archive{'' if number == 1 else 's'}" in capsys.readouterr().out


def test_a_valid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings go to standard error with the file's name, the verdict to standard output."""
    path = write_config(tmp_path, settings(NOBODY, cores=1, logDri="/var/log"))
    assert main(["check-config", "--config", str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == "the configuration is valid: dimse mode, 1 archive\n"
    assert shown.err.splitlines() == [
        f"{path}: warning: cores: unknown key, ignored; did you mean cors?",
        f"{path}: warning: logDri: unknown key, ignored; did you mean logDir?",
    ]


@pytest.mark.parametrize("name", ["run", "check-config", "echo"])
def test_what_this_version_does_not_have(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A valid configuration that cannot be honoured is refused, not half honoured: exit code 3."""
    config: dict[str, Any] = settings(NOBODY, use_cget=True)
    config["dimseProxySettings"]["proxyServer"]["securityOptions"] = {"key": "/etc/key.pem"}
    assert main([name, "--config", str(write_config(tmp_path, config))]) == 3
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("dimseProxySettings.proxyServer.securityOptions: an object is not allowed; must be left out")
    assert not shown.out


# --- echo ----------------------------------------------------------------------------------------------------


async def test_echo(orthanc: Orthanc, tmp_path: Path) -> None:
    """One line for each archive, in the file's order; exit code 1 when one does not answer."""
    dead = Address("DEAD", free_port())
    both = write_config(tmp_path, settings(dead, orthanc.address))
    alone = write_config(tmp_path, settings(orthanc.address), "one.json")
    with_both, with_one = await asyncio.gather(
        command("echo", "--config", str(both), cwd=tmp_path), command("echo", "--config", str(alone), cwd=tmp_path)
    )
    assert with_one.code == 0
    assert re.fullmatch(r"ORTHANC: answers in \d+ ms\n", with_one.out)
    assert with_both.code == 1
    first, second = with_both.out.splitlines()
    assert first == f"DEAD: no connection to {HOST} port {dead.port}: Connection refused"
    assert re.fullmatch(r"ORTHANC: answers in \d+ ms", second)
    assert (with_one.err, with_both.err) == ("", "")


def test_echo_to_an_archive_that_rejects(orthanc: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What listens there is no DICOM program."""
    with socket.create_server((HOST, 0)) as silent:
        address = Address("SILENT", silent.getsockname()[1])
        path = write_config(tmp_path, settings(address, peer={"timeouts": {"associate": 0.2}}))
        assert main(["echo", "--config", str(path)]) == 1
    assert capsys.readouterr().out.startswith("SILENT: ")


# --- the log -------------------------------------------------------------------------------------------------


async def test_the_log_names_no_patient(samples: Corpus, orthanc: Orthanc, tmp_path: Path) -> None:
    """At INFO: no names, IDs or UIDs, whatever is searched, retrieved, refused, malformed or fails."""
    address = Address(PROXY_AET, free_port())
    dead = Address("DEAD", free_port())
    config = settings(orthanc.address, dead, dimse_port=address.port, logDir=str(tmp_path / "logs"))
    orthanc.know(address)
    some = samples.of_patient("LATIN1")[0]
    study, series = some.study_uid, some.series_uid
    async with program("run", "--config", str(write_config(tmp_path, config)), folder=tmp_path) as proxy:
        outcomes = [
            (await get(proxy.url + path))[0]
            for path in (
                "/studies?PatientName=M%C3%BCller*&includefield=all",
                "/studies?PatientID=LATIN1",
                "/studies?PatientID=LATIN1&Nonsense=M%C3%BCller",
                f"/studies?StudyInstanceUID={study}",
                f"/studies/{study}",
                f"/studies/{study}/series/{series}/instances/{some.sop_instance_uid}?multipart=false",
                f"/studies/{study}/series/{series}/instances/{some.sop_instance_uid}x",
                f"/studies/{study}9",
                f"/patients/{some.patient_id}",
                f"/studies/{study}/series?limit=-1",
            )
        ]
        assert outcomes == [200, 200, 400, 200, 200, 200, 400, 502, 404, 400]
        for request in ("GET /studies?PatientName=Müller Jürgen HTTP/1.1", f"LATIN1 {study}"):
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writer.write(f"{request}\r\nHost: x\r\n\r\n".encode())
            await reader.read()
            writer.close()
            await writer.wait_closed()
        assert await proxy.end(signal.SIGTERM, within=2)
        log = proxy.log()
    assert "DEAD" in log
    assert "malformed request" in log
    names = {part for sample in samples.samples for part in re.split(r"[\^= ]", sample.patient_name) if len(part) > 1}
    uids = {uid for each in samples.samples for uid in (each.study_uid, each.series_uid, each.sop_instance_uid)}
    for secret in names | uids | {sample.patient_id for sample in samples.samples}:
        assert secret not in log, secret
    assert "Traceback" not in log
    assert (tmp_path / "logs" / FILE_NAME).read_text() == log


async def test_a_log_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Also the one that is made after a rotation, and whatever the umask."""
    folder = tmp_path / "a" / "logs"
    file, rotated = folder / FILE_NAME, folder / f"{FILE_NAME}.1"
    path = write_config(tmp_path, settings(NOBODY, peer={"name": "Zürich", "port": free_port()}, logDir=str(folder)))
    before = os.umask(0)
    try:
        async with program("run", "--config", str(path), folder=tmp_path) as proxy:
            await get(f"{proxy.url}/studies")
            file.rename(rotated)
            await get(f"{proxy.url}/studies")
            modes = [stat.S_IMODE(each.stat().st_mode) for each in (folder, file, rotated)]
            assert modes == [0o700, 0o600, 0o600]
            assert "Zürich" in file.read_text(encoding="utf-8")
            assert rotated.read_text(encoding="utf-8") + file.read_text(encoding="utf-8") == proxy.log()
    finally:
        os.umask(before)


async def test_a_log_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Exit code 3 and one line that names the key and the place."""
    (tmp_path / "file").touch()
    path = write_config(tmp_path, settings(NOBODY, logDir=str(tmp_path / "file" / "logs")))
    ended = await command("run", "--config", str(path), cwd=tmp_path)
    assert ended.code == 3
    place = tmp_path / "file" / "logs"
    assert ended.err == f"cannot write the log (key: logDir) at {place}: Not a directory\n"


@pytest.mark.parametrize("name", ["run", "check-config", "echo"])
def test_a_certificate_that_cannot_be_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "ca.pem"
    path = write_config(
        tmp_path, settings(NOBODY, use_cget=True, peer={"name": "main", "tls": {"caFile": str(missing)}})
    )
    assert main([name, "--config", str(path)]) == 2
    assert f"main: {missing} (key: tls.caFile) cannot be read: No such file or directory" in capsys.readouterr().err
