"""Compare candidates with a reference over images that stream by once, and keep what a person wants to see.

Works on arrays and on callables and needs no framework. Memory does not grow with the number of images: sums,
counts and the first few images whose prediction changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.errors import BackendError, DatasetError
from resnet_export.runtime.parity.measure.image_errors import WORST, image_errors
from resnet_export.runtime.parity.measure.labels import Labeled, Outcomes, checked_labels, checked_marks
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics, predictions
from resnet_export.runtime.parity.measure.statistics import Interval, wilson
from resnet_export.runtime.prediction import decides_each, decisions, two_class

KEPT_FLIPS = 20

Runner = Callable[[Any], ArrayLike]


class ImageBatch(Protocol):
    """A few images: `images` in whatever form the runners take, its first axis the images.

    `labels` are integer class indices [N] or None; `names` are for people, one an image, or empty.
    """

    @property
    def images(self) -> Any:
        """The images."""

    @property
    def labels(self) -> ArrayLike | None:
        """Their classes."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""


@dataclass(frozen=True)
class Batch:
    """The plainest `ImageBatch`. A data set yields crops, uint8 [N, H, W, 3] RGB, and labels int64 [N]."""

    images: Any
    labels: ArrayLike | None = None
    names: tuple[str, ...] = ()


class Flip(Struct, frozen=True):
    """An image whose prediction changed. Classes are indices; `candidate` is −1 for non-finite logits.

    `margin` is how many logits the reference puts its winner above the candidate's choice, None where the
    candidate has none; `near_tie` says whether that is within the near-tie width.
    """

    index: int
    name: str
    reference: int
    candidate: int
    label: int | None
    margin: float | None
    near_tie: bool


class WorstImage(Struct, frozen=True):
    """An image whose logits are among the furthest from the reference's.

    `error` is ‖a−b‖/‖b‖ over its logits, None where that is infinite; classes are indices, `candidate` −1 for
    non-finite logits.
    """

    index: int
    name: str
    error: float | None
    reference: int
    candidate: int
    label: int | None

    @property
    def sentence(self) -> str:
        """Return "glare.jpg (error 0.95, class 3 → 5, labeled 3)"."""
        error = "infinite" if self.error is None else f"{self.error:.2g}"
        classes = f"class {self.reference} → {'none' if self.candidate < 0 else self.candidate}"
        label = "" if self.label is None else f", labeled {self.label}"
        return f"{self.name} (error {error}, {classes}{label})"

    @property
    def order(self) -> tuple[float, int]:
        """The worst first, and the earlier of equals."""
        return -math.inf if self.error is None else -self.error, self.index


def worst_images(
    reference: ArrayLike,
    candidate: ArrayLike,
    labels: ArrayLike | None = None,
    names: tuple[str, ...] = (),
    *,
    first: int = 0,
) -> tuple[WorstImage, ...]:
    """Return the `WORST` of these images, the worst first. Arguments are those of `Tally.of`."""
    b, a = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    found, errors = predictions(b, a), image_errors(b, a)
    known = None if labels is None else np.asarray(labels)
    return tuple(
        WorstImage(
            index=first + int(i),
            name=printable(names[i]) if names else f"image {first + int(i)}",
            error=float(errors[i]) if np.isfinite(errors[i]) else None,
            reference=int(found.reference[i]),
            candidate=int(found.candidate[i]),
            label=None if known is None else int(known[i]),
        )
        for i in np.argsort(-errors, kind="stable")[:WORST]
    )


class Comparison(Struct, frozen=True):
    """A candidate against the reference on one set of images.

    `top1_interval` and `top5_interval` are 95 % Wilson intervals of the agreements in `figures`. `flips`
    are the first of `flip_count` images whose prediction changed, in the order of the data. `worst` are the images
    furthest from the reference, ten at most.
    """

    figures: Figures
    near_tie: float
    top1_interval: Interval
    top5_interval: Interval
    labeled: Labeled | None
    flips: tuple[Flip, ...]
    flip_count: int
    worst: tuple[WorstImage, ...]


