"""The error of a chain of steps: parts that add up, and the step that is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Artifact, EngineInfo
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.parity.attribution.stages import Attribution, Stage, StepError, attribute, chain
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.parity.measure.metrics import Metrics
from resnet_export.runtime.precision import Precision

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
ONNX = Stage(name="onnx", precision=FP32)
HALF = Stage(name="fp16", precision=FP16)
BACKEND = Stage(name="backend", precision=FP16)

SHIPPED = Tolerances.shipped()
Array = NDArray[np.float32]


def logits(images: int = 32, classes: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(images, classes)).astype(np.float32)


def nudged(array: Array, size: float, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    return (array + size * draw.normal(size=array.shape)).astype(np.float32)


def take_apart(*sizes: float) -> Attribution:
    """Steps onnx, fp16 and backend that each add noise of the given size."""
    states = [logits()]
    for seed, size in enumerate(sizes):
        states.append(nudged(states[-1], size, seed + 1))
    steps = list(zip((ONNX, HALF, BACKEND), states[1:], strict=True))
    return attribute(states[0], steps, SHIPPED, "fp16 on onnxruntime")


def stage(found: Attribution, name: str) -> StepError:
    return next(error for error in found.stages if error.stage == name)


@settings(max_examples=100, deadline=None)
@given(
    images=st.integers(1, 20),
    classes=st.integers(1, 12),
    sizes=st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 3.0]), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 30.0]),
    back=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_shares_add_up_to_one_within_the_bound_that_is_reported(
    images: int, classes: int, sizes: list[float], offset: float, back: bool, seed: int
) -> None:
    states = [(logits(images, classes, seed) + offset).astype(np.float32)]
    for i, size in enumerate(sizes):
        states.append(nudged(states[-1], size, seed + i + 1))
    if back:  # the last step undoes almost everything, the worst case for a sum of parts
        states.append(nudged(states[0], 1e-5, seed))
    steps = [(Stage(name=str(i), precision=INT8), state) for i, state in enumerate(states[1:])]
    found = attribute(states[0], steps, SHIPPED, "x")
    if found.residual is None:
        assert (states[-1] == states[0]).all()
        return
    assert found.bound is not None
    assert found.residual <= found.bound
    assert found.bound < 1e-3
    # The parts give back the whole: ‖D‖² from the separate norms and the cross terms.
    squares = sum((error.separate or 0.0) ** 2 for error in found.stages)
    assert found.total is not None
    assert found.cross is not None
    assert squares + found.cross * found.total**2 == pytest.approx(
        found.total**2, rel=1e-9, abs=1e-18 + 1e-12 * squares
    )


def test_separate_and_cumulative_errors_are_the_relative_errors_of_the_steps_and_of_the_whole() -> None:
    states = [logits(), nudged(logits(), 1e-3, 1), nudged(logits(), 1e-2, 2)]
    found = attribute(states[0], [(ONNX, states[1]), (HALF, states[2])], SHIPPED, "x")
    norm = np.linalg.norm(states[0].astype(np.float64))
    gap = states[2].astype(np.float64) - states[1]
    assert found.stages[0].separate == found.stages[0].cumulative
    assert found.stages[1].separate == pytest.approx(np.linalg.norm(gap) / norm, rel=1e-12)
    whole = Metrics.of(states[0], states[2]).result()
    assert found.stages[1].cumulative == pytest.approx(whole.relative_error, rel=1e-12)
    assert found.stages[1].cumulative_snr_db == pytest.approx(whole.snr_db, rel=1e-12)
    assert found.total == found.stages[1].cumulative


def test_the_step_with_the_largest_share_is_named_in_the_sentence() -> None:
    found = take_apart(1e-6, 1e-3, 1e-5)
    assert found.largest == "fp16"
    assert found.diverges is None
    assert (
        "fp16 on onnxruntime: 100 % of the error is attributed to stage fp16 (relative error 0.001, total"
        in found.sentence
    )
    share = stage(found, "fp16").share
    assert share is not None
    assert share > 0.99


@pytest.mark.parametrize(
    ("sizes", "name", "where"),
    [
        ((0.1, 1e-3, 1e-4), "onnx", "stage onnx"),
        ((1e-6, 0.5, 1e-4), "fp16", "stage fp16"),
        ((1e-6, 1e-3, 0.5), "backend", "the backend"),
    ],
)
def test_the_first_step_outside_its_own_limits_is_the_one_to_look_at(
    sizes: tuple[float, ...], name: str, where: str
) -> None:
    found = take_apart(*sizes)
    assert found.diverges == name
    assert f"the first stage outside its own limits is {where}." in found.sentence


def test_a_small_fault_in_an_exact_step_is_found_behind_the_larger_error_of_a_coarse_one() -> None:
    # 0.2 % at the fp32 graph is a fault; 3 % at quantization is not.
    states = [logits(), nudged(logits(), 2e-3, 1)]
    states.append(nudged(states[1], 3e-2, 2))
    found = attribute(
        states[0], [(ONNX, states[1]), (Stage(name="int8", precision=INT8), states[2])], SHIPPED, "x"
    )
    assert found.largest == "int8"
    assert found.diverges == "onnx"


def test_a_step_that_takes_error_back_has_a_negative_share() -> None:
    first = logits()
    off = first + np.float32(0.5)
    found = attribute(first, [(ONNX, off), (HALF, first + np.float32(0.25))], SHIPPED, "x")
    assert [error.share for error in found.stages] == pytest.approx([2.0, -1.0], rel=1e-6)
    assert found.largest == "onnx"
    assert "100 % of the error is attributed to stage onnx" in found.sentence
    assert "other stages take some of it back" in found.sentence


def test_a_chain_without_error_has_no_shares_and_says_so() -> None:
    found = attribute(logits(), [(ONNX, logits()), (HALF, logits())], SHIPPED, "fp16 on openvino")
    assert [error.share for error in found.stages] == [None, None]
    assert (found.largest, found.diverges, found.residual) == (None, None, None)
    assert (
        found.sentence
        == "fp16 on openvino: no error, every stage gives the eager model's logits bit for bit."
    )


def test_overflow_is_attributed_to_the_step_where_it_first_appears() -> None:
    broken = logits().copy()
    broken[3, 1] = np.inf
    later = broken.copy()
    later[4, 1] = np.nan
    found = attribute(
        logits(), [(ONNX, logits()), (HALF, broken), (BACKEND, later)], SHIPPED, "fp16 on openvino"
    )
    assert [error.non_finite for error in found.stages] == [0, 1, 2]
    assert found.diverges == "fp16"
    assert "NaN or infinity first appears in stage fp16, on 1 images" in found.sentence


def test_overflow_of_every_image_still_makes_a_report() -> None:
    found = attribute(logits(), [(HALF, np.full_like(logits(), np.nan))], SHIPPED, "x")
    assert found.total is None
    assert "first appears in stage fp16" in found.sentence


def test_stages_of_another_shape_are_refused() -> None:
    with pytest.raises(BundleError, match=r"stage 'onnx' have shape \[31, 10\], the eager ones \[32, 10\]"):
        attribute(logits(), [(ONNX, logits(31))], SHIPPED, "x")


def test_eager_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BundleError, match="NaN or infinity"):
        attribute(np.full((2, 2), np.nan), [(ONNX, np.zeros((2, 2)))], SHIPPED, "x")


def artifact(name: str, precision: Precision, target: str = "any", source: str | None = None) -> Artifact:
    engine = None
    if source is not None:
        engine = EngineInfo(
            variant="tensorrt",
            version="10.16",
            compute_capabilities=("8.6",),
            profiles=(),
            source=source,
            source_sha256="0" * 64,
        )
    return Artifact(
        name=name,
        file=name,
        kind="engine" if source else "onnx",
        precision=precision,
        target=target,  # type: ignore[arg-type]
        bytes=1,
        sha256="0" * 64,
        engine=engine,
    )


RECORDED = ("eager", "fp16", "fp32", "int8", "int8.cpu", "onnx", "simplified")


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        (artifact("fp32", FP32), "onnx simplified fp32 backend"),
        (artifact("onnx", FP32), "onnx simplified fp32 backend"),
        (artifact("fp16", FP16), "onnx simplified fp32 fp16 backend"),
        (artifact("int8", INT8, "tensorrt"), "onnx simplified fp32 fp16 int8 backend"),
        (artifact("int8.cpu", INT8, "cpu"), "onnx simplified fp32 int8.cpu backend"),
        (artifact("rtx-fp16", FP16, "tensorrt", source="fp16"), "onnx simplified fp32 fp16 backend"),
        (artifact("rtx-fp32", FP32, "tensorrt", source="fp32"), "onnx simplified fp32 backend"),
        (artifact("rtx-int8", INT8, "tensorrt", source="int8"), "onnx simplified fp32 fp16 int8 backend"),
    ],
)
def test_each_artifact_has_the_chain_that_it_was_made_by(given: Artifact, stages: str) -> None:
    found = chain(given, RECORDED, given.precision)
    assert " ".join(stage.name for stage in found) == stages
    assert found[-1].precision == given.precision
    assert all(stage.precision is FP32 for stage in found if stage.name in ("onnx", "simplified", "fp32"))


def test_a_bundle_with_eager_logits_only_has_the_backend_as_its_one_step() -> None:
    assert chain(artifact("fp16", FP16), ("eager",), FP16) == (BACKEND,)


def test_the_backends_step_is_held_to_what_it_really_ran_in() -> None:
    assert chain(artifact("fp32", FP32), RECORDED, Precision.BF16)[-1].precision is Precision.BF16
