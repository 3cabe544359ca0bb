"""A configuration file asks for what flags ask for, and the one in a bundle asks for that bundle again."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.exporter.cli import cli
from resnet_export.exporter.cli import export as command
from resnet_export.exporter.config import read_config, render_config
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12)
PATHS = NAMES.map(Path)
MODELS = st.builds(
    ModelSpec,
    depth=st.sampled_from([None, 18, 50]),
    model_arg=st.sampled_from([(), ("width=8",), ("sizes=(1, 2)", "name=a,b")]),
    weights=st.none() | NAMES,
    num_classes=st.none() | st.integers(1, 30_000),
    labels=st.none() | PATHS,
    image_size=st.none() | st.integers(32, 640) | st.tuples(st.integers(32, 640), st.integers(32, 640)),
    resize=st.none() | st.integers(32, 640),
    interpolation=st.sampled_from([None, "bicubic"]),
    input_channels=st.sampled_from([None, 1, 3]),
    mean=st.sampled_from([None, (0.5,), (0.1, 0.25, 0.5)]),
    seed=st.integers(0, 9),
)
EXPORTS = st.builds(
    ExportSpec,
    fp16=st.booleans(),
    int8=st.booleans(),
    input=st.sampled_from(["float32", "uint8"]),
    batch=st.sampled_from([BatchRange(), BatchRange(min=1, opt=4, max=16)]),
    calib=st.none() | PATHS,
    val=st.none() | PATHS,
    max_drop=st.none() | st.floats(0, 100),
    exclude=st.sampled_from(["auto", "none", ("layer1.0.conv1", "fc")]),
    equalize=st.booleans(),
    gpu=st.sampled_from([(), ("sm86",), ("sm86", "sm89")]),
)


def requested(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[ModelSpec, ExportSpec]:
    """What the command line makes of its arguments."""
    seen: list[tuple[ModelSpec, ExportSpec]] = []

    def run(**options: Any) -> None:
        seen.append(command.specs(options))

    monkeypatch.setattr(command, "run", run)
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


@given(model=MODELS, spec=EXPORTS)
def test_a_rendered_request_reads_back_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, model: ModelSpec, spec: ExportSpec
) -> None:
    file = tmp_path_factory.getbasetemp() / "export.toml"
    file.write_bytes(render_config(model, spec))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert requested(monkeypatch, "--config", file) == (model, spec)


def test_flags_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "export.toml"
    file.write_text('[model]\ndepth = 18\n[export]\nfp16 = true\nbatch = "1,2,4"\ngpu = ["sm86", "sm89"]\n')
    model, spec = requested(monkeypatch, "--config", file, "--depth", 50)
    assert model.depth == 50
    assert (spec.fp16, spec.batch, spec.gpu) == (True, BatchRange(min=1, opt=2, max=4), ("sm86", "sm89"))


def test_names_may_be_spelled_as_flags_are(tmp_path: Path) -> None:
    file = tmp_path / "export.toml"
    file.write_text("[export]\nmax-drop = 0.5\n")
    assert read_config(file) == {"max_drop": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[export]\ncalb = 'x'\n", "'calb', which is not an option of .export.; did you mean calib"),
        ("[exports]\nfp16 = true\n", "'exports', which is not a table"),
        ("fp16 = true\n", "'fp16', which is not a table"),
        ("[export]\nfp16 = \n", "is not a TOML file"),
        ("[export.fp16]\nx = 1\n", "gives 'fp16' a dict"),
        ("[model]\nmodule = 1\n", "'module', which is not an option"),
    ],
)
def test_what_is_not_known_is_refused_by_name_with_the_nearest(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "export.toml"
    file.write_text(text)
    with pytest.raises(RequestError, match=said):
        read_config(file)
    result = CliRunner().invoke(cli, ["--config", str(file)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "export.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=str(file)):
        read_config(file)


def test_a_value_of_the_wrong_kind_is_named_with_its_option(tmp_path: Path) -> None:
    file = tmp_path / "export.toml"
    file.write_text("[export]\nbatch = 'many'\n")
    result = CliRunner().invoke(cli, ["--config", str(file)])
    assert result.exit_code == 2
    assert "--batch" in result.stderr


def test_another_command_takes_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "export.toml"
    file.write_text("[export]\nfp16 = true\n")
    result = CliRunner().invoke(cli, ["--config", str(file), "models"])
    assert result.exit_code == 2
    assert "no meaning for 'models'" in result.stderr


def test_every_option_of_the_specs_can_be_in_a_file(tmp_path: Path) -> None:
    for table, spec in (("model", ModelSpec), ("export", ExportSpec)):
        for field in dataclasses.fields(spec):
            if field.metadata.get("option", True):
                file = tmp_path / "one.toml"
                file.write_text(f"[{table}]\n{field.name} = 'x'\n")
                repeated = field.metadata.get("repeated", False)
                assert read_config(file) == {field.name: ("x",) if repeated else "x"}


def test_the_nearest_command_is_named() -> None:
    result = CliRunner().invoke(cli, ["inspct"])
    assert result.exit_code == 2
    assert "Did you mean 'inspect'" in result.stderr
