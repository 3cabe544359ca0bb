"""The figures and limits of outputs besides the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from resnet_export.runtime.bundle.golden import Golden
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.metrics import Metrics
from resnet_export.runtime.parity.measure.outputs import output_figures
from resnet_export.runtime.parity.output_check import check_outputs
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.prediction import softmax
from tests import tiny_bundle

SHAPES = st.one_of(
    *(st.tuples(*[st.integers(1, 4)] * axes) for axes in (2, 3, 4)),
)
VALUES = st.floats(-100, 100, width=32)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(*[arrays.arrays(np.float32, shape, elements=VALUES)] * 2))


@settings(deadline=None)
@given(PAIRS)
def test_figures_are_what_their_definitions_say(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
    b, a = (one.astype(np.float64) for one in pair)
    found = output_figures(*pair)
    assert (found.images, found.non_finite) == (len(b), 0)
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.mean_abs == pytest.approx(np.abs(a - b).mean())
    if np.linalg.norm(b) > 1e-3:
        assert found.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), abs=1e-9)
        if np.linalg.norm(a) > 1e-3:
            cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
            assert found.cosine == pytest.approx(cosine, abs=1e-9)
    channels = {2: 1, 3: 2, 4: 1}[b.ndim]
    mean = b.mean(axis=tuple(axis for axis in range(b.ndim) if axis != channels), keepdims=True)
    if np.linalg.norm(b - mean) > 1e-2 * np.linalg.norm(b) and np.linalg.norm(a - mean) > 1e-3:
        centered = ((a - mean) * (b - mean)).sum() / np.linalg.norm(a - mean) / np.linalg.norm(b - mean)
        assert found.centered_cosine == pytest.approx(centered, abs=1e-9)


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(2, 6), st.integers(2, 6)), elements=VALUES))
def test_a_vector_has_the_figures_that_logits_of_the_same_values_have(values: NDArray[np.float32]) -> None:
    # Of at least two numbers: one logit is a binary classifier's, and stands for two.
    other = values + np.float32(0.5)
    found, logits = output_figures(values, other), Metrics.of(values, other).result()
    for name in ("images", "non_finite", "max_abs", "mean_abs", "relative_error", "cosine", "snr_db"):
        mine, theirs = getattr(found, name), getattr(logits, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or mine == pytest.approx(theirs, rel=1e-9), name


def test_values_that_are_not_finite_are_counted_and_leave_the_rest_as_it_is() -> None:
    draw = np.random.default_rng(0)
    b = draw.normal(size=(4, 2, 3, 3)).astype(np.float32)
    a = b + 0.1
    whole = output_figures(b[1:], a[1:])
    a[0, 0, 0, 0] = np.inf
    found = output_figures(b, a)
    assert (found.images, found.non_finite) == (4, 1)
    assert (found.relative_error, found.max_abs) == (whole.relative_error, whole.max_abs)
    assert output_figures(b[:1], a[:1]).relative_error is None
    with pytest.raises(RequestError, match=r"shapes \[4, 2, 3, 3\] and \[3, 2, 3, 3\]"):
        output_figures(b[:3], a)
    with pytest.raises(RequestError, match="the reference holds NaN or infinity"):
        output_figures(a, b)


class Answering:
    """A session that answers with given outputs, image by image in the order of the golden ones."""

    def __init__(self, outputs: dict[str, NDArray[np.float32]]) -> None:
        self.manifest = tiny_bundle.manifest([], further=True)
        self._outputs, self._start = outputs, 0

    def run_outputs(self, batch: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        rows = slice(self._start, self._start + len(batch))
        self._start += len(batch)
        return {name: self._outputs[name][rows] for name in names}


def golden(count: int = 6) -> tuple[Golden, dict[str, NDArray[np.float32]]]:
    draw = np.random.default_rng(1)
    made = {
        "logits": draw.normal(size=(count, 5)).astype(np.float32),
        "embedding": draw.normal(size=(count, 8)).astype(np.float32),
        "c2": draw.normal(size=(count, 8, 4, 4)).astype(np.float32),
    }
    made["probabilities"] = softmax(made["logits"]).astype(np.float32)
    outputs = {name: made[name] for name in ("embedding", "probabilities")} | {"c2": made["c2"][:2]}
    return Golden(tiny_bundle.images(count), {"eager": made["logits"]}, outputs=outputs), made


@pytest.mark.parametrize("precision", list(Precision))
def test_every_output_is_held_to_the_limits_of_the_precision_by_itself(precision: Precision) -> None:
    recorded, made = golden()
    tolerance = PRECISIONS[precision].tolerance
    checks = check_outputs(Answering(made), tolerance, recorded)  # type: ignore[arg-type]
    assert [check.name for check in checks] == ["embedding", "probabilities", "c2"]
    assert all(check.passed for check in checks)
    assert [check.figures.images for check in checks] == [6, 6, 2]
    assert tolerance.relative_error is not None
    for name in ("embedding", "probabilities", "c2"):
        wrong = made | {name: made[name] * np.float32(1 + 2 * tolerance.relative_error)}
        found = {check.name: check for check in check_outputs(Answering(wrong), tolerance, recorded)}  # type: ignore[arg-type]
        assert [one for one, check in found.items() if not check.passed] == [name]
        (broken,) = (criterion for criterion in found[name].criteria if not criterion.passed)
        assert (broken.name, broken.limit) == ("relative_error", tolerance.relative_error)


def test_probabilities_are_held_to_the_artifacts_own_logits_and_measured_against_the_eager_networks() -> None:
    recorded, made = golden()
    moved = made | {"logits": made["logits"] * np.float32(1.5)}
    moved["probabilities"] = softmax(moved["logits"]).astype(np.float32)
    tolerance = PRECISIONS[Precision.FP32].tolerance
    found = {check.name: check for check in check_outputs(Answering(moved), tolerance, recorded)}  # type: ignore[arg-type]
    assert found["probabilities"].passed
    assert (found["probabilities"].figures.relative_error or 0) > 0.05
