"""GPTQ-style weight rounding, and bias correction, against what they are meant to minimize."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.improve.bias_correction import bias_correction
from resnet_export.calibration.improve.input_moments import Moments, input_moments
from resnet_export.calibration.improve.weight_rounding import compensate, round_weight
from resnet_export.calibration.quantize.grid import quantize_weight, weight_scales
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.runtime.errors import DatasetError
from tests.residual_net import images, residual_net

seeds = st.integers(0, 2**32 - 1)


def moments_of(name: str, count: int = 64) -> tuple[Layer, tuple[Moments, ...], Topology]:
    """A layer of the residual network with the moments of its inputs."""
    model = residual_net()
    (found,) = input_moments(model, [name], lambda: [images(count)], images=count)
    return *found, Topology(model)


def correlated(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """The covariance of inputs that a few causes share, as neighboring pixels do."""
    mixing = rng.normal(size=(size, max(1, size // 4)))
    return (mixing @ mixing.T + 0.05 * np.eye(size)).astype(np.float32)


@given(seeds, st.integers(2, 80), st.integers(1, 6))
def test_compensated_rounding_never_does_worse_on_correlated_inputs_than_its_bound(
    seed: int, size: int, outputs: int
) -> None:
    """QuIP, theorem 1: the error is at most that of rounding to the nearest after decorrelation, Σ D/4."""
    rng = np.random.default_rng(seed)
    covariance = correlated(rng, size)
    weight = rng.normal(size=(outputs, size)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 90).astype(np.float32)  # so that nothing has to be clipped
    error = weight - compensate(weight, scales, covariance) * scales[:, None]
    found = np.einsum("oi,ij,oj->o", error, covariance, error, dtype=np.float64)
    order = np.argsort(-np.diag(covariance), kind="stable")
    ordered = covariance[np.ix_(order, order)].astype(np.float64)
    ordered += 0.01 * np.diag(ordered).mean() * np.eye(size)
    # The pivots of the factorization from the last weight to the first.
    pivots = np.diag(np.linalg.cholesky(ordered[::-1, ::-1])) ** 2
    assert (found <= scales.astype(np.float64) ** 2 * pivots.sum() / 4 * 1.02 + 1e-9).all()


@given(seeds, st.integers(1, 40), st.integers(0, 40), st.floats(-30, 30))
def test_a_covariance_of_any_rank_and_size_gives_integers_next_to_the_weights(
    seed: int, size: int, rank: int, decades: float
) -> None:
    """Constant inputs and inputs that are multiples of each other make it singular, float32 even indefinite."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, rank)) * 10.0 ** (decades / 2)
    noise = rng.normal(size=(size, size)) * 1e-7
    covariance = (mixing @ mixing.T * (1 + noise + noise.T)).astype(np.float32)
    weight = rng.normal(size=(3, size)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32) + np.float32(1e-6)
    integers = compensate(weight, scales, covariance)
    assert np.abs(integers).max() <= 127
    if rank == 0:
        np.testing.assert_array_equal(integers, np.rint(weight / scales[:, None]))


@pytest.mark.parametrize("level", [0.0, 1.0, 1e2, 1e4])
def test_the_covariance_of_inputs_does_not_suffer_from_their_level(level: float) -> None:
    """What a fixed camera sees varies little about a large mean. No padding here, which varies a lot."""
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["input", "weight"], ["logits"], name="conv", kernel_shape=[1, 1])
    graph = onnx.helper.make_graph(
        [node],
        "pointwise",
        [value("input", onnx.TensorProto.FLOAT, ["N", 3, 16, 16])],
        [value("logits", onnx.TensorProto.FLOAT, ["N", 2, 16, 16])],
        [weight],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    x = (images(32) + np.float32(level)).astype(np.float32)
    ((_, (found,)),) = input_moments(model, ["conv"], lambda: [x[:5], x[5:]], images=32)
    expected = np.cov(x.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1), bias=True)
    np.testing.assert_allclose(found.covariance, expected, rtol=0.1, atol=0.1 * np.trace(expected))
    assert found.count == 32 * min(256, found.count // 32)
    assert np.linalg.eigvalsh(found.covariance.astype(np.float64)).min() > 0


@given(seeds)
def test_integers_stay_on_the_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, 30)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    integers = compensate(weight, scales, correlated(rng, 30))
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert np.abs(integers).max() <= 127


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 20)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    found = compensate(weight, scales, np.diag(rng.uniform(0.5, 2, 20)).astype(np.float32))
    np.testing.assert_array_equal(found, np.rint(weight / scales[:, None]))


