"""Comparing arrays and callables: what is counted, what is kept, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_export.runtime.errors import BackendError, DatasetError, RequestError
from resnet_export.runtime.parity.measure.comparison import (
    Batch,
    Comparison,
    compare,
    compare_all,
    printable,
)

Array = NDArray[np.float64]


def draw(
    images: int, classes: int = 10, noise: float = 1.0, seed: int = 0
) -> tuple[Array, Array, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(images, classes))
    labels = np.where(
        rng.uniform(size=images) < 0.8, reference.argmax(axis=1), rng.integers(0, classes, images)
    )
    return reference, reference + noise * rng.normal(size=reference.shape), labels


def rows(reference: Array, sizes: list[int], labels: NDArray[np.int64] | None = None) -> Iterator[Batch]:
    """Batches whose images are row numbers, so that a runner is an index into an array."""
    start = 0
    for size in sizes:
        if start >= len(reference):
            return
        part = np.arange(start, min(start + size, len(reference)))
        yield Batch(part, None if labels is None else labels[part], tuple(f"{i}.jpg" for i in part))
        start += size


def streamed(reference: Array, candidate: Array, batches: Iterable[Batch], **options: int) -> Comparison:
    found = compare_all(reference.__getitem__, {"candidate": candidate.__getitem__}, batches, **options)[
        "candidate"
    ]
    assert isinstance(found, Comparison)
    return found


def test_arrays_and_callables_give_the_same_comparison() -> None:
    b, a, labels = draw(600)
    names = tuple(f"{i}.jpg" for i in range(600))
    assert compare(b, a, labels=labels, names=names) == streamed(b, a, rows(b, [600], labels))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 60), seed=st.integers(0, 1000))
def test_counts_and_flips_do_not_depend_on_the_batch_size(size: int, seed: int) -> None:
    b, a, labels = draw(60, seed=seed)
    whole = streamed(b, a, rows(b, [60], labels))
    parts = streamed(b, a, rows(b, [size] * 60, labels))
    assert parts.flips == whole.flips
    assert parts.flip_count == whole.flip_count
    assert parts.top1_interval == whole.top1_interval
    assert parts.labeled is not None
    assert whole.labeled is not None
    assert parts.labeled.paired == whole.labeled.paired
    assert parts.labeled.ece_candidate == pytest.approx(whole.labeled.ece_candidate, abs=1e-12)


def test_labels_give_accuracies_and_a_paired_drop() -> None:
    b, a, labels = draw(500)
    found = compare(b, a, labels=labels).labeled
    assert found is not None
    right_b, right_a = b.argmax(axis=1) == labels, a.argmax(axis=1) == labels
    assert found.reference_accuracy == right_b.mean()
    assert found.candidate_accuracy == right_a.mean()
    assert found.drop_points == pytest.approx(100 * (right_b.mean() - right_a.mean()))
    assert (found.only_reference_right, found.only_candidate_right) == (
        (right_b & ~right_a).sum(),
        (~right_b & right_a).sum(),
    )
    assert found.drop_interval_points.low < found.drop_points < found.drop_interval_points.high
    assert found.distinguishable
    assert found.p_value < 0.05


def test_the_same_logits_lose_nothing_that_could_be_distinguished() -> None:
    b, _, labels = draw(500)
    found = compare(b, b, labels=labels).labeled
    assert found is not None
    assert (found.drop_points, found.p_value, found.distinguishable) == (0, 1, False)
    assert found.ece_reference == found.ece_candidate


def test_without_labels_there_is_no_accuracy() -> None:
    b, a, _ = draw(20)
    assert compare(b, a).labeled is None


def test_the_first_flips_are_kept_by_name_and_all_are_counted() -> None:
    b, a, labels = draw(300)
    found = streamed(b, a, rows(b, [37] * 9, labels), keep=5)
    changed = np.flatnonzero(b.argmax(axis=1) != a.argmax(axis=1))
    assert found.flip_count == len(changed) > 5
    assert [flip.index for flip in found.flips] == changed[:5].tolist()
    first, i = found.flips[0], changed[0]
    assert first.name == f"{i}.jpg"
    assert (first.reference, first.candidate, first.label) == (b[i].argmax(), a[i].argmax(), labels[i])
    assert first.margin == b[i].max() - b[i, a[i].argmax()]


def test_a_flip_without_a_name_is_called_by_its_number() -> None:
    assert [flip.name for flip in compare(np.eye(2), np.eye(2)[::-1]).flips] == ["image 0", "image 1"]


def test_a_flip_says_whether_the_reference_was_undecided() -> None:
    b = np.array([[1.0, 0.9], [3.0, 0.0]])
    flips = compare(b, b[:, ::-1], near_tie=0.2).flips
    assert [flip.near_tie for flip in flips] == [True, False]


def test_an_image_with_non_finite_logits_is_wrong_and_flipped_to_no_class() -> None:
    b, a, _ = draw(10, noise=0)
    a[3] = np.nan
    found = compare(b, a, labels=b.argmax(axis=1))
    assert [(flip.index, flip.candidate, flip.margin) for flip in found.flips] == [(3, -1, None)]
    assert found.labeled is not None
    assert found.labeled.only_reference_right == 1


def test_names_that_are_not_text_are_made_printable() -> None:
    broken = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    flips = compare(np.eye(2), np.eye(2)[::-1], names=(broken, "a\x1b[31m\n.jpg")).flips
    assert [flip.name for flip in flips] == ["caf\\udce9.jpg", "a\\x1b[31m\\n.jpg"]
    for flip in flips:
        flip.name.encode("utf-8")


def test_letters_of_every_script_stay_as_they_are() -> None:
    assert printable("Füße 猫.jpg") == "Füße 猫.jpg"


def test_kappa_between_reference_and_labels_tells_labels_that_belong_from_labels_that_do_not() -> None:
    b, _, labels = draw(1000)
    fits = compare(b, b, labels=labels).labeled
    shifted = compare(b, b, labels=(labels + 1) % 10).labeled
    assert fits is not None
    assert shifted is not None
    assert fits.reference_kappa is not None
    assert fits.reference_kappa > 0.7
    assert shifted.reference_kappa_interval is not None
    assert shifted.reference_kappa_interval.high < 0.1


def test_kappa_is_undefined_where_there_is_one_class_only() -> None:
    found = compare(np.eye(3)[[0, 0]], np.eye(3)[[0, 0]], labels=[0, 0]).labeled
    assert found is not None
    assert found.reference_kappa is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10], "image 2 has label 10, the model has classes 0 to 9"),
        ([0, -1, 2], "image 1 has label -1"),
        ([0, 1], r"shape \[2\] and type int64 for 3 images"),
        ([0.0, 1.0, 2.0], "type float64"),
        ([[0], [1], [2]], r"shape \[3, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_image(labels: list[object], message: str) -> None:
    b, a, _ = draw(3)
    with pytest.raises(DatasetError, match=message):
        compare(b, a, labels=np.array(labels))


def test_a_wrong_label_in_a_later_batch_is_named_by_its_place_in_the_data() -> None:
    b, a, labels = draw(9)
    labels[7] = 99
    with pytest.raises(DatasetError, match="image 7 has label 99"):
        streamed(b, a, rows(b, [4, 4, 4], labels))


def test_labels_on_some_batches_only_are_refused() -> None:
    b, a, labels = draw(4)
    batches = [Batch(np.arange(2), labels[:2]), Batch(np.arange(2, 4))]
    with pytest.raises(DatasetError, match="label all of them or none"):
        streamed(b, a, batches)


def test_no_images_are_no_comparison() -> None:
    with pytest.raises(RequestError, match="not empty"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(DatasetError, match="no images"):
        compare_all(lambda x: x, {"a": lambda x: x}, [])


@pytest.mark.parametrize("extra", [1, -1])
def test_arrays_of_different_lengths_are_refused(extra: int) -> None:
    b, a, _ = draw(5)
    with pytest.raises(RequestError, match="compare logits of the same images"):
        compare(b, np.resize(a, (5 + extra, 10)))


def test_a_candidate_that_is_the_reference_does_not_run_twice() -> None:
    b, _, _ = draw(6)
    seen: list[int] = []

    def reference(part: NDArray[np.int64]) -> Array:
        seen.extend(part.tolist())
        return b[part]

    found = compare_all(reference, {"itself": reference}, rows(b, [4, 2]))["itself"]
    assert isinstance(found, Comparison)
    assert (found.figures.top1, seen) == (6, list(range(6)))


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (2,)])
def test_a_candidate_with_logits_of_another_shape_is_at_fault_and_named(shape: tuple[int, ...]) -> None:
    b = np.zeros((2, 4))
    found = compare_all(lambda _: b, {"int8 on openvino": lambda _: np.zeros(shape)}, [Batch(np.zeros(2))])
    error = found["int8 on openvino"]
    assert isinstance(error, BackendError)
    assert "int8 on openvino gave logits of shape" in str(error)


def test_a_candidate_that_fails_half_way_leaves_the_others_alone() -> None:
    b, a, _ = draw(8)
    calls = []

    def failing(part: NDArray[np.int64]) -> Array:
        calls.append(part)
        if len(calls) == 2:
            raise BackendError("out of memory")
        return a[part]

    found = compare_all(b.__getitem__, {"bad": failing, "good": a.__getitem__}, rows(b, [2] * 4))
    assert isinstance(found["bad"], BackendError)
    assert len(calls) == 2
    assert found["good"] == streamed(b, a, rows(b, [2] * 4))


def test_a_reference_that_fails_ends_the_comparison() -> None:
    def failing(_: object) -> Array:
        raise BackendError("out of memory")

    with pytest.raises(BackendError, match="out of memory"):
        compare_all(failing, {}, [Batch(np.zeros(1))])


def test_every_image_goes_through_the_reference_once() -> None:
    b, a, _ = draw(6)
    seen: list[int] = []

    def reference(part: NDArray[np.int64]) -> Array:
        seen.extend(part.tolist())
        return b[part]

    compare_all(reference, {"x": a.__getitem__, "y": a.__getitem__}, rows(b, [4, 2]))
    assert seen == list(range(6))


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    b = np.random.default_rng(0).normal(size=(32, 200))
    labels = b.argmax(axis=1)

    def peak(batches: int) -> int:
        stream = (Batch(np.arange(32), labels, ("x",) * 32) for _ in range(batches))
        tracemalloc.start()
        compare_all(lambda _: b, {"x": lambda _: b[::-1]}, stream)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)  # imports and caches
    assert peak(30) < 1.1 * peak(3)
