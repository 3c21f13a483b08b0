"""The file of the configuration: where it is looked for, and how it is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy.config.errors import ConfigError
from proxy.config.reading import find_config, load_config
from tests.proxy.configs import load, reason_of


class TestFindingTheFile:
    NAMES = ("config.json", "config.jsonc", "config/config.json", "config/config.jsonc")

    @pytest.fixture
    def places(self, tmp_path: Path) -> list[Path]:
        places = [tmp_path / base / name for base in ("cwd", "install") for name in self.NAMES]
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("{}")
        return places

    def test_places_are_tried_in_the_published_order(self, tmp_path: Path, places: list[Path]) -> None:
        for place in places:
            assert find_config(None, cwd=tmp_path / "cwd", install_dir=tmp_path / "install") == place
            place.unlink()
        with pytest.raises(ConfigError) as caught:
            find_config(None, cwd=tmp_path / "cwd", install_dir=tmp_path / "install")
        assert str(caught.value).splitlines() == [
            "configuration: no configuration file found; searched:",
            *(f"  {place}" for place in places),
        ]

    def test_path_of_the_command_line_counts_alone(self, tmp_path: Path, places: list[Path]) -> None:
        own = tmp_path / "own.json5"
        own.write_text("{}")
        assert find_config(own, cwd=tmp_path / "cwd", install_dir=tmp_path / "install") == own
        assert find_config(Path("../own.json5"), cwd=tmp_path / "cwd").samefile(own)
        missing = tmp_path / "missing.json"
        with pytest.raises(ConfigError) as caught:
            find_config(missing, cwd=tmp_path / "cwd", install_dir=tmp_path / "install")
        assert caught.value.path == missing
        assert str(places[0]) not in str(caught.value)

    def test_directory_of_that_name_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").mkdir()
        (tmp_path / "config.jsonc").write_text("{}")
        assert find_config(None, cwd=tmp_path, install_dir=tmp_path) == tmp_path / "config.jsonc"

    def test_place_that_cannot_be_looked_at_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"\(File name too long\)"):
            find_config(Path("x" * 300), cwd=tmp_path)


class TestReadingTheFile:
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ('{\n  "proxyMode": "dimse"\n  "useCget": true\n}', "line 3, column 3"),
            ('{\r\n  "proxyMode": "dimse,\r\n}', "line 2, column 23"),
            ('\ufeff{"proxyMode": dimse}', "line 1, column 15"),
            ('{"peers": [1, 2', "line 1, column 16"),
            ("{} /* never closed", "line 1, column 19"),
        ],
    )
    def test_error_of_syntax_gives_line_and_column(self, tmp_path: Path, text: str, where: str) -> None:
        reason = reason_of(tmp_path, text)
        assert reason.startswith(f"is not JSON, JSONC or JSON5 near {where}: ")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "is empty"),
            (" \n", "is empty"),
            ("[1]", "must hold one object in braces { }, not a list"),
            ("null", "must hold one object in braces { }, not null"),
            (b'{\n "logDir": "\xe4"}', "is not UTF-8 text at line 2, column 13"),
            (b"\xef\xbb\xbf\xff", "is not UTF-8 text at line 1, column 1"),
            ("[" * 100_000, "has objects or lists nested too deeply"),
            ("{}" + " " * 1024 * 1024, "is larger than 1048576 bytes, so not a configuration file"),
        ],
        ids=["empty", "blank", "list", "null", "latin-1", "bom", "deep", "large"],
    )
    def test_what_is_no_configuration_is_told(self, tmp_path: Path, text: str | bytes, reason: str) -> None:
        assert reason_of(tmp_path, text) == reason

    def test_number_too_long_to_be_read_is_told(self, tmp_path: Path) -> None:
        assert "near line" in reason_of(tmp_path, '{"webserverPort": ' + "9" * 5000 + "}")

    def test_file_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load_config(tmp_path)

    def test_problems_name_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, '{"proxyMode": "dimse"}')
        assert str(caught.value).startswith(f"{tmp_path / 'config.jsonc'}: 1 problem\n")

    def test_reader_of_json5_is_loaded_only_for_a_file(self) -> None:
        code = "import sys, proxy.config; print('json5' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
