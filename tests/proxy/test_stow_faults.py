"""Uploads that break off, archives that fail, and bounds: half an instance is never stored, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import random
import time
from collections.abc import AsyncIterator

import psutil
import pytest
from pydicom.dataset import Dataset

import dul
from dul import dimse
from proxy.dicomweb import stow_body
from tests import corpus
from tests.corpus import Corpus, Sample, data_set_bytes, describe
from tests.dul.conftest import until
from tests.peers.process import HOST, Address, free_port
from tests.proxy.retrieved import expected
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.uploading import (
    BOUNDARY,
    CONTENT_TYPE,
    OTHERS,
    REFERENCED,
    instances,
    multipart,
    post,
    reasons,
    receiving,
    report_of,
)

pytestmark = pytest.mark.usefixtures("nothing_left")

MEGABYTE = 1024 * 1024
ENDING = f"\r\n--{BOUNDARY}--\r\n".encode()


def large(instance: int = 1, size: int = 3 * MEGABYTE) -> tuple[bytes, Sample]:
    """Return an instance that is larger than all buffers together."""
    data_set: Dataset = corpus.header(9, 1, 1, instance)
    corpus.add_pixels(data_set, 2, bytes(8))
    data_set[0x7FE00010].value = random.Random(instance).randbytes(size)
    file = corpus.encode(data_set)
    return file, describe(file, "")


def files_of(samples: Corpus, chosen: list[Sample]) -> list[bytes]:
    """Return the files of samples."""
    return [samples.path(sample).read_bytes() for sample in chosen]


async def in_chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


class RawClient:
    """An HTTP client that can leave at any byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def status(self) -> int:
        return int((await self.reader.readline()).split()[1])


@contextlib.asynccontextmanager
async def raw_client(proxy: Proxy, length: int | None = None) -> AsyncIterator[RawClient]:
    """Begin an upload of `length` bytes, or in chunks."""
    reader, writer = await asyncio.open_connection(HOST, int(proxy.url.rpartition(":")[2]))
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    writer.write(f"POST /studies HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\n{framing}\r\n\r\n".encode())
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# --- uploads that break off ----------------------------------------------------------------------------------


async def test_a_client_that_leaves_within_an_instance_leaves_no_half_of_it(samples: Corpus) -> None:
    file, sample = large()
    first = samples.samples[0]
    body = multipart([*files_of(samples, [first]), file])
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        async with raw_client(proxy, len(body)) as client:
            client.send(body[:-MEGABYTE])
            await until(lambda: receiver.begun == 2)
        assert receiver.server is not None
        server = receiver.server
        await until(lambda: server.association_count == 0)
        assert receiver.stored == expected([first]), "the association of the half one was aborted"
        assert sample.sop_instance_uid not in receiver.stored
        await until(lambda: server.connection_count == 0)


async def test_a_client_that_leaves_while_it_waits_for_its_turn_is_forgotten(samples: Corpus) -> None:
    async def when_told(store: dul.IncomingStore) -> int:
        await told.wait()
        return await receiver.take(store)

    told = asyncio.Event()
    first, second, third = samples.samples[:3]
    async with receiving(when_told) as receiver, proxy_for(receiver.address, peer={"sequential": True}) as proxy:
        uploads = [asyncio.create_task(post(proxy, multipart(files_of(samples, [each])))) for each in (first, third)]
        await until(lambda: receiver.begun == 1)
        body = multipart(files_of(samples, [second]))
        async with raw_client(proxy, len(body)) as client:
            client.send(body)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        told.set()
        for answer in await asyncio.gather(*uploads):
            report_of(answer, 200)
        assert receiver.stored == expected([first, third])


async def test_a_body_without_its_closing_boundary_is_answered_with_what_was_stored(samples: Corpus) -> None:
    file, sample = large()
    first = samples.samples[0]
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        body = multipart([*files_of(samples, [first]), file])[: -len(ENDING)]
        report = report_of(await post(proxy, body), 202)
        assert instances(report, REFERENCED).keys() == {first.sop_instance_uid}
        assert [item["00081197"]["Value"] for item in report[OTHERS]["Value"]] == [[0xC000]]
        assert "ends before" in (await post(proxy, multipart([file])[: -len(ENDING)])).failure(400)
        assert receiver.stored == expected([first])
        assert sample.sop_instance_uid not in receiver.stored
        # The next upload goes on as if nothing had been.
        report_of(await post(proxy, multipart([file])), 200)
        assert receiver.stored == expected([first, sample])


async def test_an_upload_that_is_too_large(samples: Corpus) -> None:
    file, _ = large()
    first = samples.samples[0]
    async with receiving() as receiver, proxy_for(receiver.address, maxUploadMB=1) as proxy:
        body = multipart([file])
        assert "maxUploadMB" in (await post(proxy, body)).failure(413)
        assert receiver.begun == 0, "what is announced is not begun"
        (await post(proxy, in_chunks(body))).failure(413)
        assert receiver.stored == {}
        report = report_of(await post(proxy, in_chunks(multipart([*files_of(samples, [first]), file]))), 202)
        assert [item["00081197"]["Value"] for item in report[OTHERS]["Value"]] == [[0xA700]]
        assert receiver.stored == expected([first])


