"""Does the network know the calibration images by their labels? Said at the export, before anyone ships wrong names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.criteria.table import CRITERIA, Evidence
from resnet_export.runtime.parity.measure.comparison import Tally
from resnet_export.runtime.parity.measure.labels import Labeled

_NAMED = 12


def check_labels(
    fp32: onnx.ModelProto,
    photos: Photos,
    labels: tuple[str, ...],
    *,
    as_given: bool = False,
    activation: Activation = "softmax",
) -> str | None:
    """Return one sentence on what the graph makes of labeled images, None where they have no labels.

    It says how many the graph gets right, and when the labels are hardly better than chance (criterion `labels_fit`).
    `labels` are the names of the network's classes.

    Raises RequestError, with the permutation, when classes stand for each other (criterion `labels_order`), unless
    `as_given`, which makes that part of the sentence.
    """
    if photos.labels is None:
        return None
    session = CpuSession(fp32.SerializeToString())
    tallies = []
    for inputs, part in photos.batches():
        logits: NDArray[Any] = np.asarray(session.run(inputs)[0], np.float64)
        tallies.append(Tally.of(logits, logits, labels=part, activation=activation))
    found = sum(tallies[1:], tallies[0]).comparison().labeled
    if found is None:
        return None
    if found.exchanged and not as_given:
        raise RequestError(
            f"the labels contradict the images: {_permutation(found, labels)}; put --labels or the folders into the "
            "order of the network's classes, or keep them with --labels-as-given"
        )
    return _sentence(found, labels)


def _sentence(found: Labeled, labels: tuple[str, ...]) -> str:
    interval = found.reference_interval
    right = (
        f"the network is right on {100 * found.reference_accuracy:.1f} % of the {found.images} labeled calibration "
        f"images (95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %)"
    )
    evidence = Evidence(labeled=found)
    if found.exchanged:
        return f"{right}, and its labels contradict the images and were kept as given: {_permutation(found, labels)}"
    fit = CRITERIA["labels_fit"](evidence)
    if fit is not None and not fit.passed:
        return (
            f"{right}, hardly more than by chance: the labels are not the network's, or the preprocessing is not what "
            "it was trained with; compare --labels with the names of the folders, and see --mean, --std and --resize"
        )
    return right


def _permutation(found: Labeled, labels: tuple[str, ...]) -> str:
    """Say which classes the network takes for which: one part for each cycle, the longest cycles cut short."""
    parts = []
    for cycle in found.exchanged:
        names = [labels[index] for index in (*cycle, cycle[0])]
        parts.append(" → ".join(names[:_NAMED]) + (" → …" if len(names) > _NAMED else ""))
    return f"images of one class are predicted as the next ({'; '.join(parts)})"
