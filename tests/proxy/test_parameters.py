"""Search parameters: nothing asked for is dropped or widened, nothing wrong gets through, no value in a message."""

import time
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dataset.dictionary import keyword_of, vr_of
from proxy.dataset.levels import EVERY_LEVEL, SERIES_KEYS, STUDY_KEYS, Level, level_of, unique_keys
from proxy.dicomweb.attributes import RETURNED, Resource
from proxy.dicomweb.parameters import (
    MAX_INCLUDE_FIELDS,
    MAX_MODALITIES,
    MAX_PARAMETERS,
    MAX_VALUE_LENGTH,
    BadParameter,
    Query,
    append_wildcards,
    attribute_path,
    parse_query,
)
from proxy.dicomweb.uids import is_valid_uid

NAME, PATIENT_ID, STUDY_DATE = (0x00100010,), (0x00100020,), (0x00080020,)
STUDY_UID, MODALITIES, MODALITY = (0x0020000D,), (0x00080061,), (0x00080060,)
REQUESTED_PROCEDURE_ID = (0x00400275, 0x00401001)


def value_of(name: str, value: str) -> str:
    (parsed,) = parse_query([(name, value)]).matches.values()
    return parsed


def refusal_of(*pairs: tuple[str, str]) -> BadParameter:
    with pytest.raises(BadParameter) as refusal:
        parse_query(pairs)
    return refusal.value


def test_the_study_list_of_a_viewer() -> None:
    query = parse_query(
        [
            ("limit", "101"),
            ("offset", "0"),
            ("fuzzymatching", "true"),
            ("includefield", "00081030,00080060,00080090,00100030"),
            ("PatientName", "*Sta*"),
            ("00100020", "*CLI*"),
            ("ModalitiesInStudy", "CT,MR"),
            ("StudyDate", "20200101-20241231"),
        ]
    )
    assert query == Query(
        matches={
            NAME: "*Sta*",
            PATIENT_ID: "*CLI*",
            MODALITIES: "CT\\MR",
            STUDY_DATE: "20200101-20241231",
        },
        include=((0x00081030,), (0x00080060,), (0x00080090,), (0x00100030,)),
        limit=101,
        offset=0,
        extended=("fuzzymatching",),
    )


def test_no_parameters_ask_for_everything() -> None:
    assert parse_query([]) == Query(matches={}, include=(), include_all=False, limit=None, offset=0, extended=())


def test_a_query_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        parse_query([]).limit = 5  # type: ignore[misc]


def test_parameters_of_other_parts_are_passed_over() -> None:
    pairs = [("accept", "application/dicom+json"), ("multipart", "false"), ("charset", "utf-8")]
    assert parse_query(pairs) == Query()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("PatientName", NAME),
        ("00100010", NAME),
        ("0020000d", STUDY_UID),
        ("0020000D", STUDY_UID),
        ("RequestAttributesSequence.RequestedProcedureID", REQUESTED_PROCEDURE_ID),
        ("00400275.00401001", REQUESTED_PROCEDURE_ID),
        ("RequestAttributesSequence.00401001", REQUESTED_PROCEDURE_ID),
        ("RequestAttributesSequence", (0x00400275,)),
        ("00091001", (0x00091001,)),
    ],
)
def test_names_are_keywords_tags_and_paths(name: str, path: tuple[int, ...]) -> None:
    assert attribute_path(name) == path
    assert parse_query([(name, "")]).matches == {path: ""}
    assert parse_query([("includefield", name)]).include == (path,)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PatientNam", "; did you mean PatientName?"),
        ("patientname", "; did you mean PatientName?"),
        ("PatientsName", "; did you mean PatientName?"),
        ("includeField", "; did you mean includefield?"),
        ("Limit", "; did you mean limit?"),
        ("Surname", ""),
        ("_", ""),
        ("00100011", ""),
        ("0010001", ""),
    ],
)
def test_an_unknown_attribute_is_named(name: str, hint: str) -> None:
    refusal = refusal_of((name, "Doe^John"))
    assert refusal.name == name
    assert str(refusal) == f"unknown attribute '{name}'{hint}"
    assert str(refusal_of(("includefield", name))) == str(refusal)


@pytest.mark.parametrize(
    "name",
    [
        "TransferSyntaxUID",  # group 0002
        "CommandField",  # group 0000
        "QueryRetrieveLevel",
        "00100000",  # group length
        "fffee000",  # item
    ],
)
def test_what_no_instance_holds_cannot_be_asked_for(name: str) -> None:
    assert "unknown attribute" in str(refusal_of((name, "")))


