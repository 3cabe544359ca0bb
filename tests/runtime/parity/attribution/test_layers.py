"""One figure per layer: sums that do not depend on batches, and the rule for a layer that diverges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from resnet_export.runtime.parity.attribution.layers import (
    COARSE,
    GAIN,
    LIMITS,
    WORST,
    ErrorSums,
    Kind,
    LayerFigure,
    LayerSums,
    Layerwise,
    coarseness_limit,
    first_divergence,
    layer_figure,
    snr_db,
    summary,
    titled,
)
from resnet_export.runtime.precision import Precision

tensors = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.floats(-1e3, 1e3, width=32),
)


def sums(relative: float, gain: float = 1.0) -> ErrorSums:
    """Sums of a layer with this relative error and gain, over a signal of 1."""
    return ErrorSums(error=relative**2, signal=1.0, product=gain - 1)


def layer(
    kind: Kind = "fp16",
    own: ErrorSums | None = None,
    in_place: ErrorSums | None = None,
    halved: ErrorSums | None = None,
    node: str = "conv1",
    **options: object,
) -> LayerFigure:
    return layer_figure(node, "stem.conv1", "Conv", kind, LayerSums(own, in_place, halved), **options)  # type: ignore[arg-type]


@given(tensors, st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_error_is_that_of_numpy_however_the_images_are_cut(
    expected: NDArray[np.float32], cut: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(size=expected.shape)
    found = (expected + noise).astype(np.float32)
    joined = ErrorSums.of(found[:cut], expected[:cut]) + ErrorSums.of(found[cut:], expected[cut:])
    a, b = found.astype(np.float64), expected.astype(np.float64)
    assert joined.non_finite == 0
    assert joined.error == pytest.approx(float(((a - b) ** 2).sum()))
    if np.linalg.norm(b):
        relative = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert joined.relative_error == pytest.approx(float(relative))
        gain = float((a * b).sum() / (b * b).sum())
        assert 1 + joined.product / joined.signal == pytest.approx(gain, abs=1e-6 * max(1, relative))


@given(tensors, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_an_image_that_is_not_finite_is_counted_and_left_out(
    expected: NDArray[np.float32], bad: float
) -> None:
    found = expected + 1
    found[0].flat[0] = bad
    result = ErrorSums.of(found, expected)
    rest = ErrorSums.of(found[1:], expected[1:])
    assert result.non_finite == 1
    assert (result.error, result.signal, result.product) == (rest.error, rest.signal, rest.product)


def test_a_relative_error_without_a_signal_is_zero_infinite_or_undefined() -> None:
    assert ErrorSums.of(np.zeros((1, 2)), np.zeros((1, 2))).relative_error == 0
    assert ErrorSums.of(np.ones((1, 2)), np.zeros((1, 2))).relative_error == math.inf
    assert ErrorSums.of(np.full((1, 2), np.nan), np.ones((1, 2))).relative_error is None


def test_a_ratio_in_decibels_is_defined_where_there_is_an_error() -> None:
    assert snr_db(0.01) == pytest.approx(40)
    assert (snr_db(0), snr_db(None), snr_db(math.inf)) == (None, None, None)


@pytest.mark.parametrize("kind", LIMITS)
def test_a_layer_diverges_beyond_the_limit_of_its_kind(kind: Kind) -> None:
    limit = LIMITS[kind]
    excluded, broken = layer(kind, sums(limit * 0.99)), layer(kind, sums(limit * 1.01))
    assert (excluded.diverges, excluded.reason) == (False, "")
    assert broken.diverges
    assert f"{limit:g} is explained" in broken.reason
    assert excluded.excess < 1 < broken.excess


def test_the_error_in_place_alone_is_no_divergence() -> None:
    found = layer(own=sums(1e-4), in_place=sums(0.9))
    assert not found.diverges
    assert found.relative_error == pytest.approx(0.9)


@pytest.mark.parametrize(("gain", "word"), [(1 + 2 * GAIN, "large"), (1 - 2 * GAIN, "small")])
def test_integer_weights_that_scale_their_output_depart(gain: float, word: str) -> None:
    found = layer("weights", sums(0.01, gain))
    assert found.diverges
    assert f"1.0 % too {word}" in found.reason
    assert found.excess == pytest.approx(2)
    assert not layer("weights", sums(0.01, 1 + GAIN / 2)).diverges
    assert layer("fp16", sums(1e-4, gain)).gain is None


def test_a_scale_that_halving_improves_diverges() -> None:
    found = layer("activations", sums(0.02), halved=sums(0.01))
    assert found.diverges
    assert found.coarseness == pytest.approx(2)
    assert "50 % of its error" in found.reason
    assert not layer("activations", sums(0.01 * COARSE * 0.99), halved=sums(0.01)).diverges
    # Nothing at all was rounded: nothing to improve.
    assert not layer("activations", sums(0), halved=sums(0)).diverges


def test_one_coarse_tensor_stands_out_and_ranges_that_are_all_coarse_do_not() -> None:
    usual = [LayerSums(own=sums(0.002 * i), halved=sums(0.05)) for i in range(1, 9)]
    doubled = LayerSums(own=sums(0.016), halved=sums(0.01))
    assert coarseness_limit([*usual, doubled]) < 1.6
    spanning = [LayerSums(own=sums(0.002 * i), halved=sums(0.01)) for i in range(1, 9)]
    assert coarseness_limit(spanning) > 1.6
    assert coarseness_limit([LayerSums()]) == COARSE


def test_a_layer_that_is_not_finite_or_cannot_be_measured_diverges_without_bound() -> None:
    hot = layer(own=ErrorSums(signal=1.0, non_finite=3))
    unknown = layer(own=None, remark="its output is [N, 4], where that of the fp32 graph is [N, 8]")
    lost = layer("fp32", sums(0.4), missing=True)
    assert "NaN or infinite on 3 images" in hot.reason
    assert unknown.reason.startswith("its output is [N, 4]")
    assert "does not have it" in lost.reason
    assert hot.excess == unknown.excess == math.inf
    assert all(found.diverges for found in (hot, unknown, lost))


def test_a_missing_node_that_changed_nothing_is_no_divergence() -> None:
    assert not layer("fp32", sums(0), missing=True).diverges


def test_the_first_divergence_goes_by_the_graph_and_the_worst_by_excess() -> None:
    layers = tuple(
        layer(own=sums(error), node=f"conv{i}") for i, error in enumerate([1e-4, 0.01, 1e-4, 0.5, 2e-4, 1e-4])
    )
    first = first_divergence(layers)
    assert first is not None
    assert first.node == "conv1"
    found = Layerwise(
        artifact="fp16",
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        precision=Precision.FP16,
        images=1,
        first=first,
        layers=layers,
        unpaired=(),
        perturbation_db=None,
        notes=(),
        sentence=summary("fp16", layers),
    )
    assert len(found.worst) == WORST
    assert [one.node for one in found.worst][:3] == ["conv3", "conv1", "conv4"]
    assert found.sentence.startswith("fp16 diverges at conv1 (Conv, module stem.conv1): ")
    assert found.sentence.endswith("1 more layer behind it")


def test_a_sound_artifact_is_summed_up_as_one() -> None:
    assert summary("fp16", (layer(own=sums(1e-4)),)).startswith("fp16: each of its 1 layers")
    assert first_divergence([layer(own=sums(1e-4))]) is None


def test_a_title_names_the_module_where_the_node_does_not() -> None:
    same = layer_figure("a.conv", "a.conv", "Conv", "fp16", LayerSums(sums(0)))
    assert titled(same) == "a.conv (Conv)"
    assert titled(layer(own=sums(0))) == "conv1 (Conv, module stem.conv1)"
