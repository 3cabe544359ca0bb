"""`resnet-export parity --html`: what is wrong is found before the work, and what is asked for is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_export.calibration.observe.table import encode_table
from resnet_export.exporter.cli import cli
from tests.parity_bundle import write
from tests.parity_page import archive, damaged_bundle, table, with_file
from tests.tiny_bundle import FP32


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["parity", *map(str, arguments)], prog_name="resnet-export")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_one_sentence_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run(tmp_path, "--html", tmp_path / "page.html")
    assert result.exit_code == 2
    assert f"needs {package}, which is not installed; pip install 'resnet-export[report]'" in result.output


@pytest.mark.usefixtures("no_work")
def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    result = run(tmp_path, "--html", tmp_path / "missing" / "page.html")
    assert result.exit_code == 2
    assert "cannot be written: the folder" in result.output


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["calibration.json", "report.json"])
@pytest.mark.parametrize("damage", [_cut, Path.unlink], ids=["cut short", "missing"])
def test_damage_to_what_the_page_shows_is_found_before_the_work(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    bundle = write(tmp_path / "bundle", [FP32])
    for file, data in (("calibration.json", encode_table(table())), ("report.json", b'{"schema": 99}')):
        with_file(bundle, file, data)
    damage(bundle / name)
    result = run(bundle, "--json", tmp_path / "r.json", "--html", tmp_path / "page.html")
    assert result.exit_code == 2
    assert f"Error: '{name}' of the bundle" in result.stderr
    assert "export the bundle again" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.usefixtures("no_work")
def test_a_calibration_that_is_none_is_found_before_the_work(tmp_path: Path) -> None:
    bundle = with_file(write(tmp_path / "bundle", [FP32]), "calibration.json", b"{}")
    result = run(bundle, "--html", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "'calibration.json' of the bundle" in result.stderr
    assert "not a calibration table" in result.stderr


def test_the_page_is_written_and_the_exit_code_stays_the_verdicts(tmp_path: Path) -> None:
    data = archive(tmp_path, 40)
    for bundle, code, word in (
        (write(tmp_path / "clean"), 0, "Passed"),
        (damaged_bundle(tmp_path / "damaged"), 1, "Failed"),
    ):
        page = tmp_path / "page.html"
        result = run(
            bundle, "--backend", "onnxruntime", "--data", data, "--no-layers", "--quiet", "--html", page
        )
        assert result.exit_code == code, result.output
        text = page.read_text(encoding="utf-8")
        assert f"<title>{word}: parity of tiny</title>" in text
        assert "data:image/jpeg;base64," in text or code == 0