@dataclass(frozen=True)
class Tally:
    """Everything that is kept of the images compared so far. Join consecutive parts with `+`."""

    metrics: Metrics
    outcomes: Outcomes | None
    flips: tuple[Flip, ...]
    flip_count: int
    worst: tuple[WorstImage, ...]
    near_tie: float
    keep: int

    @classmethod
    def of(
        cls,
        reference: ArrayLike,
        candidate: ArrayLike,
        labels: ArrayLike | None = None,
        names: tuple[str, ...] = (),
        *,
        first: int = 0,
        near_tie: float = 0.0,
        activation: Activation = "softmax",
        keep: int = KEPT_FLIPS,
    ) -> Tally:
        """Compare float logits [N, C] of N images, the first of which is number `first` of the data.

        Labels are class indices [N]; those of a multi-label head 0 or 1 for each class, [N, C], and of such a head the
        images whose decisions changed are counted and not listed.

        Raises RequestError as `Metrics.of` does, and DatasetError for labels that do not fit.
        """
        b, a = (np.asarray(one, np.float64) for one in (reference, candidate))
        metrics = Metrics.of(b, a, near_tie, activation)
        found = predictions(b, a, activation)
        if decides_each(b, activation):
            marks = None if labels is None else checked_marks(labels, len(b), b.shape[1])
            return cls(
                metrics=metrics,
                outcomes=None
                if marks is None
                else Outcomes.of(decisions(b), decisions(a), found, marks, named=False),
                flips=(),
                flip_count=int(found.flipped.reshape(b.shape).any(axis=1).sum()),
                worst=worst_images(b, a, None, names, first=first),
                near_tie=near_tie,
                keep=keep,
            )
        b, a = two_class(b), two_class(a)
        known = None if labels is None else checked_labels(labels, len(b), b.shape[1], first)
        flipped = np.flatnonzero(found.flipped)
        return cls(
            metrics=metrics,
            outcomes=None if known is None else Outcomes.of(b, a, found, known),
            flips=tuple(
                Flip(
                    index=first + int(i),
                    name=printable(names[i]) if names else f"image {first + int(i)}",
                    reference=int(found.reference[i]),
                    candidate=int(found.candidate[i]),
                    label=None if known is None else int(known[i]),
                    margin=float(found.margin[i]) if np.isfinite(found.margin[i]) else None,
                    near_tie=bool(found.margin[i] <= near_tie),
                )
                for i in flipped[:keep]
            ),
            flip_count=len(flipped),
            worst=worst_images(b, a, known, names, first=first),
            near_tie=near_tie,
            keep=keep,
        )

    def __add__(self, other: Tally) -> Tally:
        if (self.outcomes is None) != (other.outcomes is None):
            raise DatasetError("some images have labels and others have none; label all of them or none")
        return Tally(
            metrics=self.metrics + other.metrics,
            outcomes=self.outcomes + other.outcomes if self.outcomes and other.outcomes else None,
            flips=(self.flips + other.flips)[: self.keep],
            flip_count=self.flip_count + other.flip_count,
            worst=tuple(sorted(self.worst + other.worst, key=lambda image: image.order)[:WORST]),
            near_tie=self.near_tie,
            keep=self.keep,
        )

    def comparison(self) -> Comparison:
        """Return the figures of these images."""
        figures = self.metrics.result()
        return Comparison(
            figures=figures,
            near_tie=self.near_tie,
            top1_interval=wilson(figures.top1, figures.decided),
            top5_interval=wilson(figures.top5, figures.decided),
            labeled=self.outcomes.labeled() if self.outcomes else None,
            flips=self.flips,
            flip_count=self.flip_count,
            worst=self.worst,
        )


def compare(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    names: tuple[str, ...] = (),
    near_tie: float = 0.0,
    activation: Activation = "softmax",
) -> Comparison:
    """Compare float logits [N, C] of both sides; `near_tie` is in logits. Raises what `Tally.of` does."""
    return Tally.of(
        reference, candidate, labels, names, near_tie=near_tie, activation=activation
    ).comparison()


def compare_all(
    reference: Runner,
    candidates: Mapping[str, Runner],
    batches: Iterable[ImageBatch],
    *,
    near_tie: Mapping[str, float] | None = None,
    activation: Activation = "softmax",
    keep: int = KEPT_FLIPS,
) -> dict[str, Comparison | BackendError]:
    """Compare many candidates with one reference in a single pass: each image is read once.

    A candidate that is the reference itself does not run again. One that raises BackendError is dropped from there
    on, and its error stands in its place; an error of the reference is raised. Raises DatasetError when there are no
    images.
    """
    widths = near_tie or {}
    tallies: dict[str, Tally] = {}
    failed: dict[str, BackendError] = {}
    done = 0
    for batch in batches:
        expected = logits(reference, batch.images, "the reference")
        for key, run in candidates.items():
            if key in failed:
                continue
            try:
                found = expected if run is reference else logits(run, batch.images, key, expected.shape[1])
            except BackendError as error:
                failed[key] = error
                continue
            part = Tally.of(
                expected,
                found,
                batch.labels,
                batch.names,
                first=done,
                near_tie=widths.get(key, 0.0),
                activation=activation,
                keep=keep,
            )
            tallies[key] = tallies[key] + part if key in tallies else part
        done += len(batch.images)
    if not done:
        raise DatasetError("there are no images to compare on; give at least one")
    return {key: failed[key] if key in failed else tallies[key].comparison() for key in candidates}


def logits(run: Runner, images: Any, name: str, classes: int | None = None) -> NDArray[np.float64]:
    """Run `run` on `images` and return float64 logits [N, C].

    Raises BackendError when the shape is another.
    """
    found = np.asarray(run(images), np.float64)
    count = len(images)
    if found.ndim != 2 or len(found) != count or (classes is not None and found.shape[1] != classes):
        expected = f"[{count}, {'classes' if classes is None else classes}]"
        raise BackendError(
            f"{name} gave logits of shape {list(found.shape)} for a batch of {count}, expected {expected}; "
            "the artifact does not fit its manifest: export the bundle again"
        )
    return found


def printable(text: str) -> str:
    """Return `text` fit for every report; file names may hold control characters and broken UTF-8."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
