"""Where log lines go, and what is kept out of them. No rule about what the proxy says lives here."""

from __future__ import annotations

import io
import logging
import os
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Final

from proxy import PRODUCT

FILE_NAME: Final = f"{PRODUCT}.log"

LOG_SECONDS: Final = 60.0
"""One line in so many: who floods the proxy is not to flood its log."""


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


class SparingLog:
    """Warnings of one kind, at most one in `LOG_SECONDS`; the next one says how many there were."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = -1.0
        self._unsaid = 0

    def warning(self, message: str) -> None:
        """Log a message, or count it."""
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        self._next, self._unsaid = now + LOG_SECONDS, 0
        self._logger.warning("%s%s", message, more)
