"""Run a trial graph and say how far its logits are from the float network's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.cpu_session import cpu_threads
from resnet_export.calibration.search.trial_session import open_trial
from resnet_export.runtime.bundle.schema import Activation, TargetName
from resnet_export.runtime.errors import DatasetError, ExportError
from resnet_export.runtime.parity.criteria.criterion import Criterion, at_most
from resnet_export.runtime.parity.criteria.table import Evidence, bound, describe, evaluate, title
from resnet_export.runtime.parity.criteria.tolerances import Tolerances, near_tie_width
from resnet_export.runtime.parity.measure.comparison import worst_images
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics
from resnet_export.runtime.parity.report.search_report import Validation
from resnet_export.runtime.precision import Precision, Tolerance
from resnet_export.runtime.prediction import decides_each, two_class

_ROOM = 0.8
"""The share of parity's limit on the error that the search may use up. The same graph is up to a quarter worse on other
images and another backend than it was seen to be, and a bundle must not fail for that."""


@dataclass(frozen=True)
class Limits:
    """What an INT8 graph may lose: what every parity check allows it, less some room, and the user's own budget.

    `tolerances` are the network's. `max_drop` is in percentage points of top-1 accuracy, or of top-1 agreement where
    there are no labels; None sets no budget. `activation` makes probabilities of the logits.
    """

    tolerances: Tolerances = field(default_factory=Tolerances.shipped)
    max_drop: float | None = None
    activation: Activation = "softmax"

    @property
    def parity(self) -> Tolerance:
        """The limits that parity has for INT8."""
        return self.tolerances[Precision.INT8]

    @property
    def tolerance(self) -> Tolerance:
        """The limits that the search keeps to. Distance in cosine and divergence grow with the error's square."""
        given = self.parity
        cosine, divergence = given.centered_cosine, given.p90_divergence
        return msgspec.structs.replace(
            given,
            relative_error=_with_room(given.relative_error),
            centered_cosine=None if cosine is None else 1 - _ROOM**2 * (1 - cosine),
            median_error=_with_room(given.median_error),
            p90_error=_with_room(given.p90_error),
            p90_divergence=None if divergence is None else _ROOM**2 * divergence,
        )

    def criteria(self, figures: Figures, accuracy_drop: float | None) -> tuple[Criterion, ...]:
        """Hold a graph's figures to the limits. `accuracy_drop` is in percentage points, None without labels."""
        found = evaluate(
            Evidence(figures=figures, tolerance=self.tolerance, untrained=self.tolerances.untrained)
        )
        if self.max_drop is None:
            return found
        if accuracy_drop is None:
            lost = at_most("disagreement", 100 * (1 - figures.top1_agreement), self.max_drop)
        else:
            lost = at_most("top-1 accuracy drop", accuracy_drop, self.max_drop)
        return (*found, lost)


def _with_room(limit: float | None) -> float | None:
    return None if limit is None else _ROOM * limit


@dataclass(frozen=True, eq=False)
class FloatRun:
    """Images, and what the float network makes of them: `logits`, float32 [N, classes], in their order."""

    photos: Photos
    logits: NDArray[np.float32]

    def sample(self, count: int) -> FloatRun:
        """Return `count` of the images, spread evenly, or all if there are no more."""
        if count >= len(self.photos):
            return self
        return FloatRun(self.photos.sample(count), self.logits[self.photos.spread(count)])

    @classmethod
    def join(cls, photos: Photos, rest: FloatRun, drawn: FloatRun) -> FloatRun:
        """Return the run on `photos` from those on the two parts that `Photos.split` returned."""
        places = photos.spread(len(drawn.photos))
        logits = np.empty((len(photos), *drawn.logits.shape[1:]), np.float32)
        logits[places] = drawn.logits
        logits[np.setdiff1d(np.arange(len(photos)), places)] = rest.logits
        return cls(photos, logits)


def run_float(model: onnx.ModelProto, photos: Photos, threads: int | None = None) -> FloatRun:
    """Run the float network. `threads` are ONNX Runtime's; None means all processors.

    Raises DatasetError when there is no image.
    """
    return FloatRun(photos, _run(model, None, photos.inputs(), threads))


class Evaluator:
    """Compares trial graphs with the float network on one set of images, whose logits it remembers."""

    def __init__(self, run: FloatRun, limits: Limits | None = None, *, threads: int | None = None) -> None:
        """Take the float network's logits as the reference.

        Args:
            run: of the float network, on images with their labels if there are any.
            limits: what trial graphs are held to.
            threads: for trial graphs; None means all processors.

        Raises ExportError when a logit is infinite or NaN.
        """
        self.run, self.threads = run, threads or cpu_threads()
        self.limits = limits or Limits()
        self.labels, self.logits = run.photos.labels, run.logits
        if not np.isfinite(self.logits).all():
            raise ExportError(
                "the float network's logits are infinite or NaN on a real image; check its weights"
            )
        self._near_tie = near_tie_width(self.limits.parity, self.logits)

    def __len__(self) -> int:
        return len(self.logits)

    def __call__(
        self, graph: onnx.ModelProto, target: TargetName | None = None, *, threads: int | None = None
    ) -> Validation:
        """Run a trial graph, laid out for `target` (None: a float graph), over the images and compare it.

        `threads` are for this graph, where several run at once; None means all of the evaluator's.
        """
        logits = _run(graph, target, self.images(), threads or self.threads)
        figures = Metrics.of(self.logits, logits, self._near_tie, self.limits.activation).result()
        drop = None
        if self.labels is not None:
            right = [(self._decided(one) == self.labels).mean() for one in (self.logits, logits)]
            drop = 100 * float(right[0] - right[1])
        return Validation(
            images=figures.images,
            non_finite=figures.non_finite,
            snr_db=figures.snr_db,
            centered_cosine=figures.centered_cosine,
            agreement=100 * figures.top1_agreement,
            accuracy_drop=drop,
            by_image=figures.by_image,
            worst=(
                ()
                if figures.by_image.even and not figures.by_image.far
                else worst_images(
                    self.logits,
                    logits,
                    None if decides_each(self.logits, self.limits.activation) else self.labels,
                    self.run.photos.names,
                )
            ),
            outside=tuple(
                describe(criterion)
                for criterion in self.limits.criteria(figures, drop)
                if not criterion.passed
            ),
        )

    def _decided(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """Return what logits [N, C] decide, in the form that labels have: classes [N], or 0 or 1 for each [N, C]."""
        each = decides_each(logits, self.limits.activation)
        return np.asarray(logits > 0 if each else two_class(logits).argmax(axis=1))

    def limit(self) -> str:
        """Return what trial graphs are held to, in words: "relative error ≤ 0.1, top-1 agreement ≥ 95 %"."""
        nothing = Metrics.of(self.logits, self.logits, activation=self.limits.activation).result()
        criteria = self.limits.criteria(nothing, None if self.labels is None else 0.0)
        named = (one for one in criteria if one.name != "finite")  # which goes without saying
        return ", ".join(f"{title(one)} {bound(one)}" for one in named)

    def images(self) -> Iterator[NDArray[Any]]:
        """Yield the batches of one pass over the images."""
        return self.run.photos.inputs()


def _run(
    graph: onnx.ModelProto,
    target: TargetName | None,
    batches: Iterator[NDArray[Any]],
    threads: int | None,
) -> NDArray[np.float32]:
    run = open_trial(graph, target, threads)
    found = [run(batch) for batch in batches]
    if not found:
        raise DatasetError("there is no image to calibrate on; give at least one, better 100 or more")
    return np.concatenate(found)
