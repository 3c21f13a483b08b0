"""Content negotiation: what real clients send, what PS3.18 8.7 says of it, and that no header breaks it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dicomweb.accept import (
    DICOM_JSON,
    MAX_ACCEPT_LENGTH,
    MAX_MEDIA_RANGES,
    Choice,
    NotAcceptable,
    Offer,
    choose,
    choose_model,
    choose_retrieve,
    parse_accept,
)

EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
J2K = "1.2.840.10008.1.2.4.90"
MULTIPART = 'multipart/related; type="application/dicom"'
JAVA_DEFAULT = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def retrieve(header: str | None, query: str | None = None, *, single: bool = True) -> Choice:
    return choose_retrieve(parse_accept(header, query), single=single)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "*/*",
        "*",
        JAVA_DEFAULT,
        BROWSER,
        "multipart/*",
        "multipart/related",
        'multipart/related; type="*/*"',
        "multipart/related; type=application/*",
        MULTIPART,
        "multipart/related; type=application/dicom",
        "Multipart/Related ;TYPE=Application/DICOM ; Q=1.000",
        "multipart/related; type=application/dicom; boundary=x; charset=utf-8",
        ",,, ;, /, text, multipart/related; type=application/dicom",
        "application/dicom;q=0.5, */*",
        f"image/jpeg, {MULTIPART}",
    ],
)
def test_multipart_is_the_default_and_names_no_transfer_syntax(header: str | None) -> None:
    for single in (True, False):
        assert retrieve(header, single=single) == Choice(Offer("application/dicom", multipart=True))


@pytest.mark.parametrize(
    "header",
    [
        "application/dicom",
        "application/*",
        "application/dicom, */*",
        "*/*, application/dicom",
        f"application/dicom, {MULTIPART}",
        f"{MULTIPART};q=0.5, application/dicom;q=0.6",
        f"{MULTIPART};q=0, */*",
        "multipart/related;q=0.0, application/dicom;q=0.001",
    ],
)
def test_one_instance_goes_out_raw_when_the_client_likes_that_better(header: str) -> None:
    choice = retrieve(header)
    assert not choice.multipart
    assert str(choice.offer) == "application/dicom"


def test_of_two_equal_wishes_the_first_is_taken() -> None:
    assert retrieve(f"{MULTIPART}, application/dicom").multipart
    assert not retrieve(f"application/dicom, {MULTIPART}").multipart


def test_raw_is_only_offered_for_one_instance() -> None:
    """PS3.18 10.4.4: a single part media type for a study is a 406, even if it has one instance."""
    with pytest.raises(NotAcceptable) as refusal:
        retrieve("application/dicom", single=False)
    assert MULTIPART in str(refusal.value)
    assert "dicom," not in str(refusal.value)


@pytest.mark.parametrize(
    "header",
    [
        "text/html",
        "image/jpeg, image/png",
        'multipart/related; type="application/octet-stream"',
        'multipart/related; type="application/dicom+xml"',
        f"{MULTIPART};q=0, application/dicom;q=0",
        "*/*;q=0",
        f"{MULTIPART};q=0, application/*;q=0, */*",
    ],
)
def test_what_is_not_offered_is_refused_with_a_list_of_what_is(header: str) -> None:
    with pytest.raises(NotAcceptable, match=r'multipart/related; type="application/dicom", application/dicom$'):
        retrieve(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"{MULTIPART}; transfer-syntax=*", ("*",)),
        (f"{MULTIPART}; transfer-syntax=*, */*", ("*",)),
        (f'{MULTIPART}; transfer-syntax="{JPEG}"', (JPEG,)),
        (f"{MULTIPART}; Transfer-Syntax = {JPEG}", (JPEG,)),
        (f"{MULTIPART}; transfer-syntax={JPEG};q=0.5, {MULTIPART}; transfer-syntax={J2K}", (J2K, JPEG)),
        (f'{MULTIPART}; transfer-syntax="{JPEG},{J2K},{JPEG}"', (JPEG, J2K)),
        # One that names none means the default, and what cannot be brought to it as it is.
        (f"{MULTIPART}; transfer-syntax={JPEG}, {MULTIPART};q=0.9", (JPEG, EXPLICIT, "*")),
        (f"{MULTIPART}, {MULTIPART}; transfer-syntax={JPEG}", (EXPLICIT, JPEG, "*")),
        # A named one says nothing of the others, so the wildcard behind it still holds for them.
        (f"{MULTIPART}; transfer-syntax={JPEG}, */*;q=0.1", (JPEG, EXPLICIT, "*")),
        (f"{MULTIPART}; transfer-syntax={JPEG}, */*;q=0", (JPEG,)),
        ("*/*; transfer-syntax=*", ("*",)),
        # What is no UID spoils its member only.
        (f"{MULTIPART}; transfer-syntax=jpeg, {MULTIPART}; transfer-syntax={J2K}", (J2K,)),
    ],
)
def test_transfer_syntaxes_come_in_the_order_of_preference(header: str, expected: tuple[str, ...]) -> None:
    choice = retrieve(header)
    assert choice.multipart
    assert choice.transfer_syntaxes == expected
    assert not choice.excluded


def test_quality_zero_excludes_one_transfer_syntax() -> None:
    choice = retrieve(f"{MULTIPART}; transfer-syntax={JPEG};q=0, */*; transfer-syntax={JPEG}, */*", single=False)
    assert choice.transfer_syntaxes == ()
    assert choice.excluded == {JPEG}


def test_the_transfer_syntaxes_of_another_form_do_not_count() -> None:
    choice = retrieve(f"{MULTIPART}; transfer-syntax={JPEG}; q=0.3, application/dicom; transfer-syntax={J2K}")
    assert not choice.multipart
    assert choice.transfer_syntaxes == (J2K,)


def test_query_parameter_beats_the_header() -> None:
    assert not retrieve(MULTIPART, "application/dicom").multipart
    assert retrieve("application/dicom", MULTIPART + "; transfer-syntax=*").transfer_syntaxes == ("*",)


def test_header_counts_when_the_query_parameter_names_nothing_offered() -> None:
    """PS3.18 8.7.8.1, step 3."""
    assert retrieve(MULTIPART, "image/jpeg").multipart
    with pytest.raises(NotAcceptable):
        retrieve("text/html", "image/jpeg")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "*/*",
        JAVA_DEFAULT,
        BROWSER,
        "application/*",
        "application/json",
        "application/dicom+json",
        "application/dicom+json; charset=utf-8",
        'multipart/related; type="application/dicom+xml";q=0.1, application/dicom+json',
    ],
)
def test_searches_are_answered_in_json(header: str | None) -> None:
    assert not choose_model(parse_accept(header)).multipart


@pytest.mark.parametrize("query", ["application/dicom+json", "application/dicom json"])
def test_an_unencoded_plus_sign_in_the_url_is_understood(query: str) -> None:
    assert choose_model(parse_accept("text/html", query)).offer == DICOM_JSON


def test_xml_comes_in_parts_only() -> None:
    """PS3.18 10.6.4 and 10.4.4 know it for several data sets as `multipart/related` alone."""
    assert choose_model(parse_accept('multipart/related; type="application/dicom+xml"')).multipart
    with pytest.raises(NotAcceptable, match=r'offered here: .*multipart/related; type="application/dicom\+xml"$'):
        choose_model(parse_accept("application/dicom+xml"))


def test_other_resources_choose_among_their_own_offers() -> None:
    offers = (Offer("application/octet-stream", multipart=True), Offer("image/jpeg", multipart=True))
    assert choose(parse_accept('multipart/related; type="*/*"'), offers).offer == offers[0]
    asked = parse_accept(f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}, */*;q=.1")
    assert choose(asked, offers) == Choice(offers[1], (JPEG, EXPLICIT, "*"))


@pytest.mark.parametrize(
    "broken",
    [
        "application/dicom;q=2",
        "application/dicom;q=x",
        "application/dicom;q=",
        "application/dicom;=1",
        "application/dicom;x",
        'application/dicom;x="1',
        "application/dicom/x",
        "application dicom",
        "app(lication/dicom",
    ],
)
def test_a_broken_member_is_skipped(broken: str) -> None:
    accept = parse_accept(f"image/png;q=0.5, {broken}")
    assert [found.media_type for found in accept.header] == ["image/png"]


def test_commas_and_semicolons_in_quotes_do_not_split() -> None:
    (found,) = parse_accept(r'text/x; a="1,2;3\"4"; b=5;;').header
    assert found.parameters == {"a": '1,2;3"4', "b": "5"}


def test_only_so_many_members_are_considered() -> None:
    many = ", ".join(["text/plain"] * 200) + ", application/dicom"
    assert len(parse_accept(many).header) == MAX_MEDIA_RANGES


def test_only_so_many_characters_are_considered() -> None:
    cut_in_two = "text/plain, application/dicom; x=" + "y" * MAX_ACCEPT_LENGTH
    assert [found.media_type for found in parse_accept(cut_in_two).header] == ["text/plain"]


@pytest.mark.parametrize("piece", ['"', '"\\', "a/b;", "=", ',"', "\\", 'a/b;c="', " "])
def test_reading_takes_linear_time(piece: str) -> None:
    begin = time.perf_counter()
    parse_accept(piece * (1_000_000 // len(piece)), piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - begin < 1


_WORDS = ("multipart/related", "application/dicom", "type", "transfer-syntax", JPEG, "+json", "*/*", "\r\n")
_FRAGMENTS = st.sampled_from([*_WORDS, *'*/;,="\\ q01.é\0'])
_ODD_TEXT = st.one_of(st.none(), st.text(), st.lists(_FRAGMENTS, max_size=30).map("".join))


@given(header=_ODD_TEXT, query=_ODD_TEXT, single=st.booleans())
def test_nothing_but_not_acceptable_is_raised(header: str | None, query: str | None, single: bool) -> None:
    accept = parse_accept(header, query)
    for decide in (lambda: choose_retrieve(accept, single=single), lambda: choose_model(accept)):
        try:
            decide()
        except NotAcceptable as refusal:
            assert "offered here" in str(refusal)


@given(qualities=st.lists(st.integers(0, 10), min_size=2, max_size=2))
def test_the_better_liked_form_wins(qualities: list[int]) -> None:
    multipart, raw = qualities
    header = f"{MULTIPART};q={multipart / 10}, application/dicom;q={raw / 10}"
    if multipart == raw == 0:
        with pytest.raises(NotAcceptable):
            retrieve(header)
    else:
        assert retrieve(header).multipart is (multipart >= raw)
