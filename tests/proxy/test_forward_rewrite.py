"""Rewriting the upstream's addresses in bodies: what is replaced and what is not, wherever the pieces are cut."""

from __future__ import annotations

import gzip
import json
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from proxy.forward.addresses import Addresses, addresses
from proxy.forward.rewrite import MAX_PADDING, MAX_PART_HEADER, STEP, rewriting_for

BASE = "https://pacs.example.org/dicom-web"
PUBLIC = "http://proxy.local:3006"
ASKED = URL(f"{BASE}/studies/1.2/metadata")
JSON = "application/dicom+json"
XML = "application/dicom+xml"
BOUNDARY = "frontier"
MULTIPART = f'multipart/related; type="{XML}"; boundary={BOUNDARY}'


def known(*bases: str, public: str = PUBLIC) -> Addresses:
    """Return what is replaced for these configured URLs."""
    return addresses(tuple(URL(base, encoded=True) for base in bases or (BASE,)), public)


def rewritten(
    body: bytes,
    content_type: str = JSON,
    *,
    cuts: list[int] | None = None,
    by: Addresses | None = None,
    coding: str = "",
) -> bytes:
    """Rewrite a body that comes in pieces, which end at `cuts`."""
    fields = CIMultiDict({"Content-Type": content_type, "Content-Encoding": coding})
    rewriting = rewriting_for(fields, by or known(), ASKED)
    if rewriting is None:
        return body
    ends = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or ())})
    pieces = [piece for start, end in pairwise(ends) for piece in rewriting.take(body[start:end])]
    return b"".join([*pieces, *rewriting.finish()])


def everywhere(size: int) -> list[int]:
    """Return cuts between all bytes."""
    return list(range(size))


# --- JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (f"{BASE}/studies/1.2", f"{PUBLIC}/studies/1.2"),
        (BASE, PUBLIC),
        (f"{BASE}?x=1", f"{PUBLIC}?x=1"),
        ("https://PACS.example.ORG/dicom-web/studies", f"{PUBLIC}/studies"),
        ("https://pacs.example.org:443/dicom-web/studies", f"{PUBLIC}/studies"),
        ("http://pacs.example.org/dicom-web/studies", f"{PUBLIC}/studies"),
        ("http://pacs.example.org:80/dicom-web/studies", f"{PUBLIC}/studies"),
        ("http://proxy.local:3006/dicom-web/studies", f"{PUBLIC}/studies"),
        (f"{PUBLIC}/studies", f"{PUBLIC}/studies"),
        ("https://pacs.example.org/dicom-web2/studies", None),
        ("https://pacs.example.org/dicom", None),
        ("https://pacs.example.org/Dicom-Web/studies", None),
        ("https://pacs.example.org:8443/dicom-web/studies", None),
        ("https://pacs.example.org.evil/dicom-web/studies", None),
        ("https://pacsXexample.org/dicom-web/studies", None),
        ("https://other.example.org/dicom-web/studies", None),
        ("ftp://pacs.example.org/dicom-web/studies", None),
        (f"see {BASE}/studies", None),
        (f'"{BASE}/studies', None),
        (f'it says: "{BASE}/studies"', None),
    ],
)
@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
def test_strings_that_begin_with_an_address(written: str, expected: str | None, escaped: bool) -> None:
    """Addresses of the upstream, however they are spelled; no texts that only mention one, and no other addresses."""
    body = json.dumps({"00081190": {"vr": "UR", "Value": [written]}, "x": written})
    body = body.replace("/", "\\/") if escaped else body
    answer = rewritten(body.encode(), cuts=everywhere(len(body)))
    wanted = written if expected is None else expected
    assert json.loads(answer) == {"00081190": {"vr": "UR", "Value": [wanted]}, "x": wanted}
    if wanted == written:
        assert answer == body.encode()


@pytest.mark.parametrize("space", ["", " ", "\n\t\t"])
def test_white_space_before_a_value(space: str) -> None:
    """As Orthanc and others write it."""
    body = f'{{"a" :{space}[{space}"{BASE}/x",{space}"{BASE}/y" ]}}'.encode()
    assert rewritten(body) == body.replace(BASE.encode(), PUBLIC.encode())


