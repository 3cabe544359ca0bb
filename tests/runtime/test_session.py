"""Opening a bundle, running it, and closing it, on real backends and on one that records what it is given."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from PIL import Image

from resnet_export.runtime import loaded_model as loaded_model_module
from resnet_export.runtime import session as session_module
from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.backends.routes import Route
from resnet_export.runtime.batching import BatchingSpec
from resnet_export.runtime.bundle.manifest import BatchRange, Manifest
from resnet_export.runtime.errors import (
    BackendError,
    BundleError,
    ImageError,
    IntegrityError,
    NoBackendError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    SchemaError,
    SessionClosedError,
)
from resnet_export.runtime.loaded_model import LoadedModel
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.prediction import Prediction, best, softmax
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.choice import Choice, Considered
from resnet_export.runtime.select.host import Gpu, HostFacts, Package, probe
from resnet_export.runtime.session import Session, open_session
from tests import tiny_bundle
from tests.backend_runs import logits_of
from tests.tiny_bundle import CLASSES, FP32, INT8, INT8_CPU, LABELS, SIDE

TIMEOUT = 20
BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("float") / "bundle", tiny_bundle.ALL)


@pytest.fixture(scope="module")
def uint8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("uint8") / "bundle", uint8=True)


def batch_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    return to_input(tiny_bundle.images(count, seed), tiny_bundle.manifest([]).preprocessing)


def reference(batch: np.ndarray, *, uint8: bool = False) -> NDArray[np.float32]:
    graph = onnx.load_from_string(tiny_bundle.graph(uint8=uint8))
    return ReferenceEvaluator(graph).run(None, {"input": batch})[0]


class Recorder:
    """A backend whose logits are the sums of each image's channels; it remembers batch sizes and can be held."""

    provider = "recorder"
    precision = Precision.FP32
    notes: tuple[str, ...] = ("recorded",)

    def __init__(self, batch: BatchRange | None = None) -> None:
        self.batch = batch
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.running = 0
        self.closed = 0
        self.closed_while_running = False
        self.classes = CLASSES

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        assert batch.flags.c_contiguous
        assert not self.closed
        self.running += 1
        self.entered.set()
        assert self.go.wait(TIMEOUT)
        self.sizes.append(len(batch))
        sums = batch.reshape(len(batch), -1).sum(axis=1, dtype=np.float64).astype(np.float32)
        self.running -= 1
        found = {"logits": sums[:, None] * np.arange(self.classes, dtype=np.float32)}
        found["embedding"] = np.repeat(sums[:, None], tiny_bundle.CHANNELS, axis=1)
        return tuple(found[name] for name in outputs)

    def close(self) -> None:
        self.closed += 1
        self.closed_while_running |= self.running > 0


class Weighted(Recorder):
    """A recorder whose logits depend on where in the image a value stands."""

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        assert tuple(outputs) == ("logits",)
        self.sizes.append(len(batch))
        weights = np.random.default_rng(0).standard_normal((batch[0].size, CLASSES), np.float32)
        return (np.stack([image.reshape(-1).astype(np.float32) @ weights for image in batch]) / 1000,)


CHOICE = Choice(
    artifact="fp32", backend="recorder", provider="recorder", device="cpu", precision=Precision.FP32
)


def recorded(backend: Recorder, manifest: Manifest | None = None) -> Session:
    model = LoadedModel(manifest or tiny_bundle.manifest([]), backend, CHOICE, ())
    return Session(model, lambda: pytest.fail("there is no bundle to load again"), "nowhere")


