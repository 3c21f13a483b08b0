"""The examples of `dul/README.md`, run as they stand against Orthanc; only addresses and names are put in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus import CT_IMAGE, Corpus
from tests.peers.orthanc import Orthanc
from tests.peers.process import Address, free_port

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "dul" / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def example(name: str, replacements: dict[str, str]) -> str:
    """Return one example as a program, with what the examples before it define, and with constants replaced."""
    program = "\n".join(
        block if f"asyncio.run({name}())" in block else re.sub(r"^asyncio\.run\(.*\n", "", block, flags=re.MULTILINE)
        for block in EXAMPLES
    )
    for constant, value in replacements.items():
        assert constant in program
        program = program.replace(constant, value)
    return program


@pytest.fixture(scope="module")
def archive(orthanc: Orthanc) -> tuple[Orthanc, dict[str, str]]:
    """Orthanc, and what its address and that of our own SCP are in the examples."""
    own = Address("MYSELF", free_port())
    orthanc.know(own)
    return orthanc, {"4242": str(orthanc.address.port), "11112": str(own.port)}


def run(name: str, replacements: dict[str, str]) -> list[str]:
    """Run an example, and return the lines that it printed."""
    command = [sys.executable, "-W", "error", "-c", example(name, replacements)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


Archive = tuple[Orthanc, dict[str, str]]


def test_echo(archive: Archive) -> None:
    assert run("echo", archive[1]) == []


def test_find(archive: Archive, samples: Corpus) -> None:
    lines = run("find", archive[1])
    assert {line.split(" ", 1)[0] for line in lines} == set(samples.study_uids)
    assert {line.split(" ", 1)[1] for line in lines} == {sample.patient_name for sample in samples.samples}


def test_get(archive: Archive, samples: Corpus) -> None:
    wanted = samples.of_patient("LATIN1")
    assert f'"{wanted[0].study_uid}"' in README
    lines = run("get", archive[1])
    assert set(lines) == {f"{each.sop_instance_uid} {each.transfer_syntax_uid} {each.size}" for each in wanted}


def test_move(archive: Archive, samples: Corpus) -> None:
    wanted = samples.of_patient("LATIN1")
    lines = run("move", archive[1])
    assert {f"{each.sop_instance_uid} {each.size}" for each in wanted} <= set(lines)
    assert lines[-1].split()[0] == str(len(wanted))


def test_store(archive: Archive, samples: Corpus) -> None:
    sample = next(each for each in samples.samples if each.sop_class_uid == CT_IMAGE)
    lines = run("store", {**archive[1], "image.dcm": str(samples.path(sample))})
    assert lines == ["0x0000 (success)"]