@pytest.mark.parametrize("name", ["", "Doe^John 1970", "a" * 600, "x\r\ny", "Größe", ".", "PatientName.", "\ud800"])
def test_names_that_are_none_are_not_repeated(name: str) -> None:
    message = str(refusal_of((name, "1")))
    assert message.isprintable()
    assert len(message) < 120
    assert "Doe" not in message


def test_paths_go_through_sequences_only() -> None:
    assert "PatientName is not a sequence" in str(refusal_of(("PatientName.PatientID", "1")))
    too_deep = ".".join(["RequestAttributesSequence"] * 9)
    assert "too long" in str(refusal_of((too_deep, "")))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("StudyDate", ["", "20240229", "20240101-20241231", "20240101-", "-20241231"]),
        ("StudyTime", ["", "23", "2359", "235960", "235959.123456", "08-0930", "0800-", "-1200"]),
        ("AcquisitionDateTime", ["2024", "202402", "20240229", "2024022923", "20240229235959.5", "2024+0100"]),
        ("AcquisitionDateTime", ["2023-2024", "2023-", "-2024", "2023-0500", "20230101-0500-20240101-0500"]),
        ("PatientName", ["Doe^J*", "?oe", "山田^太郎=やまだ", "a-b", "x" * 200, "O'Neil, P"]),
        ("PatientID", ["*", "1-2", "a,b"]),
        ("AccessionNumber", ["A 1", "*"]),
        ("SeriesNumber", ["4", "+4", "-2147483648", "007"]),
        ("PatientWeight", ["70", "70.5", "-.5", "1e3", "70."]),
        ("Rows", ["0", "65535"]),
        ("PatientAge", ["042Y"]),
        ("FrameIncrementPointer", ["00181063"]),
        ("ImageType", ["ORIGINAL"]),
    ],
)
def test_values_that_the_vr_allows_stay_as_they_are(name: str, values: list[str]) -> None:
    for value in values:
        assert value_of(name, value) == value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("StudyDate", ["2024-01-01", "20240230", "00000101", "2024", "*", "202401??", "-", "today", "20240101-x"]),
        ("StudyDate", ["20240101--20240102", "20240101-20240102-", "２０２４0101", "20240101 ", "2024.01.01"]),
        ("StudyTime", ["24", "1", "12:00", "1260", "235961", "120000.", "120000.1234567", "12.5", "-", "*"]),
        ("AcquisitionDateTime", ["202", "202413", "20240100", "2024+1500", "2024 0100", "-", "--", "-" * 99]),
        ("SeriesNumber", ["x", "1.5", "2147483648", "1-3", "*", "1,2", "4 ", "٤"]),
        ("PatientWeight", ["heavy", "1e", ".", "1,5", "nan", "inf", "1" * 17]),
        ("Rows", ["-1", "65536", "512.0"]),
        ("PatientAge", ["42", "042y", "77Y"]),
        ("FrameIncrementPointer", ["FrameTime"]),
        ("StudyInstanceUID", ["1..2", ".1", "1.", "1.a", "1.*", "*", "1.2,", ",", "1.2\\\\1.3", "1" * 65]),
        ("ModalitiesInStudy", ["CT,", ",", "CT\\\\MR"]),
        ("RequestAttributesSequence", ["x"]),
        ("PixelData", ["x"]),
        ("00091001", ["x"]),
        ("SpecificCharacterSet", ["ISO_IR 100"]),
        ("PatientName", ["A\\B", "A\0", "A\nB", "A\x7f", "A\x85", "A\ud800", "x" * (MAX_VALUE_LENGTH + 1)]),
    ],
)
def test_other_values_are_refused_by_name_and_not_repeated(name: str, values: list[str]) -> None:
    for value in values:
        refusal = refusal_of((name, value))
        assert refusal.name == name
        assert str(refusal).isprintable()
        assert len(value) < 3 or value not in str(refusal)


def test_the_message_says_what_is_expected() -> None:
    assert str(refusal_of(("StudyDate", "x"))) == "StudyDate is not a date YYYYMMDD, or a range of dates"
    nested = refusal_of(("00400275.StudyInstanceUID", "x"))
    assert str(nested) == "RequestAttributesSequence.StudyInstanceUID is not a UID or a list of UIDs"
    assert "its VR is UN" in str(refusal_of(("00091001", "x")))


@pytest.mark.parametrize("value", ["1.2,1.3", "1.2\\1.3", "1.2, 1.3", "1.2,1.3,1.2"])
def test_lists_of_uids_are_joined_by_backslashes(value: str) -> None:
    assert value_of("StudyInstanceUID", value) == "1.2\\1.3"


