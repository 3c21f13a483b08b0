"""Reading what a retrieval gave: a strict reader of `multipart/related`, and data sets compared by their bytes.

Written from RFC 2046 with no help from `proxy`, so that a mistake there is not made here again.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
import pydicom

from tests.corpus import Sample, data_set_bytes
from tests.proxy.running import Proxy

RAW = "?multipart=false"
"""Asks for one instance as a Part 10 file."""

_CONTENT_TYPE = re.compile(r'multipart/related; type="application/dicom"; boundary=([0-9A-Za-z]+)')


@dataclass(frozen=True, slots=True)
class Part:
    """One part: the fields of its header by their names in lower case, and its content."""

    fields: Mapping[str, str]
    content: bytes

    @property
    def location(self) -> str:
        """Its Content-Location."""
        return self.fields["content-location"]

    @property
    def transfer_syntax(self) -> str:
        """The parameter of its Content-Type."""
        media_type, _, syntax = self.fields["content-type"].partition("; transfer-syntax=")
        assert media_type == "application/dicom"
        return syntax


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    async def read(cls, response: aiohttp.ClientResponse) -> Answer:
        """Read it; raises ClientPayloadError where it is cut short."""
        return cls(response.status, response.headers.copy(), await response.read())

    @property
    def content_type(self) -> str:
        """Its Content-Type, whole."""
        return self.headers["Content-Type"]

    def failure(self, status: int) -> str:
        """Return the message of an error with that status; it is JSON of the form that all errors have."""
        assert self.status == status, self.body
        assert self.content_type.startswith("application/json")
        error = json.loads(self.body)
        assert error.keys() == {"error", "statusCode", "timestamp"}
        assert error["statusCode"] == status
        return str(error["error"])

    @property
    def parts(self) -> list[Part]:
        """Its parts; AssertionError where it is not a complete multipart body."""
        assert self.status == 200, self.body
        return read_parts(self.body, self.content_type)

    @property
    def files(self) -> list[bytes]:
        """The contents of its parts."""
        return [part.content for part in self.parts]


def read_parts(body: bytes, content_type: str) -> list[Part]:
    """Take a body apart, to the byte: nothing before the first boundary, nothing behind the last."""
    match = _CONTENT_TYPE.fullmatch(content_type)
    assert match is not None, content_type
    boundary = match[1].encode()
    opening, ending = b"--" + boundary + b"\r\n", b"\r\n--" + boundary + b"--\r\n"
    assert body.startswith(opening), body[:80]
    assert body.endswith(ending), "no closing boundary"
    return [_read_part(part) for part in body[len(opening) : -len(ending)].split(b"\r\n" + opening)]


def _read_part(part: bytes) -> Part:
    header, separator, content = part.partition(b"\r\n\r\n")
    assert separator
    fields = dict(line.split(": ", 1) for line in header.decode("ascii").split("\r\n"))
    return Part({name.lower(): value for name, value in fields.items()}, content)


def digests(files: Iterable[bytes]) -> dict[str, str]:
    """Return the SHA-256 of the data sets of valid Part 10 files by SOP instance UID; none may come twice."""
    found: dict[str, str] = {}
    for file in files:
        data_set = pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)
        meta = data_set.file_meta
        assert meta.MediaStorageSOPInstanceUID == data_set.SOPInstanceUID not in found
        assert meta.MediaStorageSOPClassUID == data_set.SOPClassUID
        found[data_set.SOPInstanceUID] = hashlib.sha256(data_set_bytes(file)).hexdigest()
    return found


def expected(samples: Iterable[Sample]) -> dict[str, str]:
    """Return the same of samples."""
    return {sample.sop_instance_uid: sample.sha256 for sample in samples}


def path_of(sample: Sample, level: str = "instance") -> str:
    """Return the path of the study, series or instance that a sample is (in)."""
    parts = [f"/studies/{sample.study_uid}", f"/series/{sample.series_uid}", f"/instances/{sample.sop_instance_uid}"]
    return "".join(parts[: ("study", "series", "instance").index(level) + 1])


async def get(proxy: Proxy, path: str, **headers: str) -> Answer:
    """Send a GET request and read the answer, within a time that is enough for any."""
    async with asyncio.timeout(20), proxy.http.get(path, headers=headers) as response:
        return await Answer.read(response)


async def kept(http: aiohttp.ClientSession) -> None:
    """Wait until no retrieval is under way: what was retrieved is in the cache some milliseconds after it was sent."""
    async with asyncio.timeout(5):
        while True:
            async with http.get("/status") as response:
                if (await response.json())["retrievals"] == 0:
                    return
            await asyncio.sleep(0.005)
