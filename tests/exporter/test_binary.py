"""A network with one output: two labels, its sigmoid, and an agreement and an accuracy that mean something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.parity.check import check_parity
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.parity.measure.comparison import compare
from resnet_export.runtime.parity.measure.metrics import Metrics
from resnet_export.runtime.prediction import best

LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.just(1)), elements=st.floats(-50, 50, width=32)
)


@settings(deadline=None)
@given(LOGITS)
def test_probabilities_are_the_sigmoid_of_the_logit_and_of_its_negative(logits: NDArray[np.float32]) -> None:
    for row in logits:
        found = {one.index: one for one in best(row, ("no", "yes"), 5, "sigmoid")}
        expected = torch.sigmoid(torch.from_numpy(row.astype(np.float64)))
        assert found[1].probability == pytest.approx(float(expected), rel=1e-9)
        assert found[0].probability + found[1].probability == pytest.approx(1)
        (first, *_) = best(row, ("no", "yes"), 1, "sigmoid")
        assert first.label == ("yes" if row[0] > 0 else "no")


@settings(deadline=None)
@given(st.data())
def test_agreement_counts_the_same_decisions_at_one_half(data: st.DataObject) -> None:
    b = data.draw(LOGITS)
    a = data.draw(arrays.arrays(np.float32, b.shape, elements=st.floats(-50, 50, width=32)))
    labels = data.draw(arrays.arrays(np.int64, len(b), elements=st.integers(0, 1)))
    found = compare(b, a, labels=labels)
    same = ((b > 0) == (a > 0)) | ((b == 0) & (a >= 0))  # at 0 the reference decides nothing
    assert found.figures.top1 == int(same.sum())
    assert found.labeled is not None
    assert found.labeled.reference_accuracy == pytest.approx(((b[:, 0] > 0) == labels).mean())
    assert found.labeled.candidate_accuracy == pytest.approx(((a[:, 0] > 0) == labels).mean())
    if np.abs(b).max() > 1e-3:
        relative = np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float))
        assert Metrics.of(b, a).result().relative_error == pytest.approx(relative, rel=1e-6)


class Bright(nn.Module):
    """Whether an image is bright, by one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 27)
            self.conv.bias.zero_()  # type: ignore[union-attr]
            self.head.weight.fill_(1.0)
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("binary")
    draw = np.random.default_rng(0)
    for name, low, high in (("bright", 140, 255), ("dark", 0, 90)):
        (home / name).mkdir()
        for index in range(12):
            pixels = draw.integers(low, high, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / name / f"{index}.png")
    return home


def test_a_binary_classifier_is_exported_checked_and_classifies(tmp_path: Path, folders: Path) -> None:
    (tmp_path / "labels.txt").write_text("dark\nbright\n")
    model = ModelSpec(module=Bright(), image_size=32, resize=32, labels=tmp_path / "labels.txt")
    spec = ExportSpec(fp16=True, int8=True, calib=folders, softmax=True, engine="none")
    made = export(model, spec, tmp_path / "bundle")
    assert made.report.exit_code == 0
    manifest = made.bundle.manifest
    assert (manifest.model.num_classes, manifest.model.activation) == (1, "sigmoid")
    assert manifest.labels == ("dark", "bright")
    assert any("right on 100.0 %" in notice for notice in manifest.provenance.notices)
    golden = read_golden(made.bundle.path)
    expected = torch.sigmoid(torch.from_numpy(golden.logits["eager"].copy())).numpy()
    np.testing.assert_allclose(golden.outputs["probabilities"], expected, rtol=1e-5)
    for name in ("fp32", "int8.cpu"):
        with open_session(made.bundle.path, artifact=name) as session:
            ((dark, other), (bright, _)) = session.classify(
                [folders / "dark/0.png", folders / "bright/0.png"]
            )
        assert (dark.label, other.label, bright.label) == ("dark", "bright", "bright")
        assert 0.5 < bright.probability < 1
        assert dark.probability + other.probability == pytest.approx(1)
    checked = check_parity(made.bundle.path, data=str(folders), max_drop=1.0)
    assert checked.exit_code == 0
    for entry in checked.entries:
        data = entry.check("data")
        assert data is not None
        assert data.comparison.labeled is not None
        assert data.comparison.labeled.candidate_accuracy == 1


def test_names_of_class_folders_are_the_two_labels(tmp_path: Path, folders: Path) -> None:
    model = ModelSpec(module=Bright(), image_size=32, resize=32)
    spec = ExportSpec(calib=folders, engine="none", labels_as_given=True)
    made = export(model, spec, tmp_path / "bundle")
    assert made.bundle.manifest.labels == ("bright", "dark")
