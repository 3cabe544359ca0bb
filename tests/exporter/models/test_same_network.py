"""One ResNet-18 in every form that a network can be given in: the same logits, one golden set."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from resnet_export.exporter import ExportSpec, export
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.preprocess import normalize
from tests.exported import CLASSES, SIZE, seeded_resnet18
from tests.natural_crops import natural_crops

FACTORY = f"""
import torch, torchvision

def make(path):
    net = torchvision.models.resnet18(num_classes={CLASSES})
    net.load_state_dict(torch.load(path))
    return net
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, torchvision: ModuleType) -> Path:
    """The network as a checkpoint, as a folder of the hub, as a program, as an ONNX file, and a factory of it."""
    path = tmp_path_factory.mktemp("same")
    net = seeded_resnet18().eval()
    torch.save(net.state_dict(), path / "net.pth")
    (path / "hub").mkdir()
    save_file(net.state_dict(), path / "hub" / "model.safetensors")
    (path / "hub" / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "num_classes": CLASSES})
    )
    batch = torch.export.Dim("N", min=1)
    example = (torch.zeros(2, 3, SIZE, SIZE),)
    torch.export.save(torch.export.export(net, example, dynamic_shapes=({0: batch},)), path / "net.pt2")
    axes = {"images": {0: "batch"}, "scores": {0: "batch"}}
    names = {"input_names": ["images"], "output_names": ["scores"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the TorchScript exporter, on itself
        torch.onnx.export(net, example, str(path / "net.onnx"), dynamo=False, opset_version=13, **names)
    (path / "factory_of_the_same.py").write_text(FACTORY)
    return path


SOURCES: dict[str, Callable[[Path], ModelSpec]] = {
    "checkpoint": lambda path: ModelSpec(weights=str(path / "net.pth"), image_size=SIZE),
    "timm": lambda path: ModelSpec(arch="timm:resnet18", weights=str(path / "net.pth"), image_size=SIZE),
    "torchvision": lambda path: ModelSpec(
        arch="torchvision:resnet18", weights=str(path / "net.pth"), image_size=SIZE
    ),
    "hub folder": lambda path: ModelSpec(weights=str(path / "hub"), image_size=SIZE),
    "factory": lambda path: ModelSpec(
        model="factory_of_the_same:make", model_arg=(f"path={path / 'net.pth'}",), image_size=SIZE
    ),
    "pt2": lambda path: ModelSpec(model=str(path / "net.pt2")),
    "onnx": lambda path: ModelSpec(model=str(path / "net.onnx")),
    "module": lambda _: ModelSpec(module=seeded_resnet18(), image_size=SIZE),
}
TORCH = [name for name in SOURCES if name != "onnx"]


def logits(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "factory_of_the_same", raising=False)
    net = load_classifier(SOURCES[source](folder))
    assert (net.preprocessing.crop, net.info.num_classes) == (SIZE, CLASSES)
    images = normalize(
        natural_crops(4, SIZE, seed=1), load_classifier(SOURCES["module"](folder)).preprocessing
    )
    return record_reference(net.module, images).logits


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_has_the_same_logits(
    timm: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    expected = logits("module", folder, monkeypatch)
    found = logits(source, folder, monkeypatch)
    if source in TORCH:
        assert np.array_equal(found, expected)
    else:  # ONNX Runtime adds in another order
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_every_form_is_exported_to_one_golden_set(
    timm: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    spec = ExportSpec(engine="none", batch=BatchRange(min=1, opt=2, max=4))
    golden = {}
    for name, make in SOURCES.items():
        # torchvision and timm say how their weights were evaluated; here all are to be given the same images.
        model = make(folder)
        asked = {"resize": SIZE, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}
        result = export(ModelSpec(**vars(model) | asked), spec, tmp_path / name)
        assert result.report.exit_code == 0, result.report.verdict.sentence
        golden[name] = read_golden(tmp_path / name)
    first = golden["module"]
    for one in golden.values():
        assert np.array_equal(one.images, first.images)
        for stage in (EAGER, "fp32"):
            difference = np.abs(one.logits[stage] - first.logits[stage]).max()
            assert difference <= 1e-5 * np.abs(first.logits[stage]).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile, on torch.jit
def test_a_training_loop_and_wrappers_are_the_network_in_them() -> None:
    class Lightning(nn.Module):
        """As pytorch_lightning.LightningModule: a forward that calls the network, a trainer, metrics, losses."""

        def __init__(self) -> None:
            super().__init__()
            self.net = seeded_resnet18()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))

        @property
        def trainer(self) -> None:
            raise RuntimeError("Lightning is not attached to a `Trainer`.")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    images = torch.from_numpy(natural_crops(2, SIZE, seed=1).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    expected = record_reference(seeded_resnet18().eval(), images.numpy()).logits
    for module in (Lightning(), nn.DataParallel(seeded_resnet18()), torch.compile(seeded_resnet18())):
        net = load_classifier(ModelSpec(module=module, image_size=SIZE))
        assert np.array_equal(record_reference(net.module, images.numpy()).logits, expected)
        assert net.info.arch in ("lightning", "resnet")


def test_a_network_under_weight_normalization_is_copied_as_it_computes() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
    module = nn.Sequential(
        conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.utils.spectral_norm(nn.Linear(8, 4))
    )
    images = torch.randn(2, 3, 32, 32)
    module(images).sum().backward()
    with torch.no_grad():
        expected = module.eval()(images).numpy()
    net = load_classifier(ModelSpec(module=module, image_size=32))
    np.testing.assert_allclose(record_reference(net.module, images.numpy()).logits, expected, rtol=1e-5)
