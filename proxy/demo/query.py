"""Identifiers of C-FIND, C-MOVE and C-GET requests, and whether a row matches one (PS3.4 C.2.2, C.4.1 to C.4.3).

What may live here: from the bytes of a request to a `Query`, with the refusals that the standard has for wrong
ones. Error comments name keys, and never their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dul import Request, StatusError, dimse, uids
from proxy.dataset.charset import Encodings
from proxy.dataset.dictionary import SPECIFIC_CHARACTER_SET, keyword_of, vr_of
from proxy.dataset.matching import Test, is_literal, value_test
from proxy.dataset.reader import DatasetError, Element, parse
from proxy.dataset.reader import Value as ReadValue
from proxy.dataset.values import NUMBERS, TEXTS, encodings_in, find, first_value, numbers, strings, tags
from proxy.demo.attributes import COMPUTED, HELD, QUERY_RETRIEVE_LEVEL, UNIQUE_KEYS, QueryLevel
from proxy.demo.rows import Row, UniqueKeys, getter

_ROOTS: Final[Mapping[str, Mapping[str, QueryLevel]]] = {
    "C-FIND": {uids.PATIENT_ROOT_FIND: QueryLevel.PATIENT, uids.STUDY_ROOT_FIND: QueryLevel.STUDY},
    "C-MOVE": {uids.PATIENT_ROOT_MOVE: QueryLevel.PATIENT, uids.STUDY_ROOT_MOVE: QueryLevel.STUDY},
    "C-GET": {uids.PATIENT_ROOT_GET: QueryLevel.PATIENT, uids.STUDY_ROOT_GET: QueryLevel.STUDY},
}

MODELS: Final = frozenset(model for models in _ROOTS.values() for model in models)
"""The SOP classes of the information models that are served (PS3.4 C.3.1, C.3.2)."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an identifier: always to be returned, and to be matched unless it is universal (PS3.4 C.2.2.2.3).

    `items` are the keys in the item of a sequence; where there are none, whole items are asked for (PS3.4 C.2.2.2.6).
    """

    tag: int
    vr: str
    test: Test | None = field(default=None, repr=False)
    items: tuple[Key, ...] = ()

    @property
    def is_universal(self) -> bool:
        """True when everything matches."""
        return self.test is None and all(key.is_universal for key in self.items)

    def matches(self, value: ReadValue | None, encodings: Encodings) -> bool:
        """Whether a value matches; None is for no value. One of several values, or of several items, is enough."""
        if self.is_universal:
            return True
        if self.test is None:
            return isinstance(value, list) and any(self._matches_item(item, encodings) for item in value)
        return any(map(self.test, _texts(value, self.vr, encodings) or [""]))

    def _matches_item(self, item: list[Element], inherited: Encodings) -> bool:
        encodings = encodings_in(item, inherited)
        return all(key.matches(_value_in(item, key.tag), encodings) for key in self.items)


@dataclass(frozen=True, slots=True)
class Query:
    """A request's identifier, understood.

    `keys` are those of the level and above that the archive supports; what belongs below has no meaning (PS3.4
    C.4.1.2.1). `unique` has the unique keys that are given letter by letter.
    """

    level: QueryLevel
    keys: tuple[Key, ...]
    unique: UniqueKeys

    def matcher(self, ae_title: str) -> Callable[[Row], bool]:
        """A function that tells whether a row of this level matches all keys."""
        tests = [
            (key, attribute_level(key.tag), getter(key.tag, ae_title)) for key in self.keys if not key.is_universal
        ]

        def matches(row: Row) -> bool:
            return all(
                key.matches(value_of(row), row.holder(level).character_set.encodings) for key, level, value_of in tests
            )

        return matches


def read_query(service: str, request: Request) -> Query:
    """The query of a request of `service`, which is "C-FIND", "C-MOVE" or "C-GET".

    Raises `StatusError`: 0x0122 for a model of another service, 0xC000 for an identifier that cannot be read, and
    0xA900 where the level or a unique key is missing or not allowed (PS3.4 C.4.1.1.4).
    """
    root = _ROOTS[service].get(request.model)
    if root is None:
        raise StatusError(service, dimse.SOP_CLASS_NOT_SUPPORTED)
    try:
        elements = parse(request.identifier, request.transfer_syntax)
    except DatasetError:
        raise StatusError(service, dimse.UNABLE_TO_PROCESS, "malformed identifier") from None
    encodings = encodings_in(elements)
    name = first_value(elements, QUERY_RETRIEVE_LEVEL)
    if name not in QueryLevel.__members__ or QueryLevel[name] < root:
        raise _mismatch(service, "QueryRetrieveLevel is missing or not one of the model")
    level = QueryLevel[name]
    keys = _keys(elements, level, encodings)
    unique: dict[QueryLevel, Sequence[str]] = {}
    for each in QueryLevel:
        wanted = _texts(_value_in(elements, UNIQUE_KEYS[each]), vr_of(UNIQUE_KEYS[each]), encodings)
        literal = bool(wanted) and all(is_literal(vr_of(UNIQUE_KEYS[each]), one) for one in wanted)
        if root <= each < level and not (literal and len(wanted) == 1):
            raise _mismatch(service, f"{keyword_of(UNIQUE_KEYS[each])} is not a single value")
        if each is level and service != "C-FIND" and not literal:
            raise _mismatch(service, f"{keyword_of(UNIQUE_KEYS[each])} is missing")
        # In a Study Root query Patient ID is a key like others, but a quick one; in a retrieve it has no meaning.
        if literal and each <= level and (each >= root or service == "C-FIND"):
            unique[each] = wanted
    return Query(level, keys, unique)


def _mismatch(service: str, comment: str) -> StatusError:
    return StatusError(service, dimse.IDENTIFIER_DOES_NOT_MATCH, comment)


def attribute_level(tag: int) -> QueryLevel:
    """The level that a supported attribute belongs to."""
    return (COMPUTED.get(tag) or HELD[tag]).level


def _keys(elements: Iterable[Element], level: QueryLevel, encodings: Encodings) -> tuple[Key, ...]:
    return tuple(
        _key(element, encodings)
        for element in elements
        if (element.tag in HELD or element.tag in COMPUTED) and attribute_level(element.tag) <= level
    )


def _key(element: Element, encodings: Encodings) -> Key:
    tag, vr, value = element.tag, vr_of(element.tag), element.value
    if vr == "SQ":
        item = value[0] if isinstance(value, list) and value else []
        inherited = encodings_in(item, encodings)
        return Key(tag, vr, None, tuple(_key(one, inherited) for one in item if one.tag != SPECIFIC_CHARACTER_SET))
    if vr == "UN":
        vr = element.vr  # a private one, in an item
    return Key(tag, vr, value_test(vr, _texts(value, vr, encodings)))


def _value_in(elements: Iterable[Element], tag: int) -> ReadValue | None:
    element = find(elements, tag)
    return None if element is None else element.value


def _texts(value: ReadValue | None, vr: str, encodings: Encodings) -> list[str]:
    """The values as text; none for sequences and bulk data."""
    if value is None or isinstance(value, (list, tuple)):
        return []
    if vr in TEXTS:
        return strings(value, vr, encodings)
    if vr in NUMBERS:
        return [str(number) for number in numbers(value, vr)]
    return tags(value) if vr == "AT" else []