@given(
    st.lists(
        st.sampled_from(
            [
                BASE,
                f"{BASE}/s",
                '"',
                ',"',
                '["',
                ':"https',
                ':"http',
                "\\/",
                "\\",
                ":443",
                "/",
                "é",
                BASE.replace("/", "\\/"),
            ]
        ),
        max_size=25,
    ),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_where_the_pieces_end_does_not_matter(parts: list[str], cuts: list[int]) -> None:
    """What comes of it is the same as for all at once, be it JSON or not."""
    body = "".join(parts).encode()
    substitution = known().json
    expected = substitution.pattern.sub(substitution.replacement, b" " + body)[1:]
    assert rewritten(body, cuts=cuts) == expected
    assert rewritten(body, cuts=everywhere(len(body))) == expected


def test_two_configured_addresses() -> None:
    """The longer one counts where one lies below the other; both become the proxy's."""
    by = known("https://a.example/dicom", "https://a.example/dicom/wado", "http://b.example:8080")
    body = (
        b'["https://a.example/dicom/q","https://a.example/dicom/wado/w","http://b.example:8080/x","http://b.example/x"]'
    )
    assert json.loads(rewritten(body, by=by)) == [
        f"{PUBLIC}/q",
        f"{PUBLIC}/w",
        f"{PUBLIC}/x",
        "http://b.example/x",
    ]


def test_a_public_address_with_a_path() -> None:
    """It is put in whole; and an address that is the proxy's already is no other one."""
    public = "https://hospital.example/images"
    by = known("http://10.0.0.5:8080/images", public=public)
    body = b'["http://10.0.0.5:8080/images/studies","https://hospital.example/images/studies"]'
    assert json.loads(rewritten(body, by=by)) == [f"{public}/studies", f"{public}/studies"]


def test_an_upstream_by_ipv6() -> None:
    by = known("http://[2001:db8::5]:8080/x")
    assert rewritten(b'["http://[2001:DB8::5]:8080/x/y"]', by=by) == f'["{PUBLIC}/y"]'.encode()


def test_a_large_body_is_not_kept() -> None:
    """What has come goes on, but for the length of an address."""
    rewriting = rewriting_for(CIMultiDict({"Content-Type": JSON}), known(), ASKED)
    assert rewriting is not None
    kept = 0
    for _ in range(200):
        kept += 5000 - sum(map(len, rewriting.take(b"x" * 5000)))
        assert 0 <= kept < 400


# --- XML -----------------------------------------------------------------------------------------------------


def test_xml() -> None:
    """Texts and attributes; a comment that only mentions the address stays."""
    xml = f"""<?xml version="1.0"?><a><Value number="1">{BASE}/studies/1</Value><BulkData uri="{BASE}/b?x=1"/>
    <BulkData uri='{BASE}'/><Value>see {BASE}/x</Value><Value>https://pacs.example.org/dicom-web2</Value></a>""".encode()
    answer = rewritten(xml, XML, cuts=everywhere(len(xml)))
    expected = xml.replace(f">{BASE}/".encode(), f">{PUBLIC}/".encode())
    expected = expected.replace(f'"{BASE}/'.encode(), f'"{PUBLIC}/'.encode())
    assert answer == expected.replace(f"'{BASE}'".encode(), f"'{PUBLIC}'".encode())


def test_what_is_put_into_xml_is_escaped() -> None:
    by = known(public="https://p.example/a&b")
    assert rewritten(f"<a>{BASE}/x</a>".encode(), "text/xml", by=by) == b"<a>https://p.example/a&amp;b/x</a>"


# --- which bodies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "is_rewritten"),
    [
        (JSON, True),
        ("application/json; charset=utf-8", True),
        ("APPLICATION/DICOM+JSON", True),
        ("application/problem+json", True),
        ("application/vnd.sun.wadl+xml", True),
        ("text/plain", False),
        ("text/html", False),
        ("application/dicom", False),
        ("application/octet-stream", False),
        ("application/jsonx", False),
        ("multipart/related", False),
        ("", False),
        ("/", False),
    ],
)
def test_which_media_types(content_type: str, is_rewritten: bool) -> None:
    fields = CIMultiDict({"Content-Type": content_type})
    assert (rewriting_for(fields, known(), ASKED) is not None) == is_rewritten


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate"])
def test_a_coding_that_was_not_asked_for(coding: str) -> None:
    """It is undone, also where it has several members."""
    body = json.dumps([f"{BASE}/studies/{number}" for number in range(1000)]).encode()
    coded = zlib.compress(body) if coding == "deflate" else gzip.compress(body[:500]) + gzip.compress(body[500:])
    expected = body.replace(BASE.encode(), PUBLIC.encode())
    assert rewritten(coded, coding=coding) == expected
    assert rewritten(coded, coding=coding, cuts=everywhere(len(coded))) == expected


