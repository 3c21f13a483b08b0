"""What the fuzzing begins with: real messages, data sets and bodies for each target, of a few KiB at most."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pydicom

from dul import dimse, items, pdu
from tests import corpus
from tests.dul import wire
from tests.fuzz.targets import BIG_ENDIAN, BOUNDARY, DEFLATED, JPEG, PDU_TYPES, SYNTAXES

MOST = 4096
"""Bytes of a seed: what is interesting is in the headers, and short inputs are more of them."""

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def seeds(target: str) -> list[bytes]:
    """The inputs that a target's mutations are made of."""
    made = {
        "pdus": _pdus,
        "connections": _connections,
        "commands": _commands,
        "user-information": _user_information,
        "data-sets": _data_sets,
        "peeks": _data_sets,
        "frames": _images,
        "part10-headers": _files,
        "uploads": _uploads,
        "accepts": _accepts,
        "queries": _queries,
    }[target]()
    return [seed[:MOST] for seed in made]


def _associations() -> list[bytes]:
    contexts = [(number, wire.CT_IMAGE, [IMPLICIT, EXPLICIT]) for number in (1, 3, 5)]
    information = items.UserInformation(
        items=(
            items.AsynchronousOperationsWindow(4, 4),
            items.RoleSelection(wire.CT_IMAGE, scu_role=True, scp_role=True),
            items.ExtendedNegotiation(wire.STUDY_ROOT_FIND, b"\1\1\1"),
            items.UserIdentityRQ(2, b"user", b"password", positive_response_requested=True),
        )
    )
    request = pdu.AAssociateRQ(
        "CALLED",
        "CALLING",
        tuple(items.PresentationContextRQ(number, name, tuple(syntaxes)) for number, name, syntaxes in contexts),
        information,
    )
    answer = pdu.AAssociateAC(
        "CALLED",
        "CALLING",
        tuple(items.PresentationContextAC(number, 0, IMPLICIT) for number, *_ in contexts),
        information,
    )
    return [
        pdu.encode(request),
        pdu.encode(answer),
        pdu.encode(pdu.AAssociateRJ(1, 1, 7)),
        wire.RELEASE_RQ_PDU,
        wire.RELEASE_RP_PDU,
        wire.ABORT_PDU,
    ]


def _pdus() -> Iterator[bytes]:
    for each in _associations():
        yield bytes([PDU_TYPES.index(each[0])]) + each[6:]


def _connections() -> Iterator[bytes]:
    messages = [wire.p_data(wire.pdv(1, 3, command)) for command in _commands()]
    data = wire.p_data(wire.pdv(1, 3, next(iter(_commands()))), wire.pdv(1, 0, b"x" * 40), wire.pdv(1, 2, b"y" * 40))
    for role in range(4):
        for each in (*_associations(), *messages, data, data + wire.RELEASE_RQ_PDU):
            yield bytes([role]) + each


def _commands() -> Iterator[bytes]:
    for field in dimse.CommandField:
        yield wire.command(
            field=field.value,
            sop_class=wire.CT_IMAGE,
            message_id=7,
            responding_to=7,
            priority=0,
            data_set=0,
            status=0xFF00,
            remaining=3,
            completed=1,
            failed=0,
            warning=0,
            sop_instance="1.2.3.4",
            destination="PROXY",
            originator="PROXY",
            originator_id=9,
            comment="no reason",
        )


def _user_information() -> Iterator[bytes]:
    for each in _associations()[:2]:
        at = 74  # of the fixed part of the PDU (PS3.8 Table 9-11)
        while at < len(each):
            length = int.from_bytes(each[at + 2 : at + 4], "big")
            kind = {0x50: 0, 0x20: 1, 0x21: 2}.get(each[at])
            if kind is not None:
                yield bytes([kind]) + each[at + 4 : at + 4 + length]
            at += 4 + length


def _files() -> Iterator[bytes]:
    for path in sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm")):
        with path.open("rb") as file:
            yield file.read(MOST)
    yield from islice(corpus.mixed(), 20)


def _data_sets() -> Iterator[bytes]:
    for file in _files():
        if file[128:132] != b"DICM":
            continue
        length = int.from_bytes(file[140:144], "little")
        syntax = _transfer_syntax(file)
        number = SYNTAXES.index(syntax) if syntax in SYNTAXES else 0
        yield bytes([number]) + file[144 + length :]


def _transfer_syntax(file: bytes) -> str:
    names = (IMPLICIT + "\0", BIG_ENDIAN + "\0", DEFLATED)
    head = file[:1024]
    return next((name.rstrip("\0") for name in names if name.encode() in head), EXPLICIT)


def _images() -> Iterator[bytes]:
    """Native, and encapsulated with an offset table and several fragments."""
    for syntax, number in ((EXPLICIT, 0), (JPEG, 3)):
        for count in (1, 3):
            data_set = pydicom.Dataset()
            data_set.Rows = data_set.Columns = 4
            data_set.SamplesPerPixel = 1
            data_set.BitsAllocated = data_set.BitsStored = 8
            data_set.HighBit = 7
            data_set.PixelRepresentation = 0
            data_set.PhotometricInterpretation = "MONOCHROME2"
            data_set.NumberOfFrames = count
            data_set.SOPClassUID, data_set.SOPInstanceUID = wire.CT_IMAGE, "1.2.3"
            if syntax == JPEG:
                jpeg = [b"\xff\xd8" + bytes(10) + b"\xff\xd9"] * count
                data_set.PixelData = pydicom.encaps.encapsulate(jpeg, fragments_per_frame=2)
                data_set["PixelData"].is_undefined_length = True
            else:
                data_set.PixelData = bytes(16 * count)
            data_set["PixelData"].VR = "OB"
            yield bytes([number]) + corpus.data_set_bytes(corpus.encode(data_set, syntax))


def _uploads() -> Iterator[bytes]:
    boundary = BOUNDARY.encode()
    parts = [
        b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n" + file[:1500] + b"\r\n"
        for file in islice(_files(), 8)
    ]
    for number, part in enumerate(parts):
        yield bytes([number * 7]) + part + parts[0] + b"--" + boundary + b"--\r\n"
        yield bytes([63 - number]) + (part + b"--" + boundary + b"--").replace(b"\r\n", b"\n")


def _accepts() -> Iterator[bytes]:
    for number, text in enumerate(
        (
            'multipart/related; type="application/dicom"; transfer-syntax=*, application/dicom;q=0.5',
            "application/dicom+json, */*;q=0.1",
            'multipart/related;type="image/jpeg";transfer-syntax=1.2.840.10008.1.2.4.50;q=0.9',
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        )
    ):
        for role in range(4):
            yield bytes([role + 4 * number]) + text.encode()


def _queries() -> Iterator[bytes]:
    yield b"PatientName=DOE%5EJ*&StudyDate=20200101-20201231&limit=10&offset=5&fuzzymatching=true"
    yield b"00100020=1%2C2&StudyInstanceUID=1.2.3,4.5.6&includefield=all&includefield=00081030,ModalitiesInStudy"
    yield b"00400275.00400009=X&Modality=CT%5CMR&StudyTime=1000-1200"
