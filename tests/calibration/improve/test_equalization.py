"""Equalization finds the scale at which INT8 loses least, whatever the scale the network came with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import channel_groups, rescale
from resnet_export.calibration.improve.equalization import (
    ChannelStats,
    channel_tensors,
    equalize,
    look_at_channels,
    over_images,
)
from resnet_export.calibration.improve.noise_gain import noise_gains
from resnet_export.calibration.observe.activations import observed_graph
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.plan import Equalization, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import ExportError
from tests.residual_net import images, residual_net, with_weight


def logits(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return CpuSession(model.SerializeToString()).run(x)[0]


def apart(model: onnx.ModelProto, spread: float, seed: int = 0) -> onnx.ModelProto:
    """The same function with its channels scaled apart."""
    rng = np.random.default_rng(seed)
    return rescale(
        model,
        [
            Equalization(
                tuple(one.name for one in group.producers),
                tuple(one.name for one in group.consumers),
                np.exp(rng.normal(0, spread, group.channels)).astype(np.float32),
            )
            for group in channel_groups(model)
        ],
    )


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The tensors that equalization looks at."""
    session = CpuSession(observed_graph(model, channel_tensors(model)))
    return dict(zip(session.outputs, session.run(x), strict=True))


def channels(model: onnx.ModelProto, x: NDArray[np.float32]) -> dict[str, ChannelStats]:
    found = run(model, x)
    return over_images(
        [
            look_at_channels(found, {name: one[at : at + 1] for name, one in found.items()})
            for at in range(len(x))
        ]
    )


def equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    return equalize(model, channels(model, images(32)))[0]


def decibels(model: onnx.ModelProto, target: TargetName) -> float:
    """SNR of the quantized graph's logits on images that it was not calibrated on."""
    x, plan = images(64, seed=9), QuantPlan(method="minmax")
    table = calibrate(model, [images(32)], methods=("minmax",))
    expected = logits(model, x).astype(np.float64)
    noise = logits(quantize(model, plan.choose_ranges(table), plan, target), x) - expected
    return float(10 * np.log10(np.square(expected).sum() / np.square(noise).sum()))


def test_the_function_stays_as_it_is() -> None:
    model = residual_net()
    np.testing.assert_allclose(logits(equalized(model), images(8)), logits(model, images(8)), atol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_a_network_scaled_apart_loses_int8_and_gets_all_of_it_back(spread: float, target: TargetName) -> None:
    model = residual_net()
    hostile = apart(model, spread)
    healthy = decibels(equalized(model), target)
    assert decibels(hostile, target) < healthy - 8
    assert decibels(equalized(hostile), target) > healthy - 0.5


def test_every_scaling_of_a_network_leads_to_the_same_weights() -> None:
    model = residual_net()
    one, other = equalized(apart(model, 2.0, seed=1)), equalized(apart(model, 2.0, seed=2))
    for first, second in zip(one.graph.initializer, other.graph.initializer, strict=True):
        a, b = (onnx.numpy_helper.to_array(tensor) for tensor in (first, second))
        np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-3 * np.abs(b).max())


def test_a_channel_that_never_fired_gets_a_finite_positive_factor() -> None:
    model = residual_net()
    for tensor in model.graph.initializer:
        if tensor.name in ("a.conv1.weight", "a.conv1.bias"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    _, done = equalize(model, channels(model, images(16)))
    for one in done:
        assert np.isfinite(one.factors).all()
        assert (one.factors > 0).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_activation_that_is_not_finite_is_an_error_that_names_it(value: float) -> None:
    model = residual_net()
    bias = np.zeros(8, np.float32)
    bias[3] = value
    with pytest.raises(ExportError, match=r"'a\.conv1.*infinite or NaN"):
        channels(with_weight(model, "a.conv1.bias", bias), images(2))


def test_statistics_over_images_are_those_of_their_batch() -> None:
    model, x = residual_net(), images(6)
    found = run(model, x)
    at_once = look_at_channels(found, found)
    for name, one in channels(model, x).items():
        np.testing.assert_array_equal(one.peak, at_once[name].peak)
        np.testing.assert_allclose(one.power, at_once[name].power, rtol=1e-5)


def test_scaling_a_channel_up_divides_its_gain_by_the_factors_square() -> None:
    model = residual_net()
    factors = np.array([4, 1, 1, 1, 1, 1, 1, 0.5], np.float32)
    scaled = rescale(model, [Equalization(("a.conv1",), ("a.conv2",), factors)])
    before, after = noise_gains(model)["a.relu1.out"], noise_gains(scaled)["a.relu1.out"]
    np.testing.assert_allclose(after, before / factors.astype(np.float64) ** 2, rtol=1e-5)


def test_noise_gains_foretell_what_small_noise_does_to_the_logits() -> None:
    """Against the network itself, from the tensor that only the average and the classifier read."""
    model = residual_net()
    topology_end = [node for node in model.graph.node if node.name in ("average", "flatten", "fc")]
    tail = onnx.helper.make_model(
        onnx.helper.make_graph(
            topology_end,
            "tail",
            [onnx.helper.make_tensor_value_info("b.relu2.out", onnx.TensorProto.FLOAT, ["N", 16, 4, 4])],
            model.graph.output,
            model.graph.initializer,
        ),
        opset_imports=model.opset_import,
        ir_version=9,
    )
    rng = np.random.default_rng(0)
    noise = np.zeros((4000, 16, 4, 4), np.float32)
    noise[:, 5] = rng.normal(size=(4000, 4, 4))
    session = CpuSession(tail.SerializeToString())
    moved = session.run(noise)[0] - session.run(np.zeros((1, 16, 4, 4), np.float32))[0]
    measured = np.square(moved).sum(axis=1).mean()
    # Independent noise at all 16 positions, of which the average keeps 1/16 of the variance.
    assert measured == pytest.approx(noise_gains(model)["b.relu2.out"][5], rel=0.1)