async def test_a_body_that_cannot_be_decoded(samples: Corpus) -> None:
    """Content-Encoding is undone, and the result is bounded."""
    sample = samples.samples[0]
    body = multipart(files_of(samples, [sample]))
    async with receiving() as receiver, proxy_for(receiver.address, maxUploadMB=1) as proxy:
        headers = {"Content-Encoding": "gzip"}
        assert "coding" in (await post(proxy, body, headers=headers)).failure(400)
        report_of(await post(proxy, gzip.compress(body), headers=headers), 200)
        (await post(proxy, gzip.compress(multipart([bytes(2 * MEGABYTE)])), headers=headers)).failure(413)
        assert receiver.stored == expected([sample])


async def test_a_client_that_stalls_or_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stow_body, "CLIENT_STALL_SECONDS", 0.5)
    body = multipart([large()[0]])
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        for drip in (b"", b"x" * 10):
            async with raw_client(proxy, len(body)) as client:
                client.send(body[: 2 * MEGABYTE])
                started = time.monotonic()
                status = asyncio.create_task(client.status())
                while not status.done():
                    client.send(drip)
                    await asyncio.sleep(0.05)
                assert await status == 408
                assert time.monotonic() - started < 3
        assert receiver.stored == {}


# --- archives that fail --------------------------------------------------------------------------------------


async def test_an_archive_that_cannot_be_reached(samples: Corpus) -> None:
    body = multipart(files_of(samples, list(samples.samples[:3])))
    async with proxy_for(Address("NOBODY", free_port())) as proxy:
        assert "NOBODY" in (await post(proxy, body)).failure(502)


async def test_an_archive_that_is_silent(samples: Corpus) -> None:
    async def never(store: dul.IncomingStore) -> int:
        await store.finish()
        await asyncio.sleep(60)
        return 0

    body = multipart(files_of(samples, list(samples.samples[:1])))
    peer = {"timeouts": {"response": 0.5}}
    async with receiving(never) as receiver, proxy_for(receiver.address, peer=peer) as proxy:
        assert "no C-STORE response" in (await post(proxy, body)).failure(504)


async def test_an_archive_that_takes_no_more_bytes() -> None:
    async def take_one_chunk(store: dul.IncomingStore) -> int:
        await anext(aiter(store))
        await asyncio.sleep(60)
        return 0

    body = multipart([large(size=24 * MEGABYTE)[0]])
    peer = {"timeouts": {"idle": 0.5}}
    async with receiving(take_one_chunk) as receiver, proxy_for(receiver.address, peer=peer) as proxy:
        assert "no progress" in (await post(proxy, body)).failure(504)


async def test_an_archive_that_dies_after_some(samples: Corpus) -> None:
    """What was stored is reported as stored, all else as failed, and the body is read to its end."""
    chosen = list(samples.samples[:6])

    async def die(store: dul.IncomingStore) -> int:
        if len(receiver.stored) < 2:
            return await receiver.take(store)
        assert receiver.server is not None
        closing.append(asyncio.create_task(receiver.server.close()))
        await asyncio.sleep(60)
        return 0

    closing: list[asyncio.Task[None]] = []
    peer = {"maxAssociations": 3}
    async with receiving(die) as receiver, proxy_for(receiver.address, peer=peer) as proxy:
        report = report_of(await post(proxy, multipart(files_of(samples, chosen))), 202)
        assert instances(report, REFERENCED).keys() == receiver.stored.keys() == expected(chosen[:2]).keys()
        assert reasons(report) == dict.fromkeys(expected(chosen[2:]), dimse.PROCESSING_FAILURE)
        await asyncio.gather(*closing)


async def test_an_association_that_died_unused_is_replaced(samples: Corpus) -> None:
    """Archives close idle associations: the instance that finds out goes out once more."""
    first, second = samples.samples[:2]

    async def abort_once(store: dul.IncomingStore) -> int:
        if receiver.begun == 2:
            store._channel.abort()
            return 0
        return await receiver.take(store)

    async with receiving(abort_once) as receiver, proxy_for(receiver.address) as proxy:
        for sample in (first, second):
            report_of(await post(proxy, multipart(files_of(samples, [sample]))), 200)
        assert receiver.stored == expected([first, second])
        assert receiver.begun == 3


# --- associations --------------------------------------------------------------------------------------------


async def test_uploads_one_after_the_other_share_an_association_that_is_released_soon(samples: Corpus) -> None:
    chosen = [each for each in samples.samples if each.patient_id == "LATIN1"]
    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        assert receiver.server is not None
        server = receiver.server
        report_of(await post(proxy, multipart(files_of(samples, chosen))), 200)
        before = receiver.associations
        for file in files_of(samples, chosen):
            report_of(await post(proxy, multipart([file])), 200)
        assert receiver.associations == before
        assert receiver.stored == expected(chosen)
        await until(lambda: server.association_count == 0)


