"""The mean and covariance of what each layer's weights are multiplied with, over real images.

A convolution multiplies its weights with patches of its input. A seeded sample of the positions is enough: a few
times as many patches as weights are looked at together. Those are the weights of some input channels at a time:
the whole covariance of a 3×3 filter over 512 channels would take 85 MB, and what it knows beyond its blocks on the
diagonal is worth 0.3 dB of the weights' noise (`docs/int8.md`).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from resnet_export.calibration.improve.blas import one_blas_thread
from resnet_export.calibration.improve.channel_scaling import group_count
from resnet_export.calibration.observe.activations import activations, in_fours
from resnet_export.calibration.observe.cpu_session import cpu_threads
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.runtime.ahead import map_ahead
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.progress import Progress, silent

Floats = NDArray[np.float32]

TOGETHER = 1152
"""The greatest number of weights of a filter whose inputs' covariance is taken: 128 channels under a 3×3 kernel."""

_PATCHES_PER_WEIGHT = 6
_LEAST_PATCHES = 4096
_ROWS = 1024  # patches that are multiplied at once
_MEMORY = 384 << 20  # bytes of covariances that one pass over the images may hold


@dataclass(frozen=True, eq=False)
class Moments:
    """What some weights of a layer's filters meet: `mean` [d] and `covariance` [d, d] over `count` patches.

    They are the weights `part` of every filter in the convolution's group `group`, in the order of the weight's own
    axes (channel, row, column).
    """

    group: int
    part: slice
    mean: Floats
    covariance: Floats
    count: int

    @property
    def finite(self) -> bool:
        """Whether no product of two inputs left float32's range, as happens beyond 1e19."""
        return bool(np.isfinite(self.covariance).all())

    @property
    def second_moment(self) -> Floats:
        """E[x xᵀ], float32 [d, d]."""
        return self.covariance + np.outer(self.mean, self.mean)


def input_moments(
    model: onnx.ModelProto,
    layers: Sequence[str],
    batches: Callable[[], Iterable[NDArray[Any]]],
    *,
    images: int,
    threads: int | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[Layer, tuple[Moments, ...]]]:
    """Yield each of the named layers with the moments of its inputs, which cover its filters part by part.

    The images are read as often as it takes for the covariances to fit into memory; those of a layer are
    dropped when the next is asked for.

    Args:
        model: the float32 graph.
        layers: names of Conv, Gemm and MatMul nodes.
        batches: called for each pass; gives images in the layout and dtype of the graph's input.
        images: how many there are.
        threads: for ONNX Runtime; None means all processors.

    Raises:
        DatasetError: there is no image, or one is not finite.
        ExportError: a tensor is infinite or NaN.
    """
    topology = Topology(model)
    wanted = [layer for layer in topology.layers if layer.name in set(layers)]
    passes = list(_passes(wanted, topology))
    for number, chosen in enumerate(passes, 1):
        counters = [_Counter(layer, topology, images) for layer in chosen]
        tensors = list(dict.fromkeys(layer.input for layer in chosen))
        title = f"Weighing inputs ({number} of {len(passes)})" if len(passes) > 1 else "Weighing inputs"
        seen, workers = 0, threads or cpu_threads()
        inputs = progress(in_fours(batches()), title)
        for found in activations(model, inputs, tensors, threads=threads):
            count = partial(_Counter.count, found=found, first=seen)
            with one_blas_thread():
                for _ in map_ahead(count, counters, ahead=workers, workers=workers):
                    pass
            seen += len(found[tensors[0]])
        if not seen:
            raise DatasetError("there is no image to calibrate on; give at least one, better 100 or more")
        while counters:
            counter = counters.pop(0)
            yield counter.layer, counter.moments()


def filter_size(layer: Layer, topology: Topology) -> int:
    """Return the number of weights in one filter of a layer."""
    dims = topology.constants[layer.weight].dims
    return int(np.prod(dims)) // int(dims[layer.axis])


