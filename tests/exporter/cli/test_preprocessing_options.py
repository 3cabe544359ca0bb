"""The options that say how an image becomes input, from the command line to what the bundle does."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.cli import cli
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import Preprocessing, read_manifest
from resnet_export.runtime.preprocess import load

EXPORT = ("--depth", "18", "--num-classes", "3", "--image-size", "40", "--engine", "none")
ASKED = ("--resize", "40", "--interpolation", "bicubic", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.5")
EXPECTED = Preprocessing(
    resize=40, crop=40, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)
)
WORDS = "shorter side to 40 (bicubic), central 40 × 40, mean 0.5,0.4,0.3, std 0.2,0.25,0.5"


def run(*arguments: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network for both kinds of input."""
    folder = tmp_path_factory.mktemp("asked")
    for kind in ("float32", "uint8"):
        result = run(*EXPORT, *ASKED, "--input", kind, "--out", folder / kind)
        assert result.exit_code == 0, result.output
    return folder


def test_the_options_are_in_the_manifest_and_on_the_screen(bundles: Path) -> None:
    assert read_manifest(bundles / "float32").preprocessing == EXPECTED
    assert f"images  {WORDS}, normalized before the graph" in run("inspect", bundles / "float32").output
    assert f"images  {WORDS}, normalized in the graph" in run("inspect", bundles / "uint8").output


def test_a_dry_run_says_what_images_go_through() -> None:
    assert f"preprocessing  {WORDS}\n" in run(*EXPORT, *ASKED, "--dry-run").output
    plan = json.loads(run(*EXPORT, *ASKED, "--dry-run", "--json").output)
    assert plan["preprocessing"] == WORDS


def test_a_picture_of_the_inputs_size_is_taken_whole(bundles: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    preprocessing = read_manifest(bundles / "float32").preprocessing
    assert np.array_equal(load(tmp_path / "whole.png", preprocessing), pixels)


def test_both_kinds_of_input_give_the_same_labels(bundles: Path, photograph_files: list[Path]) -> None:
    first, second = (
        json.loads(run("infer", bundles / kind, *photograph_files, "--json").output)
        for kind in ("float32", "uint8")
    )
    for one, other in zip(first["images"], second["images"], strict=True):
        for a, b in zip(one["predictions"], other["predictions"], strict=True):
            assert a["label"] == b["label"]
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


@pytest.mark.parametrize("spelled", ["40x56", "40,56", "40X56", "40×56", " 40 x 56 "])
def test_oblong_sizes_are_taken_as_people_write_them(spelled: str) -> None:
    plan = json.loads(run(*EXPORT, "--image-size", spelled, "--dry-run", "--json").output)
    assert plan["preprocessing"].startswith("squashed to 40 × 56 (bilinear), central 40 × 56")


@pytest.mark.parametrize(
    ("channels", "sizes", "mode"),
    [
        (1, ("--image-size", "40x57", "--interpolation", "bicubic"), "L"),
        (4, ("--image-size", "33", "--resize", "50x36", "--mean", "0.1,0.2,0.3,0.4"), "RGBA"),
        (3, ("--image-size", "56x40", "--resize", "70", "--interpolation", "lanczos"), "RGB"),
    ],
    ids=["grayscale, oblong", "RGBA, squashed", "RGB, oblong from the shorter side"],
)
def test_other_channels_and_shapes_are_exported_and_run_as_torchvision_prepares_them(
    channels: int,
    sizes: tuple[str, ...],
    mode: str,
    tmp_path: Path,
    photograph_files: list[Path],
    torchvision: ModuleType,
) -> None:
    from torchvision import transforms

    asked = (*EXPORT, "--input-channels", channels, *sizes, "--fp16", "--batch", "1,2,4")
    for kind in ("float32", "uint8"):
        result = run(*asked, "--input", kind, "--out", tmp_path / kind)
        assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "float32")
    steps = manifest.preprocessing
    assert steps.channels == channels
    assert manifest.input.shape == ("N", channels, *steps.size)
    assert read_manifest(tmp_path / "uint8").input.shape == ("N", *steps.size, channels)
    evaluation = transforms.Compose(
        [
            transforms.Resize(steps.resize, transforms.InterpolationMode(steps.interpolation)),
            transforms.CenterCrop(steps.size),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )
    images = [Image.open(photo).convert(mode) for photo in photograph_files]
    inputs = np.stack([evaluation(image).numpy() for image in images])
    session = CpuSession((tmp_path / "float32" / "model.onnx").read_bytes())
    expected = session.run(inputs)[0].argmax(axis=1)
    for kind in ("float32", "uint8"):
        with open_session(tmp_path / kind) as bundle:
            found = [answer[0].index for answer in bundle.classify(photograph_files)]
        assert found == expected.tolist()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--mean", "0.5,0.5", "is not R,G,B"),
        ("--mean", "0.5,0.5,0.5,0.5,0.5", "is not R,G,B"),
        ("--image-size", "1x2x3", "is not PX or HxW"),
        ("--image-size", "wide", "is not PX or HxW"),
        ("--image-size", "64x16", "has a side below 32"),
        ("--resize", "40x30", "give --resize 40x40 or more"),
        ("--input-channels", "2", "is not one of '1', '3', '4'"),
        ("--mean", "124,116,104", "divide yours by 255"),
        ("--std", "0,0.2,0.2", "above 0"),
        ("--resize", "30", "give --resize 40 or more"),
    ],
)
def test_values_that_cannot_be_are_refused_in_a_sentence(option: str, value: str, expected: str) -> None:
    result = run(*EXPORT, option, value, "--dry-run")
    assert result.exit_code == 2
    assert expected in result.stderr
