"""What a grid does to values, in numpy; `tests/calibration/quantize/test_grid.py` holds it to ONNX Runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.quantize.grid import Grid


def round_trip(grid: Grid, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of float32 values of any shape after QuantizeLinear and DequantizeLinear."""
    limits = np.iinfo(grid.dtype)
    with np.errstate(over="ignore"):  # what is infinitely many steps away is clipped like the rest
        integers = np.rint(values / np.float32(grid.scale)) + np.float32(grid.zero_point)
    kept = np.clip(integers, limits.min, limits.max) - np.float32(grid.zero_point)
    return np.asarray(kept * np.float32(grid.scale), np.float32)
