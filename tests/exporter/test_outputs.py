"""Outputs besides the logits, from the command line to a session on every backend of a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.cli import cli
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.photographs import photographs
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.preprocess import normalize, to_input

NAMES = ["logits", "embedding", "c2", "probabilities"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=photographs((32, 32), 3)[:16])
    return path


@pytest.mark.parametrize("kind", ["float32", pytest.param("uint8", marks=pytest.mark.slow)])
def test_every_artifact_of_an_export_has_the_outputs_that_were_asked_for(
    tmp_path: Path, images: Path, kind: str
) -> None:
    spec = ExportSpec(
        fp16=True,
        bf16=True,
        int8=True,
        input=kind,  # type: ignore[arg-type]
        calib=images,
        embedding=True,
        features=True,
        softmax=True,
        engine="none",
    )
    made = export(ModelSpec(arch="resnet20"), spec, tmp_path / "bundle")
    assert made.report.exit_code == 0
    manifest = made.bundle.manifest
    assert [output.name for output in manifest.outputs] == NAMES
    assert [output.shape for output in manifest.outputs] == [("N", 10), ("N", 64), ("N", 64, 8, 8), ("N", 10)]
    for entry in made.report.entries:
        assert [output.name for output in entry.outputs] == sorted(NAMES[1:], key=["c2", *NAMES].index)
        assert all(output.figures.relative_error is not None for output in entry.outputs)
    golden = read_golden(made.bundle.path)
    network = load_classifier(ModelSpec(arch="resnet20")).module
    floats = torch.from_numpy(normalize(golden.images, manifest.preprocessing))
    seen: dict[str, torch.Tensor] = {}
    network.fc.register_forward_hook(lambda _, given, made: seen.update(embedding=given[0], logits=made))
    network.layer3.register_forward_hook(lambda _, given, made: seen.update(c2=made))
    with torch.no_grad():
        network(floats)
    seen["probabilities"] = torch.softmax(seen["logits"], 1)
    for name, values in golden.outputs.items():
        np.testing.assert_allclose(values, seen[name].numpy()[: len(values)], rtol=1e-3, atol=1e-4)
    batch = to_input(golden.images[:5], manifest.preprocessing)
    for artifact in manifest.artifacts:
        with open_session(made.bundle.path, artifact=artifact.name) as session:
            found = session.run_outputs(batch)
            assert list(found) == NAMES
            np.testing.assert_array_equal(found["logits"], session.run(batch))
            np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-3)
    shown = CliRunner().invoke(cli, ["inspect", str(made.bundle.path)]).output
    assert "output  embedding float32 [N, 64] NC" in shown
    assert "output  c2 float32 [N, 64, 8, 8] NCHW" in shown


def flat() -> torch.nn.Module:
    """A factory of a network with one size of maps."""
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 3))


def test_features_of_a_network_that_has_none_are_refused_in_one_sentence(tmp_path: Path) -> None:
    given = ["--model", "tests.exporter.test_outputs:flat", "--image-size", "32", "--features"]
    done = CliRunner().invoke(cli, [*given, "--engine", "none", "-o", str(tmp_path / "bundle")])
    assert done.exit_code == 2
    assert "the network has no pyramid of stage maps" in done.output
    assert not (tmp_path / "bundle").exists()
