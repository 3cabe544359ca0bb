"""What labels add to a comparison: who is right, whether accuracy was lost, whether the labels fit at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.parity.measure.label_order import exchanged
from resnet_export.runtime.parity.measure.metrics import Predictions, inner, log_softmax
from resnet_export.runtime.parity.measure.statistics import (
    CONFIDENCE,
    Interval,
    Paired,
    Reliability,
    drop_interval,
    kappa,
    mcnemar,
    wilson,
)


class Labeled(Struct, frozen=True):
    """What labels add. Accuracies are fractions, drops percentage points (positive: accuracy was lost).

    `p_value` is McNemar's exact test of no difference; `distinguishable` says whether it is below 5 %.
    `exchanged` are the cycles of labels that stand for each other (`label_order`).
    `ece_*` are expected calibration errors over 15 bins, for information. Images with non-finite logits
    count as wrong.
    """

    images: int
    both_right: int
    only_reference_right: int
    only_candidate_right: int
    neither_right: int
    reference_accuracy: float
    reference_interval: Interval
    candidate_accuracy: float
    candidate_interval: Interval
    drop_points: float
    drop_interval_points: Interval
    p_value: float
    distinguishable: bool
    ece_reference: float | None
    ece_candidate: float | None
    reference_kappa: float | None
    reference_kappa_interval: Interval | None
    exchanged: tuple[tuple[int, ...], ...] = ()

    @property
    def paired(self) -> Paired:
        """The four counts as the statistics take them."""
        return Paired(
            both=self.both_right,
            reference=self.only_reference_right,
            candidate=self.only_candidate_right,
            neither=self.neither_right,
        )


@dataclass(frozen=True)
class Outcomes:
    """Who is right, and how sure: the labeled half of a tally. Add sets of images with `+`."""

    paired: Paired
    reference: Reliability
    candidate: Reliability
    predicted: NDArray[np.int64]  # [C], how often the reference predicts each class
    labelled_as: NDArray[np.int64]  # [C]
    pairs: Counter[tuple[int, int]]  # (label, what the reference predicts) → images

    @classmethod
    def of(
        cls,
        reference: NDArray[np.float64],
        candidate: NDArray[np.float64],
        found: Predictions,
        labels: NDArray[np.int64],
        *,
        named: bool = True,
    ) -> Outcomes:
        """Count logits [N, C] of both sides, and what they predict, by labels int64 [N].

        `named`: the labels are names of classes, which may be exchanged; not those of single decisions.
        """
        classes = reference.shape[1]
        right_b, right_a = found.reference == labels, found.candidate == labels
        finite = found.candidate >= 0
        return cls(
            paired=Paired(
                both=int((right_b & right_a).sum()),
                reference=int((right_b & ~right_a).sum()),
                candidate=int((~right_b & right_a).sum()),
                neither=int((~right_b & ~right_a).sum()),
            ),
            reference=Reliability.of(_confidence(reference), right_b),
            candidate=Reliability.of(_confidence(candidate[finite]), right_a[finite]),
            predicted=np.bincount(found.reference, minlength=classes),
            labelled_as=np.bincount(labels, minlength=classes),
            pairs=Counter(zip(labels.tolist(), found.reference.tolist(), strict=True) if named else ()),
        )

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            paired=self.paired + other.paired,
            reference=self.reference + other.reference,
            candidate=self.candidate + other.candidate,
            predicted=self.predicted + other.predicted,
            labelled_as=self.labelled_as + other.labelled_as,
            pairs=self.pairs + other.pairs,
        )

    def labeled(self) -> Labeled:
        """Return the figures of these images."""
        counts = self.paired
        n = counts.images
        interval = drop_interval(counts)
        p_value = mcnemar(counts.reference, counts.candidate)
        right = counts.both + counts.reference
        right_interval = wilson(right, n)
        chance = inner(self.predicted / n, self.labelled_as / n)
        return Labeled(
            images=n,
            both_right=counts.both,
            only_reference_right=counts.reference,
            only_candidate_right=counts.candidate,
            neither_right=counts.neither,
            reference_accuracy=right / n,
            reference_interval=right_interval,
            candidate_accuracy=(counts.both + counts.candidate) / n,
            candidate_interval=wilson(counts.both + counts.candidate, n),
            drop_points=100 * counts.drop,
            drop_interval_points=Interval(low=100 * interval.low, high=100 * interval.high),
            p_value=p_value,
            distinguishable=p_value < 1 - CONFIDENCE,
            ece_reference=self.reference.ece(),
            ece_candidate=self.candidate.ece(),
            reference_kappa=kappa(right / n, chance) if chance < 1 else None,
            reference_kappa_interval=Interval(
                low=kappa(right_interval.low, chance), high=kappa(right_interval.high, chance)
            )
            if chance < 1
            else None,
            exchanged=exchanged(self.pairs),
        )


def checked_labels(labels: ArrayLike, images: int, classes: int, first: int = 0) -> NDArray[np.int64]:
    """Return `labels` as int64 [images].

    Raises DatasetError unless they are class indices in [0, classes).
    """
    given = np.asarray(labels)
    if given.shape != (images,) or given.dtype.kind not in "iu":
        raise DatasetError(
            f"labels have shape {list(given.shape)} and type {given.dtype} for {images} images; "
            "expected one integer class index an image"
        )
    known = given.astype(np.int64)
    wrong = np.flatnonzero((known < 0) | (known >= classes))
    if len(wrong):
        i = int(wrong[0])
        raise DatasetError(
            f"image {first + i} has label {known[i]}, the model has classes 0 to {classes - 1}; "
            "give labels as class indices of this model"
        )
    return known


def checked_marks(labels: ArrayLike, images: int, classes: int) -> NDArray[np.int64]:
    """Return the labels of a multi-label head, 0 or 1 for each class of each image, as int64 [images · classes].

    Raises DatasetError unless they are such.
    """
    given = np.asarray(labels)
    if given.shape != (images, classes) or given.dtype.kind not in "iub" or not np.isin(given, (0, 1)).all():
        raise DatasetError(
            f"labels have shape {list(given.shape)} and type {given.dtype} for {images} images; the network decides on "
            f"each of its {classes} classes by itself: expected 0 or 1 for each, [{images}, {classes}], as an .npz "
            "file holds them, or images without labels"
        )
    return given.astype(np.int64).reshape(-1)


def _confidence(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax probability of the predicted classes of finite logits float64 [N, C]."""
    return np.asarray(np.exp(log_softmax(logits).max(axis=1)))
