"""The images of `--val`: nothing is fitted to them, and the finished bundle is judged on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from resnet_export.calibration.data.dataset import open_dataset
from resnet_export.calibration.data.image_sources import files_of
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.spec import ParitySpec

__all__ = ["validation_spec"]


def validation_spec(spec: ExportSpec, preprocessing: Preprocessing, labels: Sequence[str]) -> ParitySpec:
    """Return what a finished bundle is held to: without `spec.val`, its golden images alone.

    `spec.max_drop` is decided on labeled images as accuracy, on others as agreement. The images are listed, not
    decoded, so that what is wrong with them is said before any work.

    Raises DatasetError for images that cannot be listed or labels that do not fit, and RequestError for images that
    calibration sees too.
    """
    if spec.val is None:
        return ParitySpec()
    if spec.calib is not None:
        _check_apart(spec.calib, spec.val)
    dataset = open_dataset(spec.val, preprocessing=preprocessing, labels=labels, num_classes=len(labels))
    if spec.max_drop is None:
        return ParitySpec(data=os.fspath(spec.val))
    if dataset.labels is None:
        return ParitySpec(data=os.fspath(spec.val), min_agreement=100 - spec.max_drop)
    return ParitySpec(data=os.fspath(spec.val), max_drop=spec.max_drop)


def _check_apart(calib: Path, val: Path) -> None:
    """Raise RequestError where a file is among both: what calibration saw judges nothing."""
    fitted = {os.path.realpath(file) for file in (calib, *files_of(calib)) if file.is_file()}
    shared = [file for file in (val, *files_of(val)) if os.path.realpath(file) in fitted]
    if shared:
        raise RequestError(
            f"{len(shared)} file{'s' if len(shared) > 1 else ''} of --val {val} (the first: {shared[0]}) "
            f"{'are' if len(shared) > 1 else 'is'} in --calib {calib} too, and images that calibration saw judge "
            "nothing; give others"
        )
