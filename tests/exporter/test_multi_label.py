"""Heads that decide on each class by itself: sigmoid per class, decisions at 0.5, labels for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.parity.check import check_parity
from resnet_export.runtime import open_session
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.parity.measure.comparison import Tally, compare

FLOATS = st.floats(-20, 20, width=32).filter(lambda value: value != 0)


@settings(deadline=None)
@given(st.data())
def test_agreement_and_accuracy_count_decisions_for_each_class(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(2, 5)))
    b, a = (data.draw(arrays.arrays(np.float32, shape, elements=FLOATS)) for _ in range(2))
    labels = data.draw(arrays.arrays(np.int64, shape, elements=st.integers(0, 1)))
    found = compare(b, a, labels=labels, activation="sigmoid")
    assert found.figures.decided == b.size
    assert found.figures.top1 == int(((b > 0) == (a > 0)).sum())
    assert found.flip_count == int(((b > 0) != (a > 0)).any(axis=1).sum())
    assert found.labeled is not None
    assert found.labeled.reference_accuracy == pytest.approx(((b > 0) == labels).mean())
    assert found.labeled.candidate_accuracy == pytest.approx(((a > 0) == labels).mean())
    p, q = (torch.distributions.Bernoulli(logits=torch.from_numpy(one.astype(np.float64))) for one in (b, a))
    divergence = torch.distributions.kl_divergence(p, q).sum(dim=1).mean()
    assert found.figures.mean_kl == pytest.approx(float(divergence), rel=1e-6, abs=1e-9)
    parts = [
        Tally.of(b[i : i + 1], a[i : i + 1], labels[i : i + 1], activation="sigmoid") for i in range(len(b))
    ]
    joined = sum(parts[1:], parts[0]).comparison()
    assert (joined.figures.top1, joined.figures.decided) == (found.figures.top1, found.figures.decided)
    assert joined.labeled is not None
    assert joined.labeled.paired == found.labeled.paired


@pytest.mark.parametrize("labels", [[1, 0], [[0, 1, 2], [0, 0, 0]], [[0, 1], [1, 0]]])
def test_labels_of_another_form_are_refused(labels: list[object]) -> None:
    logits = np.ones((2, 3), np.float32)
    with pytest.raises(DatasetError, match=r"expected 0 or 1 for each, \[2, 3\]"):
        compare(logits, logits, labels=np.array(labels), activation="sigmoid")


def test_a_head_of_21841_classes_takes_no_memory_to_speak_of() -> None:
    draw = np.random.default_rng(0)
    b = draw.normal(size=(32, 21_841)).astype(np.float32)
    found = compare(b, b + np.float32(1e-6), labels=(b > 0).astype(np.int64), activation="sigmoid")
    assert found.figures.decided == b.size
    assert found.labeled is not None
    assert found.labeled.reference_accuracy == 1


class Channels(nn.Module):
    """Which of the color channels are bright: four decisions, the last about all three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.conv.bias.zero_()  # type: ignore[union-attr]
            self.head.weight.copy_(torch.cat([3 * torch.eye(3), torch.ones(1, 3)]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


def test_a_multi_label_head_is_exported_checked_and_classifies(tmp_path: Path) -> None:
    images = photographs((32, 32), 3)
    model = ModelSpec(module=Channels(), image_size=32, resize=32, multi_label=True)
    floats = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    network = Channels().eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(floats.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    labels = (logits > 0).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    spec = ExportSpec(
        fp16=True, int8=True, calib=tmp_path / "data.npz", softmax=True, engine="none", max_drop=5.0
    )
    made = export(model, spec, tmp_path / "bundle")
    assert made.report.exit_code == 0
    assert (made.bundle.manifest.model.activation, len(made.bundle.manifest.labels)) == ("sigmoid", 4)
    assert any("right on 100.0 %" in notice for notice in made.bundle.manifest.provenance.notices)
    with open_session(made.bundle.path, artifact="fp32") as session:
        for image, row in zip(images[:5], logits[:5], strict=True):
            (found,) = session.classify([image], top=4)
            expected = torch.sigmoid(torch.from_numpy(row)).numpy()
            assert [one.index for one in found] == list(np.argsort(-row, kind="stable"))
            for one in found:
                assert one.probability == pytest.approx(float(expected[one.index]), rel=1e-4)
    checked = check_parity(made.bundle.path, data=str(tmp_path / "data.npz"), max_drop=10.0)
    assert checked.exit_code == 0
    for entry in checked.entries:
        data = entry.check("data")
        assert data is not None
        assert data.comparison.figures.decided == 4 * len(images)
        assert data.comparison.labeled is not None
        assert data.comparison.labeled.candidate_accuracy > 0.9
