"""The real images that an export looks at: golden inputs, and the images that ranges are scanned on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.dataset import Dataset, check_for_calibration, open_dataset
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import Preprocessing

GOLDEN_COUNT = 20
"""Every stage and every backend runs them all, so each costs. From 18 on, one flipped prediction alone does not
refute an agreement of 99 % (the upper end of its Wilson interval)."""

_BATCH = 8


@dataclass(frozen=True)
class Images:
    """`golden` uint8 [M, H, W, 3]; `batches()` starts a pass over all images, uint8 [n, H, W, 3] at a time.

    `dataset` is where they come from when they are the user's, and None for the photographs of the package.
    """

    golden: NDArray[np.uint8]
    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    dataset: Dataset | None

    @property
    def source(self) -> Literal["bundled", "calibration"]:
        """Whose images they are, as the manifest says it."""
        return "bundled" if self.dataset is None else "calibration"


def choose_images(spec: ExportSpec, preprocessing: Preprocessing, labels: Sequence[str], seed: int) -> Images:
    """Return the user's calibration images, or the photographs that ship with the package.

    Raises DatasetError when the calibration images cannot be read, or cannot be calibrated on.
    """
    if spec.calib is None:
        crops = photographs(preprocessing.crop)
        return Images(crops[:GOLDEN_COUNT], lambda: iter([crops]), None)
    dataset = open_dataset(
        spec.calib,
        preprocessing=preprocessing,
        limit=spec.calib_count,
        seed=seed,
        labels=labels,
        num_classes=len(labels),
    )
    check_for_calibration(dataset)
    # Drawn from the whole set: the first of a folder would all be of its first classes.
    golden = next(dataset.sample(GOLDEN_COUNT).batches(GOLDEN_COUNT)).images
    return Images(golden, lambda: (batch.images for batch in dataset.batches(_BATCH)), dataset)
