"""`resnet-export parity`: what is wrong with a request is said in one sentence, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.exporter.cli import cli, parity
from resnet_export.exporter.parity import check as gate
from resnet_export.runtime.parity import ParitySpec
from tests import parity_bundle
from tests.parity_bundle import crops
from tests.tiny_bundle import CLASSES, FP16, FP32

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command on a sound bundle in the current folder."""
    monkeypatch.chdir(tmp_path)
    parity_bundle.write(tmp_path / "bundle", [FP32, FP16], trained=True)
    arguments = ["parity", "bundle", "--backend", "onnxruntime"]
    return lambda *more: CliRunner().invoke(cli, [*arguments, *map(str, more)])


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No artifact may run."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr("resnet_export.runtime.parity.check.check_golden", refuse)


def assert_refused(result: Result, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    for text in expected:
        assert text in errors[0]


def save(path: Path, images: np.ndarray, labels: object = None) -> Path:
    arrays = {"images": images} | ({} if labels is None else {"labels": np.asarray(labels)})
    np.savez(path, **arrays)
    return path


def test_a_sound_bundle_passes(run: Run) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("PASSED: 2 artifact runs")


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--html"])
def test_a_report_that_cannot_be_written_is_found_out_before_anything_runs(run: Run, option: str) -> None:
    assert_refused(run(option, "no/such/folder/report"), "no/such/folder", "create it")
    Path("folder").mkdir()
    assert run(option, "folder").exit_code == 2


@pytest.mark.usefixtures("idle")
def test_an_artifact_a_backend_or_a_layer_that_does_not_exist_is_refused(run: Run) -> None:
    assert_refused(run("--artifact", "fp61"), "fp61", "fp16")
    assert_refused(run("--backend", "onxruntime"), "onxruntime", "onnxruntime")
    assert_refused(run("--layers", "fp61"), "fp61", "fp16")
    assert_refused(run("--layers", "fp32"), "fp32", "name another artifact")


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"fp16": {"centred_cosine": 0.9}}', "centred_cosine"),
        ('{"fp61": {"centered_cosine": 0.9}}', "fp61"),
        ('{"fp16": {"centered_cosine": 2}}', "<= 1"),
        ('{"fp16"', "not understood"),
    ],
)
def test_a_tolerance_file_that_says_something_else_is_refused(run: Run, content: str, said: str) -> None:
    Path("limits.json").write_text(content)
    assert_refused(run("--tolerance", "limits.json"), "limits.json", said)


@pytest.mark.usefixtures("idle")
def test_a_tolerance_file_that_is_missing_is_refused(run: Run) -> None:
    assert_refused(run("--tolerance", "limits.json"), "limits.json", "cannot be read")


@pytest.mark.usefixtures("idle")
def test_data_without_an_image_are_refused(run: Run) -> None:
    Path("empty").mkdir()
    Path("list.txt").write_text("\n")
    for data in ("empty", "list.txt", save(Path("none.npz"), crops(1)[:0])):
        assert_refused(run("--data", data), str(data), "no images")
    assert_refused(run("--data", "nowhere"), "nowhere", "does not exist")


@pytest.mark.usefixtures("idle")
def test_labels_that_are_missing_or_out_of_range_are_refused(run: Run) -> None:
    images = crops(4)
    assert_refused(run("--data", save(Path("a.npz"), images), "--max-drop", 1), "no labels")
    wrong = save(Path("b.npz"), images, [0, 1, 2, CLASSES])
    assert_refused(run("--data", wrong), f"label {CLASSES}", f"0 to {CLASSES - 1}")
    short = save(Path("c.npz"), images, [0, 1])
    assert_refused(run("--data", short), "labels")


@pytest.mark.usefixtures("idle")
def test_class_folders_that_do_not_match_the_labels_are_refused(run: Run) -> None:
    for name in ("cat", "dog"):
        (Path("photos") / name).mkdir(parents=True)
        Image.fromarray(crops(1)[0]).save(Path("photos") / name / "1.png")
    assert_refused(run("--data", "photos"), "2 class folders", f"{CLASSES} classes")


@pytest.mark.usefixtures("idle")
def test_options_that_contradict_each_other_are_refused(run: Run) -> None:
    Path("w.pth").write_bytes(b"")
    assert_refused(run("--weights", "w.pth"), "--reference eager")
    assert_refused(run("--reference", "eager"), "--data")
    assert_refused(run("--layers", "fp16", "--no-layers"), "contradict")
    assert_refused(run("--max-drop", 1), "without data")


def test_every_option_of_the_command_is_in_the_spec_that_reaches_the_check(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the arguments that the spec itself says it was made of."""
    seen: list[ParitySpec] = []
    check = gate.check_parity

    def spy(bundle: Path, spec: ParitySpec, **options: object) -> object:
        seen.append(spec)
        return check(bundle, backends=["onnxruntime"])

    monkeypatch.setattr("resnet_export.exporter.cli.parity.check_parity", spy)
    Path("limits.json").write_text("{}")
    flags = {option.opts[0] for option in parity.command.params if isinstance(option, click.Option)}
    words = (
        "--artifact fp16 --artifact fp32 --backend onnxruntime --data d.npz --reference eager --weights w.pth "
        "--limit 7 --seed 3 --max-drop 0.5 --strict --min-agreement 90 --min-accuracy 80 "
        "--tolerance limits.json --layers fp16"
    )
    given = words.split()
    assert flags - {"--json", "--junit", "--markdown", "--html", "--quiet", "--debug", "--ray"} <= {
        *given,
        "--no-layers",
        "--triton",
    }
    done = run(*given)
    assert done.exit_code == 0, done.output
    assert run("--no-layers").exit_code == 0
    server = ["--triton", "grpc://localhost:8001"]
    assert run(*server).exit_code == 0
    assert [list(spec.arguments()) for spec in seen] == [
        given,
        ["--backend", "onnxruntime", "--no-layers"],
        ["--backend", "onnxruntime", *server],
    ]


def test_the_reports_agree(run: Run) -> None:
    data = save(Path("data.npz"), crops(20, seed=4))
    done = run(
        "--data",
        data,
        "--json",
        "r.json",
        "--markdown",
        "r.md",
        "--junit",
        "r.xml",
        "--layers",
        "all",
        "--quiet",
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    report = json.loads(Path("r.json").read_bytes())
    assert report["asked"]["data"] == "data.npz"
    assert [found["artifact"] for found in report["layerwise"]] == ["fp16"]
    assert report["layerwise"][0]["sentence"] in Path("r.md").read_text().replace("\\", "")
    assert report["verdict"]["sentence"] in Path("r.md").read_text()