def parts(layer: Layer, topology: Topology) -> tuple[slice, ...]:
    """Cut a filter into even parts of whole channels, with at most `TOGETHER` weights each where channels allow."""
    size = filter_size(layer, topology)
    kernel = int(np.prod(topology.constants[layer.weight].dims[2:])) if layer.node.op_type == "Conv" else 1
    channels = size // kernel
    count = min(-(-size // TOGETHER), channels)
    bounds = [kernel * (index * channels // count) for index in range(count + 1)]
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(bounds))


def patches(
    layer: Layer,
    values: NDArray[np.float32],
    kernel: Sequence[int],
    choose: Callable[[int, int], NDArray[np.intp]],
) -> Floats:
    """Return what the layer's weights are multiplied with: float32 [n, groups, d].

    `values` is its input, [images, channels, height, width] for a convolution with this `kernel`, [images, features]
    for a Gemm and [images, …, features] for a MatMul. `choose` says which positions to take of an image, given its
    index here and how many there are.
    """
    if layer.node.op_type == "Gemm":
        return values.reshape(len(values), 1, -1)
    if layer.node.op_type == "MatMul":
        places = values.reshape(len(values), -1, values.shape[-1])
        chosen = [image[choose(index, len(image))] for index, image in enumerate(places)]
        return np.ascontiguousarray(np.concatenate(chosen))[:, None]
    found = {one.name: helper.get_attribute_value(one) for one in layer.node.attribute}
    rank = len(kernel)
    strides = found.get("strides") or [1] * rank
    dilations = found.get("dilations") or [1] * rank
    pads = found.get("pads") or [0] * 2 * rank
    width = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(values, width) if any(pads) else values
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (*(slice(None, None, step) for step in strides), *(slice(None, None, step) for step in dilations))
    windows = windows[(slice(None), slice(None), *steps)]  # [images, channels, *positions, *kernel]
    sizes = windows.shape[2 : 2 + rank]
    taken = []
    for index, image in enumerate(windows):
        positions = np.unravel_index(choose(index, int(np.prod(sizes))), sizes)
        taken.append(np.moveaxis(image[(slice(None), *positions)], 1, 0))  # [n, channels, *kernel]
    rows = np.ascontiguousarray(np.concatenate(taken))
    return rows.reshape(len(rows), group_count(layer), -1)


def _passes(layers: Iterable[Layer], topology: Topology) -> Iterator[list[Layer]]:
    """Cut the layers into parts whose covariances fit into memory together."""
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = sum(4 * group_count(layer) * (one.stop - one.start) ** 2 for one in parts(layer, topology))
        if part and held + size > _MEMORY:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


class _Counter:
    """Adds up one layer's sample of patches."""

    def __init__(self, layer: Layer, topology: Topology, images: int) -> None:
        self.layer = layer
        self._kernel = tuple(topology.constants[layer.weight].dims[2:])
        self._parts = parts(layer, topology)
        sizes = [one.stop - one.start for one in self._parts]
        self._per_image = -(-max(_PATCHES_PER_WEIGHT * max(sizes), _LEAST_PATCHES) // images)
        self._sum = np.zeros((group_count(layer), filter_size(layer, topology)), np.float64)
        self._shift: Floats | None = None
        self._products = [
            [np.zeros((size, size), np.float32) for size in sizes] for _ in range(len(self._sum))
        ]
        self._waiting: list[Floats] = []
        self._count = 0

    def count(self, found: Mapping[str, NDArray[np.float32]], first: int) -> None:
        """Add a batch, in which `found` is the layer's input by name; `first` is the number of images before it."""

        def choose(index: int, positions: int) -> NDArray[np.intp]:
            # Seeded by image and layer, so that the sample does not depend on how images are batched.
            rng = np.random.default_rng([zlib.crc32(self.layer.name.encode()), first + index])
            chosen: NDArray[np.intp] = rng.choice(positions, min(self._per_image, positions), replace=False)
            return chosen

        self._waiting.append(patches(self.layer, found[self.layer.input], self._kernel, choose))
        if sum(map(len, self._waiting)) >= _ROWS:
            self._add()

    def moments(self) -> tuple[Moments, ...]:
        self._add()
        offsets = self._sum / self._count
        means = (offsets if self._shift is None else offsets + self._shift).astype(np.float32)
        found = []
        for group, mean in enumerate(means):
            for part, products in zip(self._parts, self._products[group], strict=True):
                with np.errstate(over="ignore", invalid="ignore"):
                    covariance = products.astype(np.float64) / self._count
                    covariance -= np.outer(offsets[group, part], offsets[group, part])
                    # Rounding may have left a variance of zero just below it.
                    np.fill_diagonal(covariance, np.maximum(np.diag(covariance), 0))
                    products[...] = covariance
                found.append(Moments(group, part, mean[part], products, self._count))
        return tuple(found)

    def _add(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting = []
        if self._shift is None:
            # Inputs are counted from where the first of them lie. Otherwise, where they hardly vary, the difference of
            # two large squares would leave of the covariance nothing but rounding errors.
            self._shift = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows - self._shift
        self._count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        for group, products in enumerate(self._products):
            for part, square in zip(self._parts, products, strict=True):
                inputs = np.ascontiguousarray(rows[:, group, part])
                with np.errstate(over="ignore", invalid="ignore"):  # `Moments.finite` tells
                    square += inputs.T @ inputs
