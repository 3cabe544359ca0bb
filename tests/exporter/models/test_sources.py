"""Networks of libraries, factories and exported programs: what they become, and how wrong ones are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from resnet_export.exporter.models.sources import load_other, resolve
from resnet_export.exporter.request import check_request, folder_name
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.errors import CheckpointError, RequestError

FACTORY = """
from torch import nn

def make(classes=3, bias=True):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes, bias=bias))

def nothing():
    return 5

def broken():
    raise OSError("weights would have to be downloaded")

def leaving():
    raise SystemExit("usage: train.py DATA")

class Models:
    small = staticmethod(make)

constant = 5
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_factory_module.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_factory_module", raising=False)
    return "my_factory_module"


def test_a_factory_makes_the_network_with_its_arguments(factory: str) -> None:
    spec = ModelSpec(model=f"{factory}:make", model_arg=("classes=7", "bias=False"), image_size=64)
    check_request(spec, ExportSpec())
    resolved = resolve(spec)
    assert resolved.module(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert resolved.module[2].bias is None
    assert folder_name(spec) == "make"


def test_a_factory_may_be_an_attribute(factory: str) -> None:
    assert resolve(ModelSpec(model=f"{factory}:Models.small")).module(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_a_module_that_leaves_on_import_is_refused(factory: str, tmp_path: Path) -> None:
    (tmp_path / "leaves_on_import.py").write_text("import sys\nsys.exit('bad usage\\nof it')")
    with pytest.raises(RequestError, match=r"cannot be imported .SystemExit: bad usage\)"):
        resolve(ModelSpec(model="leaves_on_import:make"))


def test_arguments_without_a_factory_are_refused() -> None:
    for model in (ModelSpec(depth=18, model_arg=("a=1",)), ModelSpec(model="a.onnx", model_arg=("a=1",))):
        with pytest.raises(RequestError, match="--model-arg is for a factory"):
            check_request(model, ExportSpec())


def test_a_program_with_another_input_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)), tmp_path / "fixed.pt2")
    with pytest.raises(RequestError, match=r"fixed\.pt2 has a fixed batch of 2"):
        resolve(ModelSpec(model=str(tmp_path / "fixed.pt2")))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.zeros(2, 3, 48, 40),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert load_other(ModelSpec(model=str(tmp_path / "net.pt2"))).preprocessing.size == (48, 40)
    with pytest.raises(RequestError, match=r"takes images of 48 × 40, but another size"):
        resolve(ModelSpec(model=str(tmp_path / "net.pt2"), image_size=64))


@pytest.mark.parametrize(
    ("model", "args", "words"),
    [
        ("no_such_module_of_mine:make", (), "cannot be imported"),
        ("my_factory_module:absent", (), "has no function 'absent'"),
        ("my_factory_module:constant", (), "has no function 'constant'"),
        ("my_factory_module:nothing", (), "returned a int, expected an nn.Module"),
        ("my_factory_module:broken", (), "failed .OSError: weights would have to be downloaded"),
        ("my_factory_module:leaving", (), r"failed .SystemExit: usage: train\.py DATA"),
        ("my_factory_module:make", ("size=3",), "failed .TypeError"),
        ("my_factory_module:make", ("size",), "not key=value"),
        ("my_factory_module", (), "neither MODULE:FACTORY nor"),
        ("none.pt2", (), "no exported program none.pt2"),
    ],
)
def test_a_factory_that_makes_no_network_is_refused_in_one_sentence(
    factory: str, model: str, args: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        resolve(ModelSpec(model=model, model_arg=args))
    assert "\n" not in str(caught.value)


def test_an_exported_program_is_a_network(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    found = resolve(ModelSpec(model=str(tmp_path / "net.pt2"))).module.eval()
    image = torch.ones(3, 3, 8, 8)
    assert torch.equal(found(image), network(image))
    (tmp_path / "broken.pt2").write_bytes(b"PK nothing")
    with pytest.raises(RequestError, match=r"is not a program of torch\.export"):
        resolve(ModelSpec(model=str(tmp_path / "broken.pt2")))


def test_a_network_of_a_library_is_built_with_its_checkpoint(timm: ModuleType, tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    torch.save(
        {"state_dict": {f"net.{key}": value for key, value in theirs.state_dict().items()}},
        tmp_path / "w.pth",
    )
    spec = ModelSpec(arch="timm:mobilenetv3_small_050", weights=str(tmp_path / "w.pth"), num_classes=4)
    found = resolve(spec).module.eval()
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(image), theirs(image))
    with pytest.raises(CheckpointError, match="does not fit timm:mobilenetv3_small_075"):
        resolve(ModelSpec(arch="timm:mobilenetv3_small_075", weights=str(tmp_path / "w.pth")))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm:resnet5000", "the nearest are"),
        ("torchvision:resnet51", "the nearest are"),
        ("keras:resnet50", "no library 'keras'"),
    ],
)
def test_a_network_that_no_library_has_is_refused_with_the_nearest(
    timm: ModuleType, arch: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        resolve(ModelSpec(arch=arch))


def test_a_model_and_another_network_contradict_each_other() -> None:
    with pytest.raises(RequestError, match="--model is a whole network"):
        check_request(ModelSpec(depth=18, model="a:b"), ExportSpec())


def test_a_network_of_a_library_without_weights_is_said_to_be_untrained(timm: ModuleType) -> None:
    net = load_other(ModelSpec(arch="timm:mobilenetv3_small_050", num_classes=4, image_size=64))
    assert net.info.arch == "timm:mobilenetv3_small_050"
    assert net.info.num_classes == 4
    assert "is untrained (seed 0)" in net.notices[0]
