"""The export's options are the fields of its specs: spelled once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli import cli
from resnet_export.exporter.cli import export as export_command
from resnet_export.exporter.cli.export_options import specs
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.precision import PRECISIONS, Precision


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ModelSpec, ExportSpec]]:
    """The specs that commands came to, which then do nothing."""
    seen: list[tuple[ModelSpec, ExportSpec]] = []

    def run(*, out: Path | None, dry_run: bool, as_json: bool, quiet: bool, **options: object) -> None:
        seen.append(specs(options))

    monkeypatch.setattr(export_command, "run", run)
    return seen


def test_every_field_of_a_spec_has_an_option_and_the_defaults_are_the_fields(
    asked: list[tuple[ModelSpec, ExportSpec]],
) -> None:
    names = {option.name for option in cli.params}
    for spec in (ModelSpec, ExportSpec):
        assert {field.name for field in fields(spec)} - {"module"} <= names
    result = CliRunner().invoke(cli, ["--depth", "18"])
    assert result.exit_code == 0, result.output
    assert asked == [(ModelSpec(depth=18), ExportSpec())]


def test_options_arrive_as_their_fields(asked: list[tuple[ModelSpec, ExportSpec]]) -> None:
    given = "--depth 50 --batch 1,2,4 --int8 --no-equalize --exclude conv1,fc --gpu sm86,sm89 --input uint8 --seed 3"
    result = CliRunner().invoke(cli, [*given.split(), "-o", "here"])
    assert result.exit_code == 0, result.output
    batch = BatchRange(min=1, opt=2, max=4)
    assert asked == [
        (
            ModelSpec(depth=50, seed=3),
            ExportSpec(
                int8=True,
                batch=batch,
                equalize=False,
                exclude=("conv1", "fc"),
                gpu=("sm86", "sm89"),
                input="uint8",
            ),
        )
    ]


@pytest.mark.parametrize("precision", [p for p in Precision if p in {f.name for f in fields(ExportSpec)}])
def test_every_precision_of_the_spec_has_its_flag(
    asked: list[tuple[ModelSpec, ExportSpec]], precision: Precision
) -> None:
    result = CliRunner().invoke(cli, ["--depth", "18", f"--{precision}"])
    assert result.exit_code == 0, result.output
    assert asked[0][1].lowered == (precision,)
    assert f"Add the {precision} artifact" in CliRunner().invoke(cli, ["--help"]).output
    assert precision in PRECISIONS


def test_an_option_of_the_export_before_a_command_is_named_as_it_is_spelled() -> None:
    result = CliRunner().invoke(cli, ["--json", "models"])
    assert result.exit_code == 2
    assert "--json is an option of the export" in result.output
