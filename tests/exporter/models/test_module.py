"""An nn.Module at hand: any classifier of images is exported, whatever it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.models.module import load_module
from resnet_export.exporter.parity.eager import eager_reference
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

SIZE, CLASSES = 32, 7
SPEC = ExportSpec(fp16=True, engine="none", batch=BatchRange(min=1, opt=2, max=4))


class Branches(nn.Module):
    """Nothing of a ResNet: two branches of other kernels, a grouped convolution, a sigmoid gate."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.gate = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(x)
        x = self.grouped(x) * torch.sigmoid(self.gate(x))
        return self.head(self.drop(x.mean((2, 3))))


class Loop(nn.Module):
    """A training loop around a network, as Lightning modules are that define no forward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.loss = nn.CrossEntropyLoss()


def network() -> Branches:
    torch.manual_seed(0)
    return Branches()


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "in a training loop"])
def test_is_exported_checked_and_run(tmp_path: Path, wrapped: bool) -> None:
    net = network()  # in training mode, as after the last epoch
    result = export(
        ModelSpec(module=Loop(net) if wrapped else net, image_size=SIZE), SPEC, tmp_path / "bundle"
    )
    assert result.report.exit_code == 0, result.report.verdict.sentence
    info = result.bundle.manifest.model
    assert (info.arch, info.num_classes, info.weights.source) == ("branches", CLASSES, "module")
    assert net.training  # the module at hand is not touched
    crops = natural_crops(5, SIZE, seed=1)
    inputs = normalize(crops, result.bundle.manifest.preprocessing)
    with torch.inference_mode():
        expected = net.eval()(torch.from_numpy(inputs)).numpy()
    with open_session(tmp_path / "bundle", artifact="fp32") as session:
        np.testing.assert_allclose(session.run(inputs), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(RequestError, match="--reference onnx"):
        eager_reference(tmp_path / "bundle", None)


def test_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = export(network(), ExportSpec(engine="none", batch=BatchRange(min=1, opt=1, max=2)))
    assert result.bundle.path == Path("branches")
    assert result.bundle.manifest.preprocessing.crop == 224


def test_two_modules_with_other_weights_have_other_hashes() -> None:
    first, second = network(), network()
    with torch.no_grad():
        second.head.bias[0] += 1
    hashes = {load_module(ModelSpec(module=one)).info.weights.sha256 for one in (first, network(), second)}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("resnet50", "expected a ModelSpec or an nn.Module"),
        (nn.Conv2d(3, 4, 3), r"expected logits \[N, classes\]"),
        (nn.Conv2d(5, 4, 3), "does not run on images"),
        (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "holds 2 modules"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)), None),
    ],
)
def test_anything_else_is_refused_in_one_sentence(module: object, named: str | None) -> None:
    spec = ModelSpec(module=module, image_size=SIZE)
    if named is None:
        assert load_module(spec).info.num_classes == CLASSES
        return
    with pytest.raises(RequestError, match=named):
        load_module(spec)


def test_a_module_beside_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="names another network"):
        export(ModelSpec(module=network(), depth=18), SPEC, tmp_path / "bundle")