def test_a_coding_that_nobody_here_knows() -> None:
    fields = CIMultiDict({"Content-Type": JSON, "Content-Encoding": "br"})
    assert rewriting_for(fields, known(), ASKED) is None


@pytest.mark.parametrize("coded", [b"no gzip", gzip.compress(b"[]" * 999)[:-9], b""], ids=["other", "cut", "empty"])
def test_a_broken_coding(coded: bytes) -> None:
    """It is an error, and no answer that ends early."""
    with pytest.raises(ValueError, match="coding"):
        rewritten(coded, coding="gzip")


def test_a_bomb_is_inflated_step_by_step() -> None:
    """A thousandfold larger outcome is never in memory at once."""
    coded = gzip.compress(b" " * 50_000_000)
    rewriting = rewriting_for(CIMultiDict({"Content-Type": JSON, "Content-Encoding": "gzip"}), known(), ASKED)
    assert rewriting is not None
    assert max(map(len, rewriting.take(coded))) <= 2 * STEP


# --- multipart -----------------------------------------------------------------------------------------------


def multipart(*parts: tuple[str, bytes], preamble: bytes = b"", closing: bytes = b"--\r\n") -> bytes:
    """Return a body of parts, given as header lines and content."""
    framed = b"".join(
        f"\r\n--{BOUNDARY}\r\n{header}".encode() + (b"\r\n\r\n" if header else b"\r\n") + content
        for header, content in parts
    )
    body = preamble + framed + f"\r\n--{BOUNDARY}".encode() + closing
    return body if preamble else body[2:]


@pytest.mark.parametrize("preamble", [b"", b"a preamble"])
def test_parts(preamble: bytes) -> None:
    """Texts are rewritten, and lose the length that they no longer have; pixels are not, and keep theirs."""
    pixels = bytes(range(256)) * 20 + f'"{BASE}/x"\r\n--{BOUNDARY}x\r\n--front'.encode()
    text = f"<Value>{BASE}/1</Value>".encode()
    body = multipart(
        (f"Content-Type: {XML}\r\nContent-Length: {len(text)}\r\nMIME-Version: 1.0", text),
        (f"content-location: {BASE}/studies/1\r\nContent-Type: application/octet-stream\r\ncontent-length: 9", pixels),
        ("Content-Type: image/jpeg\r\nContent-Location: /dicom-web/frames/1", pixels),
        ("Content-Location: https://elsewhere.example/x\r\nContent-Type: application/dicom", pixels),
        preamble=preamble,
    )
    shown = f"<Value>{PUBLIC}/1</Value>".encode()
    expected = multipart(
        (f"Content-Type: {XML}\r\nMIME-Version: 1.0", shown),
        (
            f"content-location: {PUBLIC}/studies/1\r\nContent-Type: application/octet-stream\r\ncontent-length: 9",
            pixels,
        ),
        (f"Content-Type: image/jpeg\r\nContent-Location: {PUBLIC}/frames/1", pixels),
        ("Content-Location: https://elsewhere.example/x\r\nContent-Type: application/dicom", pixels),
        preamble=preamble,
    )
    assert rewritten(body, MULTIPART) == expected
    assert rewritten(body, MULTIPART, cuts=everywhere(len(body))) == expected
    for step in (2, 7, 64, 1000):
        assert rewritten(body, MULTIPART, cuts=everywhere(len(body))[::step]) == expected