def test_uids_given_several_times_are_one_list() -> None:
    pairs = [("StudyInstanceUID", "1.2"), ("0020000D", "1.3,1.2"), ("StudyInstanceUID", "")]
    assert parse_query(pairs).matches == {STUDY_UID: "1.2\\1.3"}
    assert parse_query(pairs[::-1]).matches == {STUDY_UID: "1.3\\1.2"}


def test_merged_lists_are_bounded() -> None:
    pairs = [("StudyInstanceUID", ",".join(f"1.{n}.{m}" for m in range(400))) for n in range(100)]
    assert "too many values" in str(refusal_of(*pairs))
    codes = ",".join(f"M{n}" for n in range(MAX_MODALITIES))
    assert value_of("Modality", codes).count("\\") == MAX_MODALITIES - 1
    assert "too many values" in str(refusal_of(("Modality", codes + ",MORE")))


def test_modalities_are_lists_too() -> None:
    assert value_of("Modality", "CT\\MR") == "CT\\MR"
    assert value_of("00080061", "CT, MR,CT") == "CT\\MR"
    pairs = [("ModalitiesInStudy", "CT"), ("ModalitiesInStudy", "M*")]
    assert parse_query(pairs).matches == {MODALITIES: "CT\\M*"}


def test_another_attribute_given_twice_is_refused() -> None:
    assert str(refusal_of(("PatientName", "A"), ("00100010", "B"))) == "PatientName is given twice"
    for name in ("limit", "offset", "fuzzymatching"):
        assert str(refusal_of((name, "1"), (name, "1"))) == f"{name} is given twice"


def test_include_fields() -> None:
    query = parse_query([("includefield", "PatientName,00100020"), ("includefield", "PatientName, ,Modality,")])
    assert query.include == (NAME, PATIENT_ID, MODALITY)
    assert not query.include_all
    everything = parse_query([("includefield", "all,Modality")])
    assert everything.include_all
    assert everything.include == (MODALITY,)


def test_include_fields_are_bounded() -> None:
    tags = [f"{0x00091001 + n:08x}" for n in range(MAX_INCLUDE_FIELDS + 1)]
    halves = [tags[: len(tags) // 2], tags[len(tags) // 2 :]]
    pairs = [("includefield", ",".join(half)) for half in halves]
    assert refusal_of(*pairs).name == "includefield"


@pytest.mark.parametrize("name", ["limit", "offset"])
@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "x", " 1", "²", "٤", "2147483648", "9" * 4000])
def test_limit_and_offset_are_non_negative_numbers(name: str, value: str) -> None:
    assert str(refusal_of((name, value))) == f"{name} is not a number from 0 to 2147483647"


def test_limit_and_offset_at_their_ends() -> None:
    query = parse_query([("limit", "0"), ("offset", "2147483647")])
    assert (query.limit, query.offset) == (0, 2**31 - 1)


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("false", False), ("True", True)])
def test_matching_beyond_the_literal(value: str, asked: bool) -> None:
    for name in ("fuzzymatching", "emptyvaluematching", "multiplevaluematching"):
        assert parse_query([(name, value)]).extended == ((name,) if asked else ())


@pytest.mark.parametrize("value", ["", "1", "yes", "*"])
def test_fuzzymatching_is_true_or_false(value: str) -> None:
    assert refusal_of(("fuzzymatching", value)).name == "fuzzymatching"


def test_the_number_of_parameters_is_bounded() -> None:
    assert parse_query([("StudyInstanceUID", "1.2")] * MAX_PARAMETERS).matches == {STUDY_UID: "1.2"}
    assert str(refusal_of(*[("accept", "")] * (MAX_PARAMETERS + 1))) == "more than 200 query parameters"


@pytest.mark.parametrize(
    ("value", "min_chars", "expected"),
    [
        ("Doe", 0, "Doe*"),
        ("Doe", 3, "Doe*"),
        ("Do", 3, "Do"),
        ("", 0, ""),
        ("D*e", 0, "D*e"),
        ("D?e", 0, "D?e"),
    ],
)
def test_wildcards_are_appended_to_names_and_ids(value: str, min_chars: int, expected: str) -> None:
    query = parse_query([("PatientName", value), ("PatientID", value), ("AccessionNumber", "A1"), ("limit", "5")])
    appended = append_wildcards(query, enabled=True, min_chars=min_chars)
    assert appended.matches == {NAME: expected, PATIENT_ID: expected, (0x00080050,): "A1"}
    assert appended.limit == 5
    assert query.matches[NAME] == value
    assert append_wildcards(query, enabled=False, min_chars=min_chars) == query


