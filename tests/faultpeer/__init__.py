"""An archive that misbehaves as a test's script says; README.md has a table of what there is."""

from tests.faultpeer.archive import ScriptedArchive, in_front_of
from tests.faultpeer.association import Caller, Greeting, Releasing
from tests.faultpeer.find import Find, FindScript
from tests.faultpeer.retrieve import AET, Retrieve, Script, Send, Tally
from tests.faultpeer.retrieves import honest
from tests.faultpeer.stored import Stored, small_study

__all__ = [
    "AET",
    "Caller",
    "Find",
    "FindScript",
    "Greeting",
    "Releasing",
    "Retrieve",
    "Script",
    "ScriptedArchive",
    "Send",
    "Stored",
    "Tally",
    "honest",
    "in_front_of",
    "small_study",
]
