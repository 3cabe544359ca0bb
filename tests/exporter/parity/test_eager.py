"""The eager network as a reference: what it takes and gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from resnet_export.exporter.parity.eager import _runner
from tests.tiny_bundle import FP32, SIDE, artifact, graph, manifest


class Pooled(nn.Module):
    """The mean of each channel as logits, alone or beside an embedding."""

    def __init__(self, *, further: bool) -> None:
        super().__init__()
        self.further = further

    def forward(self, images: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        logits = images.mean(dim=(2, 3))
        return {"logits": logits, "embedding": 2 * logits} if self.further else logits


@pytest.mark.parametrize("further", [False, True])
def test_a_network_with_further_outputs_is_a_reference_by_its_logits(further: bool) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    found = _runner(Pooled(further=further), manifest([artifact(FP32, graph())]))(images)
    np.testing.assert_allclose(found, images.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)