def test_wildcards_are_appended_to_nothing_that_was_not_asked_for() -> None:
    query = parse_query([("ReferencedPatientSequence.PatientID", "1")])
    assert append_wildcards(query, enabled=True, min_chars=0) == query


def test_refusals_are_cheap() -> None:
    """A request that is wrong in every way costs the event loop no noticeable time."""
    pairs = [("StudyInstanceUID", "1,2," * 1000 + "1")] * (MAX_PARAMETERS - 1) + [("x" * 128, "")]
    begin = time.perf_counter()
    refusal_of(*pairs)
    refusal_of(("AcquisitionDateTime", "-" * MAX_VALUE_LENGTH))
    assert time.perf_counter() - begin < 1


_NAMES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "PatientName",
            "StudyDate",
            "StudyTime",
            "AcquisitionDateTime",
            "StudyInstanceUID",
            "ModalitiesInStudy",
            "SeriesNumber",
            "PatientWeight",
            "SpecificCharacterSet",
            "00400275.00401001",
            "PatientName.PatientID",
            "00091001",
            "PatientNam",
            "limit",
            "offset",
            "fuzzymatching",
            "includefield",
        ]
    ),
)
_VALUES = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(exclude_categories=[]), max_size=10),
    st.text("0123456789-.,\\*?+ all", max_size=30),
)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=12))
def test_only_bad_parameter_is_raised_and_what_passes_is_safe(pairs: list[tuple[str, str]]) -> None:
    try:
        query = parse_query(pairs)
    except BadParameter as refusal:
        assert str(refusal).isprintable()
        return
    for path, value in query.matches.items():
        value.encode("utf-8")
        if vr_of(path[-1]) == "UI":
            assert not value or all(map(is_valid_uid, value.split("\\")))
        elif path[-1] not in (*MODALITY, *MODALITIES):
            assert "\\" not in value
    # What was given for a known attribute is there to narrow the search.
    given_attributes = {name for name, value in pairs if value} & {"PatientName", "StudyDate", "StudyInstanceUID"}
    assert all(query.matches[attribute_path(name)] for name in given_attributes)


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.2", "0.0", "1.02.3", "1" * 64])
def test_uids(uid: str) -> None:
    assert is_valid_uid(uid)


@pytest.mark.parametrize("uid", ["", ".", "1.", ".1", "1..2", "1.2\n", " 1", "1/2", "..", "1.２", "1" * 65, "1\0"])
def test_what_is_no_uid(uid: str) -> None:
    assert not is_valid_uid(uid)


def test_searches_below_no_parent_return_the_parents_attributes() -> None:
    """PS3.18 10.6.3.3.2 and 10.6.3.3.3: the levels that the path leaves open are in the answer."""
    study, series = set(RETURNED[Resource.ALL_STUDIES]), set(RETURNED[Resource.STUDY_SERIES])
    instance = set(RETURNED[Resource.SERIES_INSTANCES])
    assert set(RETURNED) == set(Resource)
    assert set(RETURNED[Resource.ALL_SERIES]) == study | series
    assert set(RETURNED[Resource.STUDY_INSTANCES]) == series | instance
    assert set(RETURNED[Resource.ALL_INSTANCES]) == study | series | instance
    for resource, tags in RETURNED.items():
        assert unique_keys(resource.level)[-1] in tags
        assert len(tags) == len(set(tags))
        assert all(keyword_of(tag) for tag in tags)


@pytest.mark.parametrize(
    ("level", "resource"),
    [
        (Level.STUDY, Resource.ALL_STUDIES),
        (Level.SERIES, Resource.STUDY_SERIES),
        (Level.IMAGE, Resource.SERIES_INSTANCES),
    ],
)
def test_what_is_returned_belongs_to_its_level(level: Level, resource: Resource) -> None:
    assert {level_of(tag) for tag in RETURNED[resource]} == {level, None}


def test_each_attribute_belongs_to_one_level() -> None:
    assert not STUDY_KEYS & SERIES_KEYS
    assert not EVERY_LEVEL & (STUDY_KEYS | SERIES_KEYS)
    assert level_of(0x00104000) is Level.STUDY  # PatientComments, of the Patient group
    assert level_of(0x00280010) is Level.IMAGE
    assert unique_keys(Level.SERIES) == (0x0020000D, 0x0020000E)
    assert Level.IMAGE.and_above == (Level.STUDY, Level.SERIES, Level.IMAGE)
