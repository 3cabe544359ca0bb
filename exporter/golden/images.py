"""The real images that an export looks at: the user's calibration images, or the photographs of the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet_export.calibration.data.dataset import open_dataset
from resnet_export.calibration.data.image_sources import IMAGENET_CLASSES, class_folders
from resnet_export.calibration.data.photos import Photos, check_for_calibration, load_photos
from resnet_export.exporter.models.photographs import bundled_photos
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.progress import Progress, silent

GOLDEN_COUNT = 20
"""Every stage and every backend runs them all, so each costs. From 18 on, one flipped prediction alone does not
refute an agreement of 99 % (the upper end of its Wilson interval)."""


def choose_photos(
    spec: ExportSpec,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    seed: int,
    *,
    progress: Progress = silent,
) -> Photos:
    """Return the user's calibration images, or the photographs that ship with the package, decoded.

    Raises DatasetError when the calibration images cannot be read, or cannot be calibrated on.
    """
    if spec.calib is None:
        return bundled_photos(preprocessing)
    dataset = open_dataset(
        spec.calib,
        preprocessing=preprocessing,
        limit=spec.calib_count,
        seed=seed,
        labels=labels,
        num_classes=len(labels),
    )
    photos = load_photos(dataset, progress=progress)
    check_for_calibration(photos.images, photos.description.source)
    return photos


def names_of_folders(calib: Path, num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the class folders of the calibration images, in sorted order, if they name the classes.

    None where there are no folders or not as many as the network has classes, where any is called by a number, and for
    ImageNet's classes, whose names are known. Raises DatasetError as `class_folders` does.
    """
    names = class_folders(calib)
    if len(names) != num_classes or num_classes == IMAGENET_CLASSES or any(map(str.isdecimal, names)):
        return None
    return names if all(map(str.isprintable, names)) else None


def choose_golden(photos: Photos, seed: int) -> Photos:
    """Return the golden images, drawn from the whole set: the first of a folder would all be of its first classes."""
    if photos.bundled:
        return photos[:GOLDEN_COUNT]
    return photos.draw(GOLDEN_COUNT, seed)
