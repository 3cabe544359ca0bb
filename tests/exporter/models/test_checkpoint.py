"""Whole checkpoints: what they are of, what fits, and what is refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from resnet_export.exporter.models import checkpoint, key_report, zoo
from resnet_export.exporter.models.checkpoint import load_weights, read_weights
from resnet_export.exporter.models.resnet import ResNet, build
from resnet_export.exporter.models.zoo import ZOO, PublishedWeights
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.errors import CheckpointError, KeyMismatchError, RequestError

State = dict[str, Tensor]


def _random_state(name: str, num_classes: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = build(ZOO[name], num_classes).state_dict()
    return {
        key: value if value.dtype == torch.int64 else torch.rand(value.shape, generator=generator)
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    """Parameters of a ResNet-18 with 7 classes."""
    return _random_state("resnet18", 7)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], str]:
    def write(value: object) -> str:
        path = tmp_path / "weights.pth"
        torch.save(value, path)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_depth_and_classes_are_inferred(tmp_path: Path, torchvision: ModuleType, name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=3)
    # Expanded from one element, the tensors take no space.
    state = {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in theirs.state_dict().items()
    }
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    checkpoint = load_weights(ModelSpec(weights=str(path)))
    assert checkpoint.architecture is ZOO[name]
    assert checkpoint.num_classes == 3


def test_a_checkpoint_is_loaded_whole(state: State, save: Callable[[object], str]) -> None:
    path = save({"model": {f"module._orig_mod.{key}": value for key, value in state.items()}})
    checkpoint = load_weights(ModelSpec(depth=18, num_classes=7, weights=path))
    assert checkpoint.info.source == "file"
    assert checkpoint.info.name == "weights.pth"
    assert checkpoint.info.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert checkpoint.notices == ()
    network = build(checkpoint.architecture, checkpoint.num_classes)
    network.load_state_dict(checkpoint.state_dict, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


def overwritten(path: Path, state: State) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(100))


def replaced(path: Path, state: State) -> None:
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [overwritten, replaced, lambda path, state: path.unlink()])
def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    state: State,
    save: Callable[[object], str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, State], None],
) -> None:
    path = Path(save(state))

    def read(*args: Any) -> Any:
        found = read_weights(*args)
        change(path, state)
        return found

    monkeypatch.setattr(checkpoint, "read_weights", read)
    with pytest.raises(CheckpointError, match=r"was changed while it was read|No such file"):
        load_weights(ModelSpec(depth=18, weights=str(path)))


def test_what_was_loaded_does_not_change_with_the_file(state: State, save: Callable[[object], str]) -> None:
    path = save(state)
    loaded = load_weights(ModelSpec(depth=18, weights=path))
    Path(path).write_bytes(b"")  # as torch.save begins; pages that are still mapped would end the process
    assert torch.equal(loaded.state_dict["fc.weight"], state["fc.weight"])


def test_safetensors_give_the_same_network(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    checkpoint = load_weights(ModelSpec(weights=str(tmp_path / "weights.safetensors")))
    assert all(torch.equal(value, state[key]) for key, value in checkpoint.state_dict.items())
    assert set(checkpoint.state_dict) == set(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_load_as_float32(
    state: State, save: Callable[[object], str], dtype: torch.dtype
) -> None:
    typed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    checkpoint = load_weights(ModelSpec(weights=save(typed)))
    for key, value in checkpoint.state_dict.items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, typed[key].to(value.dtype))


def test_old_checkpoints_without_step_counters_load(state: State, save: Callable[[object], str]) -> None:
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    checkpoint = load_weights(ModelSpec(weights=save(old)))
    build(checkpoint.architecture, 7).load_state_dict(checkpoint.state_dict, strict=True)


def test_a_wrong_depth_is_refused_naming_both(state: State, save: Callable[[object], str]) -> None:
    with pytest.raises(CheckpointError, match=r"holds resnet18, but resnet50 was asked for"):
        load_weights(ModelSpec(depth=50, weights=save(state)))


def test_a_wrong_number_of_classes_is_refused_naming_both(
    state: State, save: Callable[[object], str]
) -> None:
    with pytest.raises(CheckpointError, match=r"has 7 classes, but 10 were asked for"):
        load_weights(ModelSpec(num_classes=10, weights=save(state)))


def test_every_key_that_differs_is_reported(state: State, save: Callable[[object], str]) -> None:
    broken = dict(state)
    del broken["fc.bias"], broken["layer4.1.bn2.weight"]
    broken["layer4.1.extra.weight"] = torch.ones(1)
    broken["conv1.weight"] = torch.ones(64, 3, 3, 3)
    with pytest.raises(KeyMismatchError) as caught:
        load_weights(ModelSpec(weights=save(broken)))
    error = caught.value
    assert error.missing == ("layer4.1.bn2.weight", "fc.bias")
    assert error.unexpected == ("layer4.1.extra.weight",)
    assert error.mis_shaped == ("conv1.weight is [64, 3, 3, 3], expected [64, 3, 7, 7]",)
    for word in ("2 missing", "1 unexpected", "1 mis-shaped", "fc.bias", "extra.weight", "conv1.weight is"):
        assert word in str(error)


def test_a_backbone_without_a_classifier_is_refused(state: State, save: Callable[[object], str]) -> None:
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    with pytest.raises(KeyMismatchError) as caught:
        load_weights(ModelSpec(weights=save(headless)))
    assert caught.value.missing == ("fc.weight", "fc.bias")


def test_a_long_report_is_shortened_in_the_sentence_and_whole_in_the_error(
    state: State, save: Callable[[object], str]
) -> None:
    renamed = {key.replace("layer4", "last"): value for key, value in state.items()}
    with pytest.raises(KeyMismatchError) as caught:
        load_weights(ModelSpec(depth=18, weights=save(renamed)))
    assert len(caught.value.missing) == sum(
        key.startswith("layer4") and not key.endswith("num_batches_tracked") for key in state
    )
    assert len(str(caught.value)) < 900
    assert "last.0.conv1.weight for layer4.0.conv1.weight" in str(caught.value)


def test_another_kind_of_network_is_refused(torchvision: ModuleType, save: Callable[[object], str]) -> None:
    for other, words in (
        (torchvision.models.squeezenet1_1(weights=None), "is of no known architecture"),
        (
            torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]),
            "basic blocks, 1-1-1-1",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_weights(ModelSpec(weights=save(other.state_dict())))


def test_a_relative_with_the_same_blocks_is_refused_by_its_shapes(
    torchvision: ModuleType, save: Callable[[object], str]
) -> None:
    with torch.device("meta"):
        other = torchvision.models.resnet._resnet(
            torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], None, False, groups=16, width_per_group=4
        )
    state = {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for key, value in other.state_dict().items()
    }
    with pytest.raises(
        KeyMismatchError,
        match=r"does not fit resne.*layer1\.0\.conv2\.weight is \[64, 4, 3, 3\]",
    ):
        load_weights(ModelSpec(weights=save(state)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layer2.0.conv1.weight", float("nan"), "NaN, infinite"),
        ("fc.bias", float("inf"), "NaN, infinite"),
        ("bn1.running_var", -0.5, "negative variances"),
    ],
)
def test_numbers_that_would_poison_the_network_are_refused_by_name(
    state: State, save: Callable[[object], str], key: str, value: float, words: str
) -> None:
    broken = state | {key: state[key].clone()}
    broken[key].view(-1)[3] = value
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights(ModelSpec(weights=save(broken)))
    assert key in str(caught.value)


def test_numbers_beyond_float32_are_refused(state: State, save: Callable[[object], str]) -> None:
    with pytest.raises(CheckpointError, match=r"fc\.bias .*beyond float32"):
        load_weights(
            ModelSpec(weights=save(state | {"fc.bias": torch.full((7,), 1e300, dtype=torch.float64)}))
        )


def test_an_integer_parameter_is_refused(state: State, save: Callable[[object], str]) -> None:
    with pytest.raises(CheckpointError, match=r"fc\.weight .*torch\.int8"):
        load_weights(ModelSpec(weights=save(state | {"fc.weight": torch.ones(7, 512, dtype=torch.int8)})))


def test_asking_for_no_weights_is_a_mistake() -> None:
    with pytest.raises(RequestError, match="no weights were named"):
        load_weights(ModelSpec(depth=18))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a ResNet-18 which the zoo knows as its published weights."""
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(_random_state("resnet18", 1000), cache / "new.pth")
    prefix = hashlib.sha256((cache / "new.pth").read_bytes()).hexdigest()[:8]
    path = (cache / "new.pth").rename(cache / f"resnet18-{prefix}.pth")
    weights = PublishedWeights("IMAGENET1K_V1", path.name, 69.758, 89.078, resize=232)
    resnet18 = dataclasses.replace(ZOO["resnet18"], weights=(weights,))
    for module in (zoo, key_report):
        monkeypatch.setattr(module, "ZOO", MappingProxyType({"resnet18": resnet18}))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return path


def test_published_weights_come_from_the_cache(published: Path) -> None:
    checkpoint = load_weights(ModelSpec(depth=18, weights="imagenet"))
    assert checkpoint.info.source == "torchvision"
    assert checkpoint.info.name == "ResNet18_Weights.IMAGENET1K_V1"
    assert checkpoint.info.sha256 == hashlib.sha256(published.read_bytes()).hexdigest()
    assert checkpoint.published is not None
    assert checkpoint.published.resize == 232
    network: ResNet = build(checkpoint.architecture)
    network.load_state_dict(checkpoint.state_dict, strict=True)


def test_a_cached_file_that_was_changed_is_refused(published: Path) -> None:
    with published.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=rf"{published}.*expected {published.stem[-8:]}.*delete it"):
        load_weights(ModelSpec(depth=18, weights="imagenet"))
