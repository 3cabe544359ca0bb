"""Take away what quantizing the weights does to the mean of each output channel.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (arXiv:1906.04721),
section 4.2: the error of a weight meets inputs whose mean is not zero, as ReLU's outputs are, and shifts its
output by (W - Q) E[x]. Their appendix D measures E[x] on data where there is some, as is done here. Zero padding is
in the sampled inputs, and so in the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import by_input
from resnet_export.calibration.improve.input_moments import Moments
from resnet_export.calibration.quantize.grid import QuantizedWeight
from resnet_export.calibration.quantize.topology import Layer


def bias_correction(
    layer: Layer, weight: NDArray[np.float32], quantized: QuantizedWeight, moments: tuple[Moments, ...]
) -> NDArray[np.float32]:
    """Return what is to be added to the bias of `layer`, float32 [channels]."""
    error = by_input(weight.astype(np.float64) - quantized.real(), layer)
    groups, outputs = error.shape[:2]
    filters = error.reshape(groups, outputs, -1)
    shift = np.zeros((groups, outputs))
    for one in moments:
        shift[one.group] += filters[one.group, :, one.part] @ one.mean
    correction: NDArray[np.float32] = shift.reshape(-1).astype(np.float32)
    return correction
