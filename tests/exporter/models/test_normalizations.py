"""Networks of a library without weights: known as untrained, with activations that mean something."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import nn

from resnet_export.exporter.models.normalizations import initialize_normalizations
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.sources import load_other
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import WeightsInfo
from resnet_export.runtime.preprocess import normalize


def test_every_normalization_has_the_statistics_of_what_reaches_it_and_a_shift_and_nothing_else_changes() -> (
    None
):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    ).eval()
    before = {name: value.clone() for name, value in network.named_parameters()}
    images = torch.randn(6, 3, 12, 12) * 3 + 1
    initialize_normalizations(network, images)
    for name, value in network.named_parameters():
        assert torch.equal(
            value, torch.full((len(value),), 0.5) if name in ("1.bias", "4.bias") else before[name]
        )
    assert not any(module.training for module in network.modules())
    assert [network[1].momentum, network[4].momentum] == [0.3, 0.1]
    with torch.inference_mode():
        for depth in (2, 5):
            found = network[:depth](images)
            torch.testing.assert_close(
                found.mean((0, 2, 3)), torch.full((found.shape[1],), 0.5), atol=1e-3, rtol=0
            )
            torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(found.shape[1]), atol=1e-2, rtol=0)


def test_a_librarys_network_without_weights_is_untrained_and_the_seeds(timm: ModuleType) -> None:
    spec = ModelSpec(arch="timm:mobilenetv3_small_050", image_size=64, num_classes=10, seed=3)
    one, same, other = (
        load_other(spec),
        load_other(spec),
        load_other(ModelSpec(arch=spec.arch, image_size=64)),
    )
    assert one.info.weights == WeightsInfo(source="untrained", name="untrained", seed=3)
    assert one.info.arch == spec.arch
    assert "is untrained (seed 3)" in one.notices[0]
    assert other.info.weights.seed == 0
    for key, value in one.module.state_dict().items():
        assert torch.equal(value, same.module.state_dict()[key]), key


def test_the_logits_of_an_untrained_network_tell_images_apart(timm: ModuleType) -> None:
    net = load_other(ModelSpec(arch="timm:mobilenetv3_small_050", image_size=64))
    images = torch.from_numpy(normalize(photographs(64), net.preprocessing))
    with torch.inference_mode():
        logits = net.module(images).numpy()
        fresh = timm.create_model("mobilenetv3_small_050").eval()(images).numpy()
    assert np.std(logits, axis=0).mean() > 10 * np.std(fresh, axis=0).mean()
