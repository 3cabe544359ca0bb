"""Does the network know the calibration images by their labels? Said at the export, before anyone ships wrong names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.runtime.parity.criteria.table import CRITERIA, Evidence
from resnet_export.runtime.parity.measure.comparison import Tally
from resnet_export.runtime.parity.measure.labels import Labeled


def label_notice(fp32: onnx.ModelProto, photos: Photos, labels: tuple[str, ...]) -> str | None:
    """Return one sentence on what the graph makes of labeled images, None where they have no labels.

    It says how many the graph gets right, and when the labels are not those of the network (criteria
    `labels_fit` and `labels_order`). `labels` are the names of the network's classes.
    """
    if photos.labels is None:
        return None
    session = CpuSession(fp32.SerializeToString())
    tallies = []
    for inputs, part in photos.batches():
        logits: NDArray[Any] = np.asarray(session.run(inputs)[0], np.float64)
        tallies.append(Tally.of(logits, logits, labels=part))
    found = sum(tallies[1:], tallies[0]).comparison().labeled
    return None if found is None else _sentence(found, labels)


def _sentence(found: Labeled, labels: tuple[str, ...]) -> str:
    interval = found.reference_interval
    right = (
        f"the network is right on {100 * found.reference_accuracy:.1f} % of the {found.images} labeled calibration "
        f"images (95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %)"
    )
    evidence = Evidence(labeled=found)
    fit, order = CRITERIA["labels_fit"](evidence), CRITERIA["labels_order"](evidence)
    if fit is not None and not fit.passed:
        return (
            f"{right}, hardly more than by chance: the labels are not the network's, or the preprocessing is not what "
            "it was trained with; compare --labels with the names of the folders, and see --mean, --std and --resize"
        )
    if order is not None and not order.passed:
        cycle = found.exchanged[0]
        names = " → ".join(labels[index] for index in (*cycle, cycle[0]))
        return (
            f"{right}, and it takes classes for each other in a circle ({names}): their labels are exchanged; "
            "compare --labels with the names of the folders"
        )
    return right
