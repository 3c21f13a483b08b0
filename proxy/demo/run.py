"""`python -m proxy demo`: the embedded archive, and the proxy in front of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from proxy.config.checking import parse_config
from proxy.config.schema import Config
from proxy.demo.archive import DemoArchive
from proxy.demo.samples import sample_folder
from proxy.service import Running, StartError, serve_until_stopped

_ARCHIVE_AET: Final = "DEMO"
_PROXY_AET: Final = "DEMO_PROXY"
_HOST: Final = "127.0.0.1"


async def run_demo(http_port: int, folder: Path | None = None) -> None:
    """Run until SIGTERM or Ctrl-C; everything on loopback only, and nothing is written to `folder`.

    Raises `StartError` when the port is in use or there is nothing to show.
    """
    with tempfile.TemporaryDirectory(prefix="dicomweb-proxy-demo-") as scratch:
        files, received = folder or _samples(), Path(scratch) / "received"
        if not files.is_dir():
            raise StartError(f"{files} is not a folder")
        async with DemoArchive(files, ae_title=_ARCHIVE_AET, host=_HOST, store_folder=received) as archive:
            if not archive.instance_count:
                raise StartError(f"there are no DICOM files in {files}")
            config = _config(archive.port, http_port, Path(scratch))

            def ready(where: Running) -> None:
                assert where.dimse_port is not None
                archive.destinations[_PROXY_AET] = (_HOST, where.dimse_port)
                print(_greeting(archive, where.http_port), flush=True)

            await serve_until_stopped(config, ready)


def _samples() -> Path:
    try:
        return sample_folder()
    except FileNotFoundError as error:
        raise StartError(f"{error}; give a folder of DICOM files with --folder") from error


def _config(archive_port: int, http_port: int, scratch: Path) -> Config:
    return parse_config(
        {
            "proxyMode": "dimse",
            "webserverHost": _HOST,
            "webserverPort": http_port,
            "storagePath": str(scratch),
            "shutdownSeconds": 5,
            "dimseProxySettings": {
                "proxyServer": {"aet": _PROXY_AET, "ip": _HOST, "port": 0},
                "peers": [{"aet": _ARCHIVE_AET, "ip": _HOST, "port": archive_port, "name": "demo archive"}],
            },
        }
    )


def _greeting(archive: DemoArchive, port: int) -> str:
    base = f"http://{_HOST}:{port}"
    study = archive.first_study_uid
    return f"""
The proxy is running, in front of an archive with {archive.study_count} studies ({archive.instance_count} instances).

  {base}/                          status page
  {base}/studies                   all studies (QIDO-RS)
  {base}/studies?PatientName=*&limit=5
  {base}/studies/{study}/series
  curl -o study.multipart {base}/studies/{study}   a study (WADO-RS)

Stop with Ctrl-C.
"""
