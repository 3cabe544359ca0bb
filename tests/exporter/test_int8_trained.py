"""INT8 of a trained network and of hard-to-quantize ones that compute the same, through the whole export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.cli import cli
from resnet_export.exporter.graph import int8
from resnet_export.exporter.models.resnet import ResNet, build
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest
from resnet_export.runtime.parity.report.schema import decode_report
from resnet_export.runtime.preprocess import to_input
from tests import hard_networks, trained
from tests.digits import CLASSES, SIZE

GRAPHS = ("int8.tensorrt", "int8.cpu")
BACKENDS = ("onnxruntime", "openvino")
_BATCH = 20


@dataclass(frozen=True)
class Lab:
    """A trained ResNet-18, images to calibrate on, and a folder for what is made of them."""

    network: ResNet
    calib: Path
    folder: Path

    def save(self, network: ResNet, name: str) -> Path:
        """Write a checkpoint."""
        path = self.folder / f"{name}.pth"
        torch.save(network.state_dict(), path)
        return path

    def export(self, network: ResNet, name: str) -> Path:
        """Export with everything at its default."""
        out = self.folder / name
        if not out.exists():
            model = ModelSpec(weights=str(self.save(network, name)), image_size=SIZE)
            spec = ExportSpec(
                int8=True, calib=self.calib, engine="none", batch=BatchRange(min=1, opt=8, max=20)
            )
            export(model, spec, out)
        return out


@pytest.fixture(scope="module")
def lab(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The trained network and 128 of the images that it was trained on, with their labels."""
    folder = tmp_path_factory.mktemp("lab")
    network = build(trained.RESNET18, CLASSES)
    network.load_state_dict(torch.load(trained.checkpoint(checkpoints), weights_only=True))
    train = trained.splits()[0]
    np.savez(folder / "calib.npz", images=train.images[-128:], labels=train.labels[-128:])
    return Lab(network, folder / "calib.npz", folder)


def logits(bundle: Path, artifact: str, backend: str = "onnxruntime") -> NDArray[np.float32]:
    """What an artifact makes of the held-out images."""
    images = trained.splits()[1].images
    with open_session(bundle, artifact=artifact, backend=backend) as session:
        x = to_input(images, session.manifest.preprocessing)
        return np.concatenate([session.run(x[at : at + _BATCH]) for at in range(0, len(x), _BATCH)])


def accuracy(found: NDArray[np.float32]) -> float:
    """Top-1 in percent."""
    return 100 * float((found.argmax(axis=1) == trained.splits()[1].labels).mean())


def agreement(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Images with the same first class, in percent."""
    return 100 * float((one.argmax(axis=1) == other.argmax(axis=1)).mean())


def decibels(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    noise = np.square(found.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


def test_the_network_has_learned_to_read(lab: Lab) -> None:
    assert len(trained.splits()[1].labels) >= 1000
    assert accuracy(logits(lab.export(lab.network, "healthy"), "fp32")) >= 97


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_int8_keeps_accuracy_and_predictions(lab: Lab, graph: str, backend: str) -> None:
    bundle = lab.export(lab.network, "healthy")
    reference, found = logits(bundle, "fp32"), logits(bundle, graph, backend)
    assert accuracy(reference) - accuracy(found) <= 0.3
    assert agreement(found, reference) >= 99


@pytest.mark.parametrize("graph", GRAPHS)
def test_badly_scaled_channels_export_as_well_as_the_healthy_network(lab: Lab, graph: str) -> None:
    healthy = lab.export(lab.network, "healthy")
    changed = lab.export(hard_networks.with_badly_scaled_channels(lab.network), "badly-scaled")
    reference = logits(healthy, "fp32")
    first, second = logits(healthy, graph), logits(changed, graph)
    assert agreement(first, second) >= 99
    assert decibels(second, logits(changed, "fp32")) >= decibels(first, reference) - 0.5


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("outliers", hard_networks.with_outliers),
        pytest.param(
            "tails", lambda network: hard_networks.with_hidden_weights(network, 100), marks=pytest.mark.slow
        ),
    ],
)
def test_outlier_channels_and_heavy_tails_cost_no_accuracy(
    lab: Lab, name: str, make: Callable[[ResNet], ResNet]
) -> None:
    bundle = lab.export(make(lab.network), name)
    reference = accuracy(logits(bundle, "fp32"))
    assert reference >= 97
    for graph in GRAPHS:
        assert reference - accuracy(logits(bundle, graph)) <= 0.3


def test_where_nothing_holds_the_exit_code_is_1_and_sensitive_layers_are_named(
    lab: Lab, tmp_path: Path
) -> None:
    network = hard_networks.with_hidden_weights(lab.network, 1000, streams=True)
    given = ["--weights", lab.save(network, "hopeless"), "--image-size", SIZE, "--int8", "--calib", lab.calib]
    options = [*given, "--engine", "none", "--batch", "1,8,20", "--out", tmp_path / "bundle"]
    result = CliRunner().invoke(cli, list(map(str, options)))
    assert result.exit_code == 1, result.output
    artifact = read_manifest(tmp_path / "bundle").artifact("int8.tensorrt")
    assert artifact.refusal is not None
    assert "the most sensitive layers are layer" in artifact.refusal
    assert artifact.refusal in result.output
    assert not any(verdict.passed for verdict in artifact.parity)
    again = CliRunner().invoke(
        cli, ["parity", str(tmp_path / "bundle"), "--artifact", "int8.tensorrt", "--quiet"]
    )
    assert again.exit_code == 1
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    (verdict,) = [one for one in report["int8"]["verdicts"] if one["target"] == "tensorrt"]
    assert len(verdict["most_sensitive"]) >= 2


def test_what_int8_is_made_of_is_not_searched_again_for_another_batch_range(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lab.export(lab.network, "healthy")

    def search(*_: object, **__: object) -> None:
        raise AssertionError("the search began again")

    monkeypatch.setattr(int8, "plan_int8", search)
    model = ModelSpec(weights=str(lab.save(lab.network, "healthy")), image_size=SIZE)
    spec = ExportSpec(
        int8=True, calib=lab.calib, engine="none", batch=BatchRange(min=1, opt=4, max=24), reuse=before
    )
    again = export(model, spec, lab.folder / "again")
    for graph in GRAPHS:
        one, other = (read_manifest(bundle).artifact(graph) for bundle in (before, again.bundle.path))
        assert (one.sha256, one.excluded) == (other.sha256, other.excluded)
    assert again.report.int8 == decode_report((before / "report.json").read_bytes()).int8
    assert again.bundle.manifest.batch.max == 24
    assert again.report.verdict.status == "passed"
    assert any("taken over" in notice for notice in again.bundle.manifest.provenance.notices)