async def test_an_association_that_the_archive_has_closed_is_not_waited_for(samples: Corpus) -> None:
    body = multipart(files_of(samples, list(samples.samples[:1])))
    quick, one = dul.Timeouts(idle=0.1), {"sequential": True}
    async with receiving(timeouts=quick) as receiver, proxy_for(receiver.address, peer=one) as proxy:
        assert receiver.server is not None
        server = receiver.server
        report_of(await post(proxy, body), 200)
        await until(lambda: server.association_count == 0)
        before = receiver.associations
        started = time.monotonic()
        report_of(await post(proxy, body), 200)
        assert time.monotonic() - started < 0.5
        assert receiver.associations == before + 1


async def test_parallel_uploads_leave_associations_for_others(samples: Corpus) -> None:
    async def slowly(store: dul.IncomingStore) -> int:
        await asyncio.sleep(0.02)
        return await receiver.take(store)

    async with receiving(slowly) as receiver, proxy_for(receiver.address) as proxy:
        files = {sample: files_of(samples, [sample]) for sample in samples.samples}
        answers = await asyncio.gather(*(post(proxy, multipart(file)) for file in files.values()))
        for answer in answers:
            report_of(answer, 200)
        assert receiver.stored == expected(samples.samples)
        assert receiver.most_associations == 2


@pytest.mark.parametrize("peer", [{"maxAssociations": 1}, {"sequential": True}], ids=str)
async def test_one_association_is_enough(samples: Corpus, peer: dict[str, object]) -> None:
    async with receiving() as receiver, proxy_for(receiver.address, peer=peer) as proxy:
        chosen = list(samples.samples[:12])
        body = multipart(files_of(samples, chosen))
        for answer in await asyncio.gather(*(post(proxy, body) for _ in range(3))):
            report_of(answer, 200)
        assert receiver.most_associations == 1
        assert receiver.stored == expected(chosen)


async def test_the_next_instance_goes_out_while_the_archive_works_on_the_one_before(samples: Corpus) -> None:
    async def slowly(store: dul.IncomingStore) -> int:
        status = await receiver.take(store)
        await asyncio.sleep(0.2)
        return status

    chosen = [each for each in samples.samples if each.patient_id == "LATIN1"][:4]
    async with receiving(slowly) as receiver, proxy_for(receiver.address) as proxy:
        started = time.monotonic()
        report_of(await post(proxy, multipart(files_of(samples, chosen))), 200)
        assert time.monotonic() - started < 0.2 * len(chosen) * 0.85


async def test_the_peer_that_uploads_go_to(samples: Corpus) -> None:
    sample = samples.samples[0]
    async with receiving() as first, receiving() as second:
        archives = Address("FIRST", first.address.port), second.address
        async with proxy_for(*archives, storeTo="RECEIVER") as proxy:
            report_of(await post(proxy, multipart(files_of(samples, [sample]))), 200)
        assert (first.begun, second.stored) == (0, expected([sample]))


async def test_the_proxy_stops_during_an_upload() -> None:
    body = multipart([large()[0]])
    async with receiving() as receiver:
        async with proxy_for(receiver.address, shutdownSeconds=0.2) as proxy, raw_client(proxy, len(body)) as client:
            client.send(body[:-MEGABYTE])
            await until(lambda: receiver.begun == 1)
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 3
        assert receiver.stored == {}


@pytest.mark.parametrize("parts", [1, 800])
async def test_memory_does_not_grow_with_the_upload(parts: int) -> None:
    """A fast client and an archive that is slower: what is in between stays small, as one instance and as many."""
    file, sample = large(size=8)
    head, size = file[:-8], 160 * MEGABYTE // parts
    block = random.Random(0).randbytes(MEGABYTE)
    # The last element, Pixel Data, is given another length.
    head = head[:-4] + size.to_bytes(4, "little")
    blocks = [block] * (size // MEGABYTE) or [block[:size]]

    async def body() -> AsyncIterator[bytes]:
        for number in range(parts):
            yield (b"\r\n" if number else b"") + f"--{BOUNDARY}\r\n\r\n".encode() + head
            for each in blocks:
                yield each
        yield ENDING

    process = psutil.Process()
    most = 0

    async def sample_memory() -> None:
        nonlocal most
        while True:
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(0.01)

    async def hashed_after_a_pause(store: dul.IncomingStore) -> int:
        await asyncio.sleep(0.3 / parts)
        return await receiver.take(store)

    async with receiving() as receiver, proxy_for(receiver.address) as proxy:
        report_of(await post(proxy, multipart([file])), 200)
        receiver.respond = hashed_after_a_pause
        before = process.memory_info().rss
        sampling = asyncio.create_task(sample_memory())
        report_of(await post(proxy, body()), 200)
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        expected = hashlib.sha256(b"".join([data_set_bytes(head), *blocks])).hexdigest()
        assert receiver.stored == {sample.sop_instance_uid: expected}
    assert most - before < 24 * MEGABYTE, "client, proxy and archive are all in this process"
