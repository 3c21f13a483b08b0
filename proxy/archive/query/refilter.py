"""Matching once more what an archive returned: some ignore keys that are not in their index, and return everything.

Lenient where archives rightly differ: letter case does not count, and text outside ASCII is believed, since its
character set may not be what the archive says. What an archive does not return cannot be checked; that is noted, so
that the client can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.dataset.charset import ISO_IR_6, encodings_of
from proxy.dataset.dictionary import vr_of
from proxy.dataset.matching import Test, value_test
from proxy.dataset.reader import Element
from proxy.dataset.values import encodings_in, find, text_of

_NO_VALUES: Final = frozenset({"SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN"})


class Refilter:
    """The keys of one C-FIND, as tests of its answers."""

    def __init__(self, matches: Mapping[tuple[int, ...], str], default_character_set: str | None) -> None:
        self._default = encodings_of(default_character_set, ISO_IR_6)
        self._tests: dict[int, Test] = {}
        for path, wanted in matches.items():
            vr = vr_of(path[0])
            if len(path) > 1 or vr in _NO_VALUES or not wanted.isascii():
                continue
            test = value_test(vr, wanted.casefold().split("\\"))
            if test is not None:
                self._tests[path[0]] = test
        self.unchecked: set[int] = set()
        """Keys that an answer held no value for."""

    def passes(self, elements: list[Element]) -> bool:
        """False when a value that the archive returned does not match its key."""
        if not self._tests:
            return True
        encodings = encodings_in(elements, self._default)
        for tag, test in self._tests.items():
            element = find(elements, tag)
            text = text_of(element, encodings) if element is not None else ""
            if not text:
                self.unchecked.add(tag)
            elif text.isascii() and not any(test(value.casefold()) for value in text.split("\\")):
                return False
        return True
