"""`--quiet` drops progress and tables, and never a verdict that failed or a caveat."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from resnet_export.exporter.cli import cli
from tests import parity_bundle, tiny_bundle
from tests.tiny_bundle import FP16, FP32


def test_a_pass_is_silent(tmp_path: Path) -> None:
    bundle = parity_bundle.write(tmp_path / "bundle", [FP32])
    result = CliRunner().invoke(cli, ["parity", str(bundle), "--quiet"])
    assert (result.exit_code, result.output) == (0, "")


def test_a_failure_says_its_sentence_on_standard_error(tmp_path: Path) -> None:
    bundle = parity_bundle.write(tmp_path / "bundle", [FP32, FP16], graphs={"fp16": tiny_bundle.graph(FP16)})
    result = CliRunner().invoke(cli, ["parity", str(bundle), "--quiet"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("FAILED: ")
    assert len(result.stderr.splitlines()) == 1
