"""Where log lines go, and what is kept out of them. No rule about what the proxy says lives here."""

from __future__ import annotations

import io
import logging
import os
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Final

from aiohttp.http import HttpProcessingError

FILE_NAME: Final = "dicomweb-proxy.log"


class MalformedRequests(logging.Filter):
    """Tells of requests that are no HTTP in one line, without what they hold: it may be a patient's name.

    For the logger of aiohttp's server, which would give the offending text and a traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.msg = f"{record.msg}: malformed request ({type(error).__name__})"
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.exc_info = record.exc_text = None
        return True


class _PrivateFileHandler(WatchedFileHandler):
    """A log file for its owner alone, also when it is made anew after a rotation."""

    def _open(self) -> io.TextIOWrapper:
        file = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(file, "a", encoding=self.encoding)


def set_up_logging(level: str = "INFO", folder: Path | None = None) -> None:
    """Log to stderr, where the journal takes it, and to a file in `folder`.

    Raises OSError when the folder or the file cannot be made.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handlers.append(_PrivateFileHandler(folder / FILE_NAME, encoding="utf-8"))
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    logging.getLogger("aiohttp.server").addFilter(MalformedRequests())
