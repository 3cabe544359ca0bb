"""Calibration and quantization: data sets, range statistics, the calibration table and the Q/DQ emitters.

Names are loaded on first use: a caller that only reads data sets needs neither onnx nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_export.calibration.data.dataset import (
        Batch,
        Dataset,
        DatasetWarning,
        Description,
        open_dataset,
    )
    from resnet_export.calibration.data.photos import Photos, check_for_calibration, load_photos

__all__ = [
    "Batch",
    "Dataset",
    "DatasetWarning",
    "Description",
    "Photos",
    "check_for_calibration",
    "load_photos",
    "open_dataset",
]

_HOMES = {
    "Batch": "resnet_export.calibration.data.dataset",
    "Dataset": "resnet_export.calibration.data.dataset",
    "DatasetWarning": "resnet_export.calibration.data.dataset",
    "Description": "resnet_export.calibration.data.dataset",
    "Photos": "resnet_export.calibration.data.photos",
    "check_for_calibration": "resnet_export.calibration.data.photos",
    "load_photos": "resnet_export.calibration.data.photos",
    "open_dataset": "resnet_export.calibration.data.dataset",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
