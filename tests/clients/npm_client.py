"""The `dicomweb-client` of npm in a page of another origin than the proxy: its calls, and what comes of them.

It is in most viewers, takes only 200, 202, 204 and 206 for success, and has a multipart decoder of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from tests.clients.browser import Page
from tests.clients.studies import VIEWER_STUDY, files, study_uid
from tests.corpus import data_set_bytes, uid

PACKAGE = "dicomweb-client"
VERSION = "0.11.3"
LOADS = 10.0
"""Seconds that the page may take to load."""

LOADED = "typeof DICOMwebClient === 'object' && typeof bytesOf === 'function'"

PAGE = """<!doctype html><meta charset="utf-8"><script src="build/dicomweb-client.js"></script><script>
const hexadecimal = (bytes) => [...new Uint8Array(bytes)].map(b => b.toString(16).padStart(2, '0')).join('');
const digest = async (bytes) => hexadecimal(await crypto.subtle.digest('SHA-256', bytes));
function dataSet(file) {  // what is behind the File Meta Information
  const length = new DataView(file).getUint32(140, true);
  return file.slice(144 + length);
}
const digests = (buffers) => Promise.all([].concat(buffers).map(digest));
const dataSets = (buffers) => Promise.all([].concat(buffers).map(dataSet).map(digest));
const textOf = (buffer) => btoa(Array.from(new Uint8Array(buffer), b => String.fromCharCode(b)).join(''));
const typed = (buffers) => [].concat(buffers).map(b => [b.contentType, textOf(b)]);
function bytesOf(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer; }
function request(url, options, method, given) {
  const api = new DICOMwebClient.api.DICOMwebClient({url, verbose: false, ...options});
  return api[method](given);
}
</script>"""

FILES = {str(pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True).SOPInstanceUID): file for file in files()}
"""The files that the archive has, by SOP Instance UID."""


class Client:
    """Calls of the library in the page, to a DICOMweb server.

    `made` and `more` are members of a JavaScript object, for what JSON cannot say: options of the library's
    constructor, and of the call.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    async def call(self, method: str, then: str = "x => x", made: str = "", more: str = "", **options: Any) -> Any:
        """Call a method, and return what the JavaScript function `then` makes of what it gives."""
        called = self._called(method, made, more, options)
        return await self.page.evaluate(f"(async () => await ({then})(await {called}))()")

    async def refused(self, method: str, made: str = "", more: str = "", **options: Any) -> int:
        """Call a method that is to be refused, and return the status: 0 where the browser does not tell it."""
        called = self._called(method, made, more, options)
        status = f"(async () => {{ try {{ await {called}; }} catch (error) {{ return error.status; }} }})()"
        found = await self.page.evaluate(status)
        assert isinstance(found, int), "it was not refused by the server"
        return found

    async def parts(self, method: str, made: str = "", more: str = "", **options: Any) -> list[tuple[str, bytes]]:
        """Call a method that gives bytes; return the media type and the bytes of each part."""
        found = await self.call(method, "typed", made, more, **options)
        return [(media_type, base64.b64decode(text)) for media_type, text in found]

    def _called(self, method: str, made: str, more: str, options: Mapping[str, Any]) -> str:
        return f"request({self.url!r}, {{{made}}}, {method!r}, {{...{json.dumps(options)}, {more}}})"


def path(study: int, instance: int = 1) -> dict[str, str]:
    """Return what names an instance for the library."""
    return {**series_path(study), "sopInstanceUID": uid(VIEWER_STUDY, study, 1, instance)}


def series_path(study: int) -> dict[str, str]:
    """Return what names the series of a study for the library."""
    return {"studyInstanceUID": study_uid(study), "seriesInstanceUID": uid(VIEWER_STUDY, study, 1)}


def stored(study: int, instance: int = 1) -> Dataset:
    """Return an instance that the archive has."""
    return pydicom.dcmread(io.BytesIO(FILES[path(study, instance)["sopInstanceUID"]]))


def digest(data: bytes) -> str:
    """Return the SHA-256 of something."""
    return hashlib.sha256(data).hexdigest()


def digests(study: int) -> dict[str, str]:
    """Return the digests of the data sets of a study, by SOP Instance UID."""
    prefix = f"{study_uid(study)}."
    return {name: digest(data_set_bytes(file)) for name, file in FILES.items() if name.startswith(prefix)}


def values(entities: list[Mapping[str, Any]], tag: str) -> list[Any]:
    """Return the first value of an attribute of each."""
    return [entity[tag]["Value"][0] for entity in entities]
