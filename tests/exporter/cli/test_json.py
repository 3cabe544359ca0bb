"""Every command prints JSON on standard output when `--json` asks for it, and nothing else there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli import cli
from resnet_export.exporter.cli.group import COMMANDS
from tests import parity_bundle
from tests.tiny_bundle import FP32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    parity_bundle.write(folder / "bundle", [FP32], trained=True)
    np.savez(folder / "images.npz", images=parity_bundle.crops(8))
    return folder


def printed(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_parity_prints_its_report_or_writes_it(folder: Path) -> None:
    report = printed("parity", folder / "bundle", "--json")
    file = folder / "report.json"
    result = CliRunner().invoke(cli, ["parity", str(folder / "bundle"), "--json", str(file)])
    assert result.exit_code == 0
    written = json.loads(file.read_text())
    assert {key: written[key] for key in written if key != "times"} == {
        key: report[key] for key in report if key != "times"
    }


def test_calibrate_prints_what_it_wrote(folder: Path) -> None:
    out = folder / "table.json"
    found = printed(
        "calibrate", folder / "bundle", "--calib", folder / "images.npz", "--out", out, "--json", "--quiet"
    )
    assert (found["table"], found["images"], found["method"]) == (str(out), 8, "mse")
    assert out.exists()


def test_relabel_prints_the_new_names(folder: Path) -> None:
    bundle = Path(shutil.copytree(folder / "bundle", folder / "copy"))
    names = [f"name {index}" for index in range(5)]
    (folder / "labels.txt").write_text("\n".join(names))
    assert printed("relabel", bundle, "--labels", folder / "labels.txt", "--json")["labels"] == names


def test_constraints_are_those_of_the_repository() -> None:
    file = Path(__file__).parents[3] / "constraints.txt"
    assert CliRunner().invoke(cli, ["constraints"]).stdout == file.read_text()
    pinned = printed("constraints", "--json")
    assert pinned["torch"] == "2.13.0"
    assert all(pinned.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_option(command: str) -> None:
    help_text = CliRunner().invoke(cli, [command, "--help"]).output
    assert "--json" in help_text