# Running


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_run_returns_the_logits_of_the_graph_for_any_batch(bundle: Path, backend: str, count: int) -> None:
    batch = batch_of(count)
    with open_session(bundle, backend=backend, precision="fp32", threads=1) as session:
        logits = session.run(batch)
    assert (logits.shape, logits.dtype) == ((count, CLASSES), np.float32)
    np.testing.assert_allclose(logits, reference(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_uint8_bundle_takes_raw_images(uint8_bundle: Path, backend: str) -> None:
    images = tiny_bundle.images(3)
    with open_session(uint8_bundle, backend=backend, threads=1) as session:
        np.testing.assert_allclose(session.run(images), reference(images, uint8=True), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_strided_batch_gives_the_same_logits(bundle: Path, backend: str) -> None:
    wide = batch_of(4).repeat(2, axis=3)
    with open_session(bundle, backend=backend, precision="fp32", threads=1) as session:
        strided = session.run(wide[::2, :, :, ::2])
        assert np.array_equal(strided, session.run(wide[::2, :, :, ::2].copy()))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (
            np.zeros((2, 3, SIDE, SIDE)),
            r"is float64 \[2, 3, 16, 16\], expected float32 \[N, 3, 16, 16\] \(NCHW\)",
        ),
        (np.zeros((2, 3, SIDE, SIDE), ">f4"), r"is >f4 \[2, 3, 16, 16\], expected float32"),
        (np.zeros((3, SIDE, SIDE), np.float32), r"is float32 \[3, 16, 16\], expected"),
        (np.zeros((2, SIDE, SIDE, 3), np.float32), r"is float32 \[2, 16, 16, 3\], expected"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), "Session.classify makes such a batch"),
        (np.zeros((0, 3, SIDE, SIDE), np.float32), "is empty, expected .* with N from 1 on"),
        ([[1.0]], "is a list, expected a numpy array .*; use numpy.asarray"),
        (None, "is a NoneType"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_in_words(batch: object, expected: str) -> None:
    backend = Recorder()
    with recorded(backend) as session, pytest.raises(RequestError, match=expected):
        session.run(batch)
    assert backend.sizes == []


def test_a_float_batch_is_refused_by_a_uint8_bundle() -> None:
    session = recorded(Recorder(), tiny_bundle.manifest([], uint8=True))
    with pytest.raises(RequestError, match=r"expected uint8 \[N, 16, 16, 3\] \(NHWC\)"):
        session.run(batch_of(1))


@pytest.mark.parametrize(
    ("limits", "count", "sizes"),
    [
        (None, 100, [100]),
        (BatchRange(min=1, opt=4, max=8), 8, [8]),
        (BatchRange(min=1, opt=4, max=8), 20, [8, 8, 4]),
        (BatchRange(min=4, opt=4, max=8), 3, [4]),
        (BatchRange(min=4, opt=4, max=8), 9, [8, 4]),
        (BatchRange(min=2, opt=2, max=2), 3, [2, 2]),
    ],
)
def test_an_engine_gets_batches_of_sizes_it_takes_and_any_other_backend_the_whole(
    limits: BatchRange | None, count: int, sizes: list[int]
) -> None:
    batch, backend = batch_of(count), Recorder(limits)
    whole = logits_of(Recorder(), batch)
    with recorded(backend) as session:
        assert np.array_equal(session.run(batch), whole)
    assert backend.sizes == sizes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", tiny_bundle.ALL, ids=lambda variant: variant.name)
def test_further_outputs_come_by_name_and_the_logits_stay_what_they_were(
    tmp_path: Path, backend: str, variant: tiny_bundle.Variant
) -> None:
    variants = tuple(dict.fromkeys((tiny_bundle.FP32, variant)))
    folder = tiny_bundle.write(tmp_path / "bundle", variants, further=True)
    batch = batch_of(5)
    graph = ReferenceEvaluator(onnx.load_from_string(tiny_bundle.graph(variant, further=True)))
    expected = dict(zip(("logits", "c2", "embedding"), graph.run(None, {"input": batch}), strict=True))
    with open_session(folder, backend=backend, artifact=variant.name, threads=1) as session:
        assert list(session.run_outputs(batch)) == ["logits", "embedding", "c2"]
        found = session.run_outputs(batch, ("c2", "embedding", "c2"))
        assert list(found) == ["c2", "embedding"]
        assert np.array_equal(session.run_outputs(batch, ["logits"])["logits"], session.run(batch))
        for name, values in (found | {"logits": session.run(batch)}).items():
            assert values.dtype == np.float32
            assert values.shape == expected[name].shape
            error = np.linalg.norm(values - expected[name]) / np.linalg.norm(expected[name])
            assert error < (1e-5 if variant.name == "fp32" else 2e-2), name
        kept = {name: values.copy() for name, values in found.items()}
        session.run_outputs(batch_of(5, seed=1))
        assert all(np.array_equal(found[name], kept[name]) for name in kept), "outputs belong to the caller"


def test_outputs_are_refused_by_names_that_the_bundle_does_not_have() -> None:
    with recorded(Recorder(), tiny_bundle.manifest([], further=True)) as session:
        with pytest.raises(RequestError, match="no output 'c3'; it has logits, embedding, c2"):
            session.run_outputs(batch_of(1), ("c3",))
        with pytest.raises(RequestError, match="names is 'embedding', expected several"):
            session.run_outputs(batch_of(1), "embedding")
        with pytest.raises(RequestError, match="takes arrays in host memory only"):
            session.run_outputs_on_device(batch_of(1), ("embedding",))


def test_further_outputs_are_put_together_from_pieces_too() -> None:
    batch, backend = batch_of(9), Recorder(BatchRange(min=4, opt=4, max=8))
    with recorded(backend, tiny_bundle.manifest([], further=True)) as session:
        found = session.run_outputs(batch, ("embedding", "logits"))
    whole = Recorder().run(batch, ("embedding", "logits"))
    assert [np.array_equal(*pair) for pair in zip(found.values(), whole, strict=True)] == [True, True]
    assert backend.sizes == [8, 4]


def test_logits_of_another_shape_than_promised_are_an_error() -> None:
    backend = Recorder()
    backend.classes = CLASSES + 1
    with (
        recorded(backend) as session,
        pytest.raises(BackendError, match=r"logits \[2, 6\], expected \[2, 5\]"),
    ):
        session.run(batch_of(2))


# Labels


@given(arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_softmax_sums_to_one_and_keeps_the_order_for_any_finite_logits(logits: NDArray[np.float32]) -> None:
    probabilities = softmax(logits)
    assert probabilities.sum() == pytest.approx(1)
    order = np.argsort(logits, kind="stable")
    assert (np.diff(probabilities[order]) >= 0).all()


def test_predictions_are_sorted_and_ties_keep_the_order_of_the_classes() -> None:
    logits = np.array([1, 3, 1, 3, 0], np.float32)
    found = best(logits, LABELS, 4)
    assert [prediction.index for prediction in found] == [1, 3, 0, 2]
    assert [prediction.label for prediction in found] == [LABELS[i] for i in (1, 3, 0, 2)]
    expected = np.exp([3, 3, 1, 1]) / np.exp(logits.astype(float)).sum()
    assert [prediction.probability for prediction in found] == pytest.approx(list(expected))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_no_prediction(value: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        best(np.array([0, value, 0, 0, 0], np.float32), LABELS, 1)


def test_classify_agrees_with_run_for_every_kind_of_image(bundle: Path, tmp_path: Path) -> None:
    pixels = tiny_bundle.images(1)[0]
    path, file = tmp_path / "image.png", io.BytesIO()
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(file, "PNG")
    with open_session(bundle, threads=1) as session:
        found = session.classify([path, str(path), file.getvalue(), Image.fromarray(pixels), pixels], top=3)
        logits = session.run(to_input(pixels[None], session.manifest.preprocessing))[0]
    expected = best(logits, LABELS, 3)
    assert [[p.index for p in row] for row in found] == [[p.index for p in expected]] * 5
    for row in found:
        assert [p.probability for p in row] == pytest.approx([p.probability for p in expected], rel=1e-4)


def test_classify_runs_in_batches_of_the_optimal_size_and_reads_images_as_it_goes() -> None:
    backend = Recorder()
    read: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for index, image in enumerate(tiny_bundle.images(30)):
            read.append(index)
            assert index < 4 * (len(backend.sizes) + 3)  # two batches ahead of the one that runs
            yield image

    with recorded(backend) as session:
        assert len(session.classify(images())) == 30
        assert session.classify([]) == []
    assert backend.sizes == [4] * 7 + [2]
    assert read == list(range(30))


def test_more_labels_than_classes_are_all_the_labels_there_are() -> None:
    with recorded(Recorder()) as session:
        (row,) = session.classify(tiny_bundle.images(1), top=1000)
    assert sorted(prediction.index for prediction in row) == list(range(CLASSES))
    assert all(isinstance(prediction, Prediction) for prediction in row)


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "5"])
def test_a_top_that_is_no_count_is_refused(top: object) -> None:
    with recorded(Recorder()) as session:
        with pytest.raises(RequestError, match=r"top is .*, expected a number from 1 on"):
            session.classify([], top=top)
        with pytest.raises(RequestError, match="top is"):
            session.submit(tiny_bundle.images(1)[0], top=top)


@pytest.mark.parametrize(
    "image",
    [
        "cat.jpg",
        b"\x89PNG",
        io.BytesIO(b"\x89PNG"),
        Path("cat.jpg"),
        np.zeros((SIDE, SIDE, 3), np.uint8),
        Image.new("L", (9, 9)),
        3,
    ],
)
def test_one_image_instead_of_several_is_refused(image: object) -> None:
    with recorded(Recorder()) as session, pytest.raises(RequestError, match="put it in a list"):
        session.classify(image)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = tiny_bundle.images(1)[0]
    with recorded(Recorder()) as session:
        with pytest.raises(ImageError, match=r"absent.jpg"):
            session.classify([good, tmp_path / "absent.jpg"])
        with pytest.raises(ImageError, match="image 1"):
            session.classify([good, b"no image"])


def test_an_error_has_the_place_of_its_image(tmp_path: Path) -> None:
    absent = tmp_path / "absent.jpg"
    with recorded(Recorder()) as session:
        with pytest.raises(ImageError) as caught:
            session.classify([*tiny_bundle.images(6), absent])
        assert (caught.value.index, caught.value.path) == (6, str(absent))
        with pytest.raises(ImageError) as caught:
            session.classify([*tiny_bundle.images(6), b"no image"])
        assert (caught.value.index, caught.value.path) == (6, None)
        error = session.submit(absent).exception(TIMEOUT)
    assert isinstance(error, ImageError)
    assert (error.index, error.path) == (None, str(absent))


def test_bad_images_stand_in_their_places_and_cost_the_others_nothing(tmp_path: Path) -> None:
    good = list(tiny_bundle.images(9))
    mixed = [tmp_path / "a.jpg", *good[:4], b"bad", *good[4:], np.zeros((3, 3), np.float32), "b.png"]
    with recorded(Recorder()) as session:
        expected = session.classify(good)
        found = session.classify(mixed, on_error="return")
        assert session.classify([b"bad"] * 9, on_error="return")[8].index == 8
    errors = {index: row for index, row in enumerate(found) if isinstance(row, ImageError)}
    assert [(index, error.index, error.path) for index, error in errors.items()] == [
        (0, 0, str(tmp_path / "a.jpg")),
        (5, 5, None),
        (11, 11, None),
        (12, 12, "b.png"),
    ]
    assert [row for row in found if isinstance(row, list)] == expected


def test_logits_that_are_not_finite_concern_their_image_alone() -> None:
    class Overflowing(Recorder):
        def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
            (logits,) = super().run(batch, outputs)
            logits[batch.reshape(len(batch), -1).min(axis=1) > 2] = np.nan
            return (logits,)

    images = tiny_bundle.images(4) // 2
    images[2] = 255
    backend = Overflowing()
    with recorded(backend) as session:
        found = session.classify(images, on_error="return")
        futures = [session.submit(image) for image in images]
        errors = [future.exception(TIMEOUT) for future in futures]
    assert [type(row) for row in found] == [list, list, BackendError, list]
    assert found[2].index == 2
    assert [type(error) for error in errors] == [type(None), type(None), BackendError, type(None)]


def test_another_on_error_is_refused() -> None:
    with recorded(Recorder()) as session, pytest.raises(RequestError, match="expected 'raise' or 'return'"):
        session.classify([], on_error="ignore")


def test_a_stream_without_end_is_classified_as_it_comes_and_leaves_no_thread() -> None:
    images = tiny_bundle.images(10)
    before = threading.active_count()
    with recorded(Recorder()) as session:
        expected = session.classify(images)
        stream = session.stream(itertools.cycle(images))
        assert list(itertools.islice(stream, 25)) == [*expected, *expected, *expected[:5]]
        stream.close()
        assert threading.active_count() == before


# What images come as


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("uint8", [False, True])
def test_bgr_frames_give_the_labels_of_the_rgb_picture_wherever_they_are_taken(
    channels: int, uint8: bool
) -> None:
    rgb = np.dstack([tiny_bundle.images(1)[0], np.full((SIDE, SIDE), 99, np.uint8)])[:, :, :channels]
    bgr = rgb[:, :, [2, 1, 0, 3][:channels]]
    with recorded(Weighted(), tiny_bundle.manifest([], uint8=uint8)) as session:
        expected = session.classify([rgb], color="rgb")
        assert session.classify([bgr]) != expected
        assert session.classify([bgr], color="bgr") == expected
        assert [session.submit(bgr, color="bgr").result(TIMEOUT)] == expected
        assert [asyncio.run(session.aclassify(bgr, color="bgr"))] == expected
        assert list(session.stream([bgr], color="bgr")) == expected
        assert np.array_equal(session.preprocess(bgr, color="bgr"), session.preprocess(rgb))


def test_a_color_order_that_does_not_exist_is_refused_before_any_image_is_read() -> None:
    with recorded(Recorder()) as session:
        for call in (
            session.submit,
            session.preprocess,
            lambda image, color: session.classify([image], color=color),
        ):
            with pytest.raises(RequestError, match="color is 'grb', expected 'rgb', or 'bgr'"):
                call("absent.jpg", color="grb")


def test_frames_of_different_sizes_and_layouts_make_one_batch() -> None:
    draw = np.random.default_rng(0)
    shapes = [(20, 30), (16, 16, 1), (40, 17, 3), (16, 31, 4)]
    frames = [draw.integers(0, 256, shape, np.uint8) for shape in shapes]
    backend = Weighted()
    with recorded(backend) as session:
        together = session.classify(frames)
        assert backend.sizes == [4]
        assert together == [session.classify([frame])[0] for frame in frames]
        gray = session.classify([frames[1], frames[1][:, :, 0], frames[1].repeat(3, axis=2)])
    assert gray[0] == gray[1] == gray[2]


class DlpackArray:
    """An array of another library, which has nothing in common with NumPy's but the protocol."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array, self.shape, self.device = array, array.shape, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __iter__(self) -> Iterator[DlpackArray]:
        return map(DlpackArray, self.array)


def test_arrays_of_other_libraries_are_read_from_host_memory() -> None:
    images = tiny_bundle.images(3)
    with recorded(Recorder()) as session:
        expected = session.classify(images)
        assert session.classify([DlpackArray(image) for image in images]) == expected
        assert session.classify(DlpackArray(images)) == expected
        with pytest.raises(RequestError, match="put it in a list"):
            session.classify(DlpackArray(images[0]))
        with pytest.raises(ImageError, match="give the array on the CPU"):
            session.classify([DlpackArray(images[0], device=2)])
        with pytest.raises(ImageError, match=r"is float32 \[16, 16, 3\], expected uint8"):
            session.classify([DlpackArray(images[0].astype(np.float32))])


def test_what_preprocess_returns_is_what_run_takes(bundle: Path, uint8_bundle: Path) -> None:
    images = tiny_bundle.images(3)
    for path in (bundle, uint8_bundle):
        with open_session(path, precision="fp32", threads=1) as session:
            batch = np.concatenate([session.preprocess(Image.fromarray(image)) for image in images])
            logits = session.run(batch)
            assert [row[0].index for row in session.classify(images)] == list(logits.argmax(axis=1))


def test_labels_are_the_names_of_the_classes() -> None:
    with recorded(Recorder()) as session:
        assert session.labels == LABELS


def test_warming_up_runs_what_single_requests_and_full_batches_will() -> None:
    backend = Recorder()
    with recorded(backend) as session:
        session.warmup()
    assert backend.sizes == [1, 4]


# Micro-batched requests


@pytest.mark.parametrize("backend", BACKENDS)
def test_submitted_images_get_their_own_labels_from_any_thread(bundle: Path, backend: str) -> None:
    images = tiny_bundle.images(40)
    with open_session(bundle, backend=backend, precision="fp32", threads=1) as session:
        expected = session.classify(images, top=2)
        with ThreadPoolExecutor(8) as pool:
            futures = list(pool.map(lambda image: session.submit(image, top=2), images))
        found = [future.result(TIMEOUT) for future in futures]
    assert [[p.index for p in row] for row in found] == [[p.index for p in row] for row in expected]
    np.testing.assert_allclose(
        [[p.probability for p in row] for row in found],
        [[p.probability for p in row] for row in expected],
        rtol=1e-4,
    )


def test_a_bad_image_fails_its_own_future_and_no_other() -> None:
    backend = Recorder()
    with recorded(backend) as session:
        futures = [
            session.submit(image) for image in (*tiny_bundle.images(2), b"bad", *tiny_bundle.images(2))
        ]
        with pytest.raises(ImageError):
            futures.pop(2).result(TIMEOUT)
        assert all(len(future.result(TIMEOUT)) == CLASSES for future in futures)
    assert sum(backend.sizes) == 4


def test_requests_with_different_tops_share_a_batch() -> None:
    backend = Recorder()
    backend.go.clear()
    with recorded(backend) as session:
        first = session.submit(tiny_bundle.images(1)[0])
        assert backend.entered.wait(TIMEOUT)
        futures = [session.submit(tiny_bundle.images(1)[0], top=top) for top in (1, 2, 3)]
        backend.go.set()
        assert [len(future.result(TIMEOUT)) for future in (first, *futures)] == [5, 1, 2, 3]
    assert backend.sizes == [1, 3]


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(timeout: object) -> None:
    with (
        recorded(Recorder()) as session,
        pytest.raises(RequestError, match=r"timeout is .*, expected seconds"),
    ):
        session.submit(tiny_bundle.images(1)[0], timeout=timeout)


def test_a_request_that_times_out_or_is_canceled_costs_the_others_nothing() -> None:
    backend = Recorder()
    backend.go.clear()
    image = tiny_bundle.images(1)[0]
    with recorded(backend) as session:
        first = session.submit(image)
        assert backend.entered.wait(TIMEOUT)
        late, canceled, last = (
            session.submit(image, timeout=0.01),
            session.submit(image),
            session.submit(image),
        )
        assert canceled.cancel()
        with pytest.raises(RequestTimeoutError):
            late.result()
        backend.go.set()
        assert first.result(TIMEOUT) == last.result(TIMEOUT)
    assert backend.sizes == [1, 1]


def test_a_full_queue_rejects_where_that_was_asked_for() -> None:
    backend = Recorder()
    backend.go.clear()
    image = tiny_bundle.images(1)[0]
    model = LoadedModel(
        tiny_bundle.manifest([]), backend, CHOICE, (), BatchingSpec(queue_size=1, when_full="reject")
    )
    with Session(model, lambda: model, "nowhere") as session:
        futures = [session.submit(image)]
        assert backend.entered.wait(TIMEOUT)
        futures.append(session.submit(image))
        with pytest.raises(QueueFullError):
            session.submit(image)
        backend.go.set()
        assert [len(future.result(TIMEOUT)) for future in futures] == [CLASSES] * 2


# Requests of asyncio


def test_tasks_share_batches_with_each_other_and_get_their_own_labels(bundle: Path) -> None:
    images = tiny_bundle.images(20)

    async def ask_all(session: Session) -> list[list[Prediction]]:
        return await asyncio.gather(*(session.aclassify(image, top=2) for image in images))

    with open_session(bundle, precision="fp32", threads=1) as session:
        found, expected = asyncio.run(ask_all(session)), session.classify(images, top=2)
    assert [[p.index for p in row] for row in found] == [[p.index for p in row] for row in expected]


def test_the_errors_of_a_request_are_raised_in_its_task() -> None:
    session = recorded(Recorder())
    with pytest.raises(ImageError):
        asyncio.run(session.aclassify(b"bad"))
    with pytest.raises(RequestError, match="timeout is 0"):
        asyncio.run(session.aclassify(b"bad", timeout=0))
    session.close()
    with pytest.raises(SessionClosedError):
        asyncio.run(session.aclassify(tiny_bundle.images(1)[0]))


def test_a_task_that_times_out_or_is_canceled_takes_its_request_with_it() -> None:
    backend = Recorder()
    backend.go.clear()
    image = tiny_bundle.images(1)[0]

    async def scenario(session: Session) -> list[Prediction]:
        first = asyncio.create_task(session.aclassify(image))
        while not backend.entered.is_set():
            await asyncio.sleep(0.001)
        canceled = asyncio.create_task(session.aclassify(image))
        await asyncio.sleep(0.05)
        canceled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await canceled
        with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
            await session.aclassify(image, timeout=0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.aclassify(image), 0.05)
        backend.go.set()
        return await first

    with recorded(backend) as session:
        assert len(asyncio.run(scenario(session))) == CLASSES
    assert backend.sizes == [1]


# Closing


def test_closing_without_draining_cancels_what_does_not_run_yet() -> None:
    backend = Recorder()
    backend.go.clear()
    session = recorded(backend)
    first, *others = tiny_bundle.images(10)
    futures = [session.submit(first)]
    assert backend.entered.wait(TIMEOUT)
    futures += [session.submit(image) for image in others]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(session.close, drain=False)
        assert wait(futures[1:], TIMEOUT).not_done == set()
        backend.go.set()
        closing.result(TIMEOUT)
    assert len(futures[0].result(0)) == CLASSES
    assert all(future.cancelled() for future in futures[1:])


def test_closing_completes_what_was_submitted() -> None:
    backend = Recorder()
    session = recorded(backend)
    futures = [session.submit(image) for image in tiny_bundle.images(10)]
    session.close()
    assert all(future.done() for future in futures)
    assert all(future.exception() is None for future in futures)
    assert backend.closed == 1


def test_a_closed_session_refuses_everything_and_closes_again_without_harm() -> None:
    backend = Recorder()
    session = recorded(backend)
    session.close()
    session.close()
    for call in (
        lambda: session.run(batch_of(1)),
        lambda: session.classify(tiny_bundle.images(1)),
        lambda: session.submit(tiny_bundle.images(1)[0]),
    ):
        with pytest.raises(SessionClosedError, match="is closed"):
            call()
    assert backend.closed == 1
    assert repr(session).endswith("closed>")


def test_leaving_the_block_closes_also_after_an_error() -> None:
    backend = Recorder()
    with pytest.raises(ZeroDivisionError), recorded(backend):
        raise ZeroDivisionError
    assert backend.closed == 1


def test_closing_waits_for_the_call_that_is_running() -> None:
    backend = Recorder()
    backend.go.clear()
    session = recorded(backend)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(session.run, batch_of(2))
        assert backend.entered.wait(TIMEOUT)
        closing = pool.submit(session.close)
        time.sleep(0.05)
        assert not closing.done()
        backend.go.set()
        closing.result(TIMEOUT)
        assert running.result(TIMEOUT).shape == (2, CLASSES)
    assert (backend.closed, backend.closed_while_running) == (1, False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_under_load_gives_right_logits_or_a_closed_session(bundle: Path, backend: str) -> None:
    batch = batch_of(2)
    expected = reference(batch)
    for _ in range(5):
        session = open_session(bundle, backend=backend, precision="fp32", threads=1)
        started = threading.Barrier(5)

        def work(session: Session = session, started: threading.Barrier = started) -> int:
            started.wait(TIMEOUT)
            for done in range(10_000):
                try:
                    logits = session.run(batch)
                except SessionClosedError:
                    return done
                np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
            raise AssertionError("the session was never closed")

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work) for _ in range(4)]
            started.wait(TIMEOUT)
            time.sleep(0.01)
            session.close()
            assert all(worker.result(TIMEOUT) >= 0 for worker in workers)


def test_a_callback_may_close_the_session() -> None:
    backend = Recorder()
    session = recorded(backend)
    closed = threading.Event()

    def close(_: object) -> None:
        session.close()
        closed.set()

    session.submit(tiny_bundle.images(1)[0]).add_done_callback(close)
    assert closed.wait(TIMEOUT)
    assert backend.closed == 1


@pytest.mark.parametrize("submitted", [False, True], ids=["only run", "submitted"])
def test_a_session_that_is_dropped_without_closing_frees_its_engine(submitted: bool) -> None:
    backend = Recorder()
    session = recorded(backend)
    if submitted:
        session.submit(tiny_bundle.images(1)[0]).result(TIMEOUT)
    else:
        session.run(batch_of(1))
    assert backend.closed == 0
    del session
    gc.collect()
    deadline = time.monotonic() + TIMEOUT
    while not backend.closed and time.monotonic() < deadline:
        time.sleep(0.001)
    assert backend.closed == 1


def test_a_session_that_was_closed_and_then_dropped_is_closed_once() -> None:
    backend = Recorder()
    session = recorded(backend)
    session.submit(tiny_bundle.images(1)[0])
    session.close()
    del session
    gc.collect()
    assert backend.closed == 1


def test_what_the_engine_notes_after_opening_is_seen() -> None:
    backend = Recorder()
    chosen = Considered(
        artifact="fp32", backend="b", provider="p", precision=Precision.FP32, outcome="chosen", reason="first"
    )
    choice = Choice(artifact="fp32", backend="b", provider="p", device="gpu:0", precision=Precision.FP32)
    model = LoadedModel(tiny_bundle.manifest([]), backend, choice, (chosen,))
    with Session(model, lambda: model, "nowhere") as session:
        assert session.choice.notes == ("recorded",)
        backend.notes = ("recorded", "runs without CUDA graphs: refused")
        assert session.choice.notes == backend.notes
        assert session.trace[0].reason == "first; recorded; runs without CUDA graphs: refused"


def test_a_request_of_a_forgotten_session_is_still_answered() -> None:
    backend = Recorder()
    backend.go.clear()
    before = threading.active_count()
    future = recorded(backend).submit(tiny_bundle.images(1)[0])
    gc.collect()
    backend.go.set()
    assert len(future.result(TIMEOUT)) == CLASSES
    deadline = time.monotonic() + TIMEOUT
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_a_program_that_ends_without_closing_answers_its_requests_and_exits(bundle: Path) -> None:
    program = (
        "import sys, numpy\n"
        "from resnet_export.runtime import open_session\n"
        "session = open_session(sys.argv[1], threads=1)\n"
        f"image = numpy.zeros(({SIDE}, {SIDE}, 3), numpy.uint8)\n"
        "for _ in range(5):\n"
        "    session.submit(image).add_done_callback(lambda future: print(len(future.result()), flush=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, bundle], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["5"] * 5, "")


# Other processes

IN_A_FORK = """
import os, signal, sys, numpy
from resnet_export.runtime import SessionClosedError, open_session
path, backend = sys.argv[1:]
session = open_session(path, backend=backend, device="cpu", threads=2)
image = numpy.zeros((16, 16, 3), numpy.uint8)
batch = numpy.zeros((1, 3, 16, 16), numpy.float32)
served = session._served
held = served.current.batcher._changed
for used in (session.run, session.classify, session.submit):
    session.submit(image).result(20)
    with served._changed, held:  # as another thread may hold them at the fork
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for ever
        try:
            used(batch if used == session.run else [image] if used == session.classify else image)
        except SessionClosedError as error:
            print(error, flush=True)
        session.close()
        with open_session(path, backend=backend, device="cpu", threads=1) as own:
            print(own.run(batch).shape, flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
print(len(session.submit(image).result(20)))
session.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_is_refused_in_words_for_every_call_and_opens_a_session_of_its_own(
    bundle: Path, backend: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_A_FORK, bundle, backend],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *forks, last = done.stdout.splitlines()
    assert len(forks) == 9
    for refusal, shape, status in zip(forks[::3], forks[1::3], forks[2::3], strict=True):
        assert refusal.endswith("call open_session() in each worker process")
        assert (shape, status) == (f"(1, {CLASSES})", "0")
    assert last == str(CLASSES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_that_ends_does_not_close_what_belongs_to_its_parent() -> None:
    program = (
        "import os, sys\n"
        "from resnet_export.runtime.batching import MicroBatcher\n"
        "batcher = MicroBatcher(lambda items: items, max_batch=2)\n"
        "batcher.submit(1).result(20)\n"
        "with batcher._changed:\n"
        "    child = os.fork()\n"
        "if child == 0:\n"
        "    import signal; signal.alarm(20)\n"
        "    sys.exit(3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), batcher.submit(2).result(20))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["3", "2"], done.stderr


@pytest.mark.parametrize(
    "duplicate", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda call: call.__name__
)
def test_a_session_cannot_be_copied_to_another_process_and_says_what_to_send_instead(
    duplicate: Callable[[Session], object],
) -> None:
    with recorded(Recorder()) as session:
        with pytest.raises(RequestError, match="give the path of the bundle to the other process"):
            duplicate(session)
        assert session.run(batch_of(1)).shape == (1, CLASSES)


# Opening


def test_without_a_wish_the_fastest_vouched_artifact_runs_and_the_trace_says_why(tmp_path: Path) -> None:
    if not {"avx512_vnni", "avx_vnni", "amx_int8", "asimd"} & set(probe().cpu_features):
        pytest.skip("INT8 is rejected on a CPU without VNNI")
    parity = {"int8.cpu": (tiny_bundle.passed(INT8_CPU, "openvino", "CPU"),)}
    path = tiny_bundle.write(tmp_path / "bundle", tiny_bundle.ALL, parity=parity)
    with open_session(path, device="cpu", threads=1) as session:
        assert str(session.choice) == "int8.cpu on openvino (CPU) in int8"
        assert session.manifest.artifact("int8.cpu").precision == session.choice.precision
        outcomes = {(item.artifact, item.backend, item.precision): item.outcome for item in session.trace}
    assert outcomes["int8.cpu", "openvino", "int8"] == "chosen"
    assert outcomes["fp32", "openvino", "fp32"] == "usable"
    assert outcomes["fp32", "openvino", "bf16"] == "skipped"
    assert outcomes["fp16", "openvino", "fp16"] == "rejected"


def test_a_setting_that_departs_from_the_default_is_in_choice_and_trace(bundle: Path) -> None:
    with open_session(bundle, backend="onnxruntime", artifact="int8", device="cpu", threads=1) as session:
        assert session.choice.simulated
        (chosen,) = (item for item in session.trace if item.outcome == "chosen")
        for text in (*session.choice.notes, chosen.reason):
            assert "WeightBiasQuantization is off" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"backend": "tensorflow"}, "no backend 'tensorflow'"),
        ({"precision": "fp64"}, "no precision 'fp64'"),
        ({"device": "npu"}, "no device 'npu'"),
    ],
)
def test_a_wrong_argument_is_a_request_error(
    bundle: Path, arguments: dict[str, object], expected: str
) -> None:
    with pytest.raises(RequestError, match=expected):
        open_session(bundle, **arguments)


def test_an_artifact_that_does_not_exist_is_named_beside_those_that_do(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no artifact 'fp8'; it has fp32, fp16, int8, int8\.cpu"):
        open_session(bundle, artifact="fp8")


def test_what_is_no_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_session(tmp_path / "absent")
    (tmp_path / "manifest.json").write_bytes(b'{"schema": 99}')
    with pytest.raises(SchemaError, match="schema 99"):
        open_session(tmp_path)


def test_backend_tensorrt_without_an_engine_raises_with_the_trace(bundle: Path) -> None:
    with pytest.raises(NoBackendError, match=r"backend='tensorrt'.*resnet-export build") as caught:
        open_session(bundle, backend="tensorrt")
    assert {item.outcome for item in caught.value.trace} == {"skipped"}
    assert "\n" not in str(caught.value)


def test_a_changed_artifact_is_never_parsed_and_never_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tiny_bundle.write(tmp_path / "bundle", [FP32, tiny_bundle.FP16])
    graph = path / "model.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    monkeypatch.setattr(
        loaded_model_module, "open_backend", lambda *_: pytest.fail("the bytes reached a backend")
    )
    for request in ({}, {"backend": "openvino"}, {"artifact": "fp32"}):
        with pytest.raises(IntegrityError, match="sha256"):
            open_session(path, **request)


@pytest.fixture
def half_broken(tmp_path: Path) -> Path:
    """INT8 for CPUs is vouched for and its hash is right, but it is no graph; fp32 is sound."""
    parity = {"int8.cpu": (tiny_bundle.passed(INT8_CPU, "openvino", "CPU"),)}
    return tiny_bundle.write(
        tmp_path / "bundle",
        [FP32, INT8_CPU],
        graphs={"int8.cpu": tiny_bundle.graph_that_engines_refuse()},
        parity=parity,
    )


def test_what_cannot_be_opened_is_passed_over_with_its_error_in_the_trace(half_broken: Path) -> None:
    with open_session(half_broken, device="cpu", threads=1) as session:
        assert session.choice.artifact == "fp32"
        broken = [
            item
            for item in session.trace
            if item.artifact == "int8.cpu" and item.provider in ("CPU", "CPUExecutionProvider")
        ]
    if {"avx512_vnni", "avx_vnni", "amx_int8", "asimd"} & set(probe().cpu_features):
        assert all("could not be opened: " in item.reason for item in broken)
    assert {item.outcome for item in broken if item.backend in BACKENDS} == {"rejected"}


@pytest.mark.parametrize(
    "arguments", [{"artifact": "int8.cpu"}, {"backend": "openvino", "precision": "int8"}]
)
def test_what_was_asked_for_by_name_and_cannot_be_opened_raises(
    half_broken: Path, arguments: dict[str, object]
) -> None:
    with pytest.raises(BackendError, match=r"cannot open artifact 'int8.cpu'") as caught:
        open_session(half_broken, device="cpu", **arguments)
    assert not isinstance(caught.value, NoBackendError)


def test_when_nothing_opens_every_error_is_told(tmp_path: Path) -> None:
    path = tiny_bundle.write(tmp_path / "bundle", graphs={"fp32": tiny_bundle.graph_that_engines_refuse()})
    with pytest.raises(NoBackendError, match=r"ONNX Runtime cannot open.*OpenVINO cannot open") as caught:
        open_session(path, device="cpu")
    assert isinstance(caught.value.__cause__, BackendError)
    assert "chosen" not in {item.outcome for item in caught.value.trace}


def test_a_gpu_that_does_not_answer_is_never_a_silent_cpu_run(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    real = probe()
    ort_gpu = Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1")
    others = tuple(package for package in real.packages if package.module != "onnxruntime")
    gpu = Gpu(index=0, name="NVIDIA L4", compute_capability="8.9", memory=24 << 30)
    facts = msgspec.structs.replace(real, gpus=(gpu,), gpu_note=None, packages=(ort_gpu, *others))
    monkeypatch.setattr(session_module, "probe", lambda: facts)
    with open_session(bundle, precision="fp32", threads=1) as session:
        assert session.choice.device == "cpu"
        (cuda,) = (item for item in session.trace if item.artifact == "fp32" and "CUDA" in item.provider)
        assert cuda.reason.startswith("could not be opened: ")
    with pytest.raises(BackendError, match="device='cpu' keeps away from the GPU"):
        open_session(bundle, backend="onnxruntime", precision="fp32")
    with pytest.raises(NoBackendError, match="could not be opened"):
        open_session(bundle, precision="fp32", device=0)
    with open_session(bundle, backend="onnxruntime", precision="fp32", device="cpu", threads=1) as session:
        assert session.choice.provider == "CPUExecutionProvider"


@pytest.mark.parametrize(("provider", "precision"), [("another", "fp32"), ("CPUExecutionProvider", "bf16")])
def test_a_backend_that_runs_something_else_than_asked_is_closed_and_refused(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, provider: str, precision: str
) -> None:
    backend = Recorder()
    backend.provider, backend.precision = provider, Precision(precision)

    def pretend(route: Route, request: OpenRequest) -> Recorder:
        return backend

    monkeypatch.setattr(loaded_model_module, "open_backend", pretend)
    with pytest.raises(BackendError, match=f"with {provider} in {precision}, it was asked for"):
        open_session(bundle, backend="onnxruntime", artifact="fp32", device="cpu")
    assert backend.closed == 1


def test_an_installation_that_is_likely_to_misbehave_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    facts = msgspec.structs.replace(probe(), warnings=("two builds are installed",))
    monkeypatch.setattr(session_module, "probe", lambda: facts)
    with pytest.warns(RuntimeWarning, match="two builds are installed") as caught:
        open_session(bundle, threads=1).close()
    assert caught[0].filename == __file__


def test_threads_without_effect_are_said_to_have_none(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    gpu = Gpu(index=0, name="NVIDIA L4", compute_capability="8.9", memory=24 << 30)
    ort_gpu = Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1")
    facts = HostFacts(system="linux", machine="x86_64", cpus=1, packages=(ort_gpu,), gpus=(gpu,))
    backend = Recorder()
    backend.provider = "CUDAExecutionProvider"
    monkeypatch.setattr(session_module, "probe", lambda: facts)
    monkeypatch.setattr(loaded_model_module, "open_backend", lambda *_: backend)
    with open_session(bundle, threads=2) as session:
        assert session.choice.notes == ("recorded", "threads=2 has no effect on a GPU")
        assert session.choice.device == "gpu:0"


def test_a_session_says_what_it_is(bundle: Path) -> None:
    with open_session(bundle, backend="openvino", precision="fp32", threads=1) as session:
        assert repr(session) == (
            "<Session tiny: fp32 on openvino (CPU) in fp32; takes float32 [N, 3, 16, 16]; open>"
        )


def test_opening_and_running_raises_no_warning(bundle: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for backend in BACKENDS:
            with open_session(
                bundle, backend=backend, artifact=INT8.name, device="cpu", threads=1
            ) as session:
                session.classify(tiny_bundle.images(1))
    assert caught == []
