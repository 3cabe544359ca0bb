"""Equalization finds the scale at which INT8 loses least, whatever the scale the network came with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import channel_groups, rescale
from resnet_export.calibration.improve.equalization import equalize, observe_channels
from resnet_export.calibration.improve.noise_gain import noise_gains
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.plan import Equalization, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import DatasetError
from tests.residual_net import images, residual_net


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


def equalized(model: onnx.ModelProto) -> onnx.ModelProto:
    return equalize(model, observe_channels(model, [images(32)]))[0]


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
    _, done = equalize(model, observe_channels(model, [images(16)]))
    for one in done:
        assert np.isfinite(one.factors).all()
        assert (one.factors > 0).all()


def test_no_image_is_an_error_that_says_so() -> None:
    with pytest.raises(DatasetError, match="no image"):
        observe_channels(residual_net(), [])


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