@pytest.mark.parametrize("padding", [0, 1, MAX_PADDING - 1, MAX_PADDING])
def test_spaces_behind_a_boundary(padding: int) -> None:
    """As many as there may be, wherever the pieces end; and nothing is kept back because of them."""
    body = f"--{BOUNDARY}{' ' * padding}\r\nContent-Type: {XML}\r\n\r\n<a>{BASE}/1</a>\r\n--{BOUNDARY}--".encode()
    expected = body.replace(BASE.encode(), PUBLIC.encode())
    assert rewritten(body, MULTIPART, cuts=everywhere(len(body))) == expected
    rewriting = rewriting_for(CIMultiDict({"Content-Type": MULTIPART}), known(), ASKED)
    assert rewriting is not None
    assert b"".join(rewriting.take(body)) == expected


def test_a_part_without_a_type_is_of_the_type_of_all() -> None:
    body = multipart(("Content-ID: 1", f"<a>{BASE}/1</a>".encode()), ("", f"<a>{BASE}/2</a>".encode()))
    assert rewritten(body, MULTIPART) == body.replace(BASE.encode(), PUBLIC.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--",
        b"\r\n",
        b"no multipart at all",
        f"--{BOUNDARY}".encode(),
        f"--{BOUNDARY}\r\nContent-Type: a".encode(),
        f"--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}--epilogue {BASE}/x\r\n--{BOUNDARY}\r\n".encode(),
        f"--{BOUNDARY} \t \r\nContent-Type: a/b\r\n\r\nx\r\n--{BOUNDARY}   --".encode(),
        f"--{BOUNDARY}\nContent-Type: {XML}\n\n<a>{BASE}/x</a>\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}{' ' * 100}\r\n\r\n".encode(),
    ],
)
def test_what_is_not_well_formed_stays_as_it_is(body: bytes) -> None:
    """Byte for byte: it is for the client to say what it makes of it."""
    assert rewritten(body, MULTIPART) == body
    assert rewritten(body, MULTIPART, cuts=everywhere(len(body))) == body


def test_the_header_of_a_part_has_a_bound() -> None:
    """Behind a longer one all goes on as it is, and nothing is kept."""
    body = multipart((f"X: {'x' * (MAX_PART_HEADER + 100)}\r\nContent-Type: {XML}", f"<a>{BASE}/1</a>".encode()))
    assert rewritten(body, MULTIPART, cuts=everywhere(len(body))[::1000]) == body


@given(
    st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"-", b"\r", b" ", b"x", b"\r\n\r\n"]), max_size=30)
)
def test_parts_wherever_the_pieces_end(pieces: list[bytes]) -> None:
    """Whatever looks nearly like a boundary."""
    content = b"".join(pieces)
    body = multipart(("Content-Type: application/octet-stream", content), ("Content-Type: a/b", b"end"))
    assert rewritten(body, MULTIPART) == body
    assert rewritten(body, MULTIPART, cuts=everywhere(len(body))) == body


# --- header fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"{BASE}/studies/1", f"{PUBLIC}/studies/1"),
        ("/dicom-web/studies/1?x=%20", f"{PUBLIC}/studies/1?x=%20"),
        ("series", f"{PUBLIC}/studies/1.2/series"),
        ("../../studies", f"{PUBLIC}/studies"),
        ("//pacs.example.org/dicom-web/x", f"{PUBLIC}/x"),
        (BASE, PUBLIC),
        ("http://pacs.example.org/dicom-web/x", f"{PUBLIC}/x"),
        ("?a=b", f"{PUBLIC}/studies/1.2/metadata?a=b"),
        ("/other", None),
        ("/dicom-web2", None),
        ("../../../../etc", None),
        ("//evil/dicom-web/x", None),
        ("https://pacs.example.org@evil/dicom-web/x", None),
        ("https://pacs.example.org.evil/dicom-web/x", None),
        ("javascript:alert(1)", None),
        ("http://[", None),
    ],
)
def test_an_address_in_a_header(value: str, expected: str | None) -> None:
    """Absolute, or relative to what was asked."""
    assert known().rewritten(value, ASKED) == expected
