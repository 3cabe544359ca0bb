"""Checkpoints under unusual names and in unusual parts: what comes out computes what they computed."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from resnet_export.exporter.models.key_report import recognize
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.resnet import build, construct
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.errors import CheckpointError
from tests.exported import seeded_resnet18

State = dict[str, Tensor]
CHILDREN = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
KERAS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def children(backbone: str, head: str) -> Callable[[State], State]:
    """The names of `Sequential(*network.children())`, the classifier apart."""

    def rename(state: State) -> State:
        renamed = {}
        for key, tensor in state.items():
            first, _, rest = key.partition(".")
            renamed[f"{head}{rest}" if first == "fc" else f"{backbone}{CHILDREN.index(first)}.{rest}"] = (
                tensor
            )
        return renamed

    return rename


def detectron(state: State) -> State:
    renamed = {}
    for key, tensor in state.items():
        parts, leaf = key.split("."), key.rpartition(".")[2]
        norm = "norm." if "bn" in key or "downsample.1" in key else ""
        if parts[0] in ("conv1", "bn1"):
            name = f"stem.conv1.{norm}{leaf}"
        elif parts[0] == "fc":
            name = f"linear.{leaf}"
        else:
            part = "shortcut" if parts[2] == "downsample" else f"conv{parts[2][-1]}"
            name = f"res{int(parts[0][-1]) + 1}.{parts[1]}.{part}.{norm}{leaf}"
        renamed[f"backbone.bottom_up.{name}"] = tensor
    return renamed


def keras(state: State) -> State:
    renamed = {}
    for key, tensor in state.items():
        parts, leaf = key.split("."), key.rpartition(".")[2]
        norm = "bn" in key or "downsample.1" in key
        ending = (
            f"{KERAS[leaf] if norm else 'kernel' if leaf == 'weight' else leaf}:0" if leaf in KERAS else ""
        )
        if not ending:
            continue  # the step counter
        if parts[0] in ("conv1", "bn1"):
            name = f"conv1_{parts[0][:-1]}/{ending}"
        elif parts[0] == "fc":
            name = f"predictions/{ending}"
        else:
            number = 0 if parts[2] == "downsample" else parts[2][-1]
            kind = "bn" if norm else "conv"
            name = f"conv{int(parts[0][-1]) + 1}_block{int(parts[1]) + 1}_{number}_{kind}/{ending}"
        renamed[name] = (
            tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
        )
    return renamed


def folded(state: State) -> State:
    """Every BatchNorm in the convolution before it."""
    result = {key: tensor for key, tensor in state.items() if key.startswith("fc.")}
    for key, weight in state.items():
        if weight.ndim == 4:
            conv = key.removesuffix(".weight")
            norm = conv[:-1] + "1" if conv.endswith("downsample.0") else re.sub(r"conv(\d)$", r"bn\1", conv)
            scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
            result[key] = weight * scale[:, None, None, None]
            result[f"{conv}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return result


def same(state: State, network: nn.Module, folder: Path, row: str = "resnet18") -> tuple[str, ...]:
    """Assert that a file of `state` loads as what `network` computes; return the notices."""
    torch.save(state, folder / "t.pth")
    net = load_classifier(ModelSpec(weights=str(folder / "t.pth"), image_size=32))
    assert net.info.arch == row
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(
            net.module(image),
            network.eval()(image),
            rtol=1e-4,
            atol=1e-4,  # type: ignore[operator]
        )
    return net.notices


def seeded_v1() -> nn.Module:
    network = build(ZOO["resnet50_v1"], 4)
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.5)
    return network


@pytest.mark.parametrize(
    "rename",
    [
        children("0.", "1."),
        children("0.", "2."),
        children("backbone.", "head.1."),
        children("features.", "classifier."),
        children("module.model.0.", "module.model.1."),
        folded,
    ],
    ids=["in a Sequential", "with a Flatten", "backbone", "features", "lists", "folded"],
)
def test_a_resnet18_under_other_names(tmp_path: Path, rename: Callable[[State], State]) -> None:
    network = seeded_resnet18()
    same(rename(network.state_dict()), network, tmp_path)


@pytest.mark.parametrize("rename", [detectron, keras], ids=["Detectron2", "Keras"])
def test_ports_of_networks_with_the_stride_in_the_first_convolution(
    tmp_path: Path, rename: Callable[[State], State]
) -> None:
    network = seeded_v1()
    notices = same(rename(network.state_dict()), network, tmp_path, "resnet50_v1")
    assert any("the stride is assumed to be in the first 1×1" in notice for notice in notices)


def test_a_wide_resnet_of_cifar_is_recognized() -> None:
    network = construct(ZOO["wide_resnet28_10"], 10, 3)
    shapes = {}
    for key, tensor in network.state_dict().items():
        name = re.sub(
            r"stages\.(\d)\.blocks\.", lambda match: f"block{int(match[1]) + 1}.layer.", key
        ).replace("downsample.conv", "convShortcut")
        name = re.sub(r"\.norm(\d)\.", r".bn\1.", name)
        name = name.replace("stem.conv.", "conv1.").replace("head.fc.", "fc.")
        name = f"bn1.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        shapes[name] = tuple(tensor.shape)[: 2 if name == "fc.weight" else None]
    assert recognize(shapes, path="w.pth").row.name == "wide_resnet28_10"


def pruned(network: nn.Module) -> None:
    prune.ln_structured(network.layer2[0].conv1, "weight", 0.3, 2, 0)  # type: ignore[index, union-attr]
    prune.random_unstructured(network.fc, "bias", 0.3)  # type: ignore[arg-type]


def weight_normed(axis: int | None) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(network.layer1[0].conv1, dim=axis)  # type: ignore[index, union-attr]
        network.layer1[0].conv1.weight_g.data *= 0.5  # type: ignore[index, union-attr]

    return change


def weight_parametrized(axis: int) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        parametrizations.weight_norm(network.layer1[0].conv1, dim=axis)  # type: ignore[index, union-attr]
        parametrizations.weight_norm(network.fc)  # type: ignore[arg-type]

    return change


def spectral_normed(network: nn.Module) -> None:
    nn.utils.spectral_norm(network.layer1[0].conv1)  # type: ignore[index, union-attr]
    network.train()(torch.randn(2, 3, 32, 32))


def spectral_parametrized(network: nn.Module) -> None:
    parametrizations.spectral_norm(network.layer1[0].conv1)  # type: ignore[index, union-attr]
    network.train()(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (pruned, "pruning"),
        (weight_normed(0), "weight normalization"),
        (weight_normed(1), "weight normalization"),
        (weight_normed(None), "weight normalization"),
        (weight_parametrized(0), "weight normalization"),
        (weight_parametrized(2), "weight normalization"),
        (spectral_normed, "spectral normalization"),
        (spectral_parametrized, "spectral normalization"),
    ],
)
def test_weights_in_parts_are_put_together_as_they_compute(
    tmp_path: Path, change: Callable[[nn.Module], None], kind: str
) -> None:
    network = copy.deepcopy(seeded_resnet18())
    change(network)
    notices = same(network.state_dict(), network, tmp_path)
    assert any(f"from the parts that {kind} stores" in notice for notice in notices)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("layer1.0.conv1.weight_fake_quant.scale", "quantization-aware training"),
        ("layer1.0.conv1.gain", r"1 unexpected \(layer1\.0\.conv1\.gain\)"),
        ("layer1.0.conv1.lora_A", "the tensors of an adapter"),
    ],
)
def test_what_computes_something_else_is_named(tmp_path: Path, key: str, words: str) -> None:
    torch.save(seeded_resnet18().state_dict() | {key: torch.ones(64, 1, 1, 1)}, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=words):
        load_classifier(ModelSpec(weights=str(tmp_path / "t.pth"), image_size=32))


@pytest.mark.parametrize("name", [b"caf\xe9.pth", "日本.pth".encode(), b"a \xff b.pth"])
def test_names_of_files_and_folders_are_bytes(tmp_path: Path, name: bytes) -> None:
    network = seeded_resnet18()
    folder = tmp_path / os.fsdecode(b"f\xe9" + name)
    folder.mkdir()
    same(network.state_dict(), network, folder)
    (folder / "t.pth").rename(folder / "pytorch_model.bin")
    assert load_classifier(ModelSpec(weights=str(folder), image_size=32)).info.weights.name.isprintable()