@pytest.mark.parametrize("name", ["a.conv2", "b.conv1", "b.down", "fc"])
def test_a_rounded_layer_is_closer_in_its_output_than_the_nearest_integers(name: str) -> None:
    layer, moments, topology = moments_of(name)
    weight = topology.constant(layer.weight)
    scales = weight_scales(weight, layer.axis)

    def noise(values: NDArray[np.float32]) -> float:
        error = (weight - values).reshape(len(weight), -1)
        return sum(
            float(np.einsum("oi,ij,oj->", error[:, one.part], one.covariance, error[:, one.part]))
            for one in moments
        )

    rounded, nearest = round_weight(layer, weight, moments), quantize_weight(weight, layer.axis)
    np.testing.assert_array_equal(rounded.scales, scales)
    assert noise(rounded.real()) < noise(nearest.real())


@pytest.mark.parametrize("name", ["stem", "b.conv1", "fc"])
def test_moments_are_those_of_every_patch_when_all_are_taken(name: str) -> None:
    """Against the definition: mean and covariance over unfolded inputs, made with ONNX's reference evaluator."""
    layer, moments, topology = moments_of(name, 8)
    model = residual_net()
    if layer.input != "input":
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(layer.input, onnx.TensorProto.FLOAT, None)
        )
    x = images(8)
    values = x if layer.input == "input" else ReferenceEvaluator(model).run([layer.input], {"input": x})[0]
    if layer.node.op_type == "Gemm":
        rows = values.reshape(len(values), -1)
    else:
        kernel = topology.constants[layer.weight].dims[2:]
        stride = next(one.ints[0] for one in layer.node.attribute if one.name == "strides")
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)
        rows = windows.reshape(-1, int(np.prod(windows.shape[3:])))
    for one in moments:
        part = rows[:, one.part].astype(np.float64)
        np.testing.assert_allclose(one.mean, part.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(one.covariance, np.cov(part.T, bias=True), atol=2e-3 * part.var())


def test_moments_do_not_depend_on_how_images_are_batched() -> None:
    model, x = residual_net(), images(12)
    one, other = (
        [found for _, found in input_moments(model, ["b.conv2"], lambda parts=parts: parts, images=12)]
        for parts in ([x], [x[:5], x[5:6], x[6:]])
    )
    for first, second in zip(one[0], other[0], strict=True):
        assert first.count == second.count
        np.testing.assert_allclose(first.covariance, second.covariance, rtol=1e-4, atol=1e-5)


def test_a_corrected_bias_gives_the_mean_output_of_the_float_layer() -> None:
    layer, moments, topology = moments_of("b.conv2")
    weight = topology.constant(layer.weight)
    coarse = quantize_weight(weight, layer.axis)
    correction = bias_correction(layer, weight, coarse, moments)
    mean = np.concatenate([one.mean for one in moments])
    shift = (weight - coarse.real()).reshape(len(weight), -1).astype(np.float64) @ mean
    np.testing.assert_allclose(correction, shift, rtol=1e-4, atol=1e-7)
    assert np.abs(correction).max() > 0


def test_moments_without_an_image_are_refused() -> None:
    with pytest.raises(DatasetError, match="no image"):
        list(input_moments(residual_net(), ["fc"], list, images=1))
