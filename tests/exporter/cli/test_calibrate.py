"""`resnet-export calibrate --merge`: tables of parts of the images become the table of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.methods import METHODS, Method
from resnet_export.calibration.observe.table import encode_table, read_table
from resnet_export.exporter.cli import cli
from tests.residual_net import images, residual_net


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a.json, b.json and c.json, 4 images each, and of other.json, of another network."""
    monkeypatch.chdir(tmp_path)
    x = images(12)
    for at, name in enumerate(("a", "b", "c")):
        part = calibrate(residual_net(), [x[4 * at : 4 * at + 4]], methods=("quantile",))
        Path(f"{name}.json").write_bytes(encode_table(part))
    Path("other.json").write_bytes(encode_table(calibrate(residual_net(seed=1), [x[:4]])))
    return tmp_path


def merge(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["calibrate", "--merge", *arguments])


@pytest.mark.parametrize("order", ["abc", "cab"])
def test_merged_tables_are_byte_for_byte_the_table_of_all_images(tables: Path, order: str) -> None:
    result = merge(*(f"{name}.json" for name in order), "--out", "all.json")
    assert result.exit_code == 0, result.output
    assert "12 images" in result.output
    whole = calibrate(residual_net(), [images(12)], methods=("quantile",))
    assert (tables / "all.json").read_bytes() == encode_table(whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_table_takes_the_method_that_is_asked_for(tables: Path, method: Method) -> None:
    result = merge("a.json", "b.json", "--calib-method", method, "--out", "all.json")
    assert result.exit_code == 0, result.output
    found = read_table(tables / "all.json")
    assert found.method == method
    assert all(method in entry.ranges for entry in found.tensors.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.json"], "give at least two files"),
        (["a.json", "other.json"], "the tables are of different networks"),
        (["a.json", "missing.json"], "missing.json"),
        (["a.json", "b.json", "--calib", "photos"], "--calib has no meaning with --merge"),
        (["a.json", "b.json", "--calib-count", "9"], "--calib-count has no meaning with --merge"),
        (["a.json", "b.json", "--out", "a.json"], "a.json"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    tables: Path, arguments: list[str], said: str
) -> None:
    before = {file.name: file.read_bytes() for file in tables.iterdir()}
    result = merge(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert {file.name: file.read_bytes() for file in tables.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["bundle"], "give --calib"), (["a.json", "b.json", "--calib", "photos"], "added up with --merge")],
)
def test_without_it_one_network_and_images_are_asked_for(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["calibrate", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
