"""Run a graph over a stream of images, look at each tensor once, and make a CalibrationTable of it."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe import table as tables
from resnet_export.calibration.observe.activations import observed_graph
from resnet_export.calibration.observe.cpu_session import CpuSession, cpu_threads
from resnet_export.calibration.observe.fingerprint import add_hashes, graph_hash, image_hash
from resnet_export.calibration.observe.histogram import Observer, TensorStats
from resnet_export.calibration.observe.methods import Method
from resnet_export.calibration.quantize.placement import tensors_to_observe
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.progress import Progress, silent

_MOST_WORKERS = 4  # each holds the activations of one image; more processors share in the work of these


@dataclass(frozen=True)
class Observation:
    """What one pass over a data set found: statistics by tensor, the images' hash and their number."""

    stats: dict[str, TensorStats]
    data: str
    images: int


def calibrate(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    methods: Sequence[Method] = ("mse",),
    source: onnx.ModelProto | None = None,
    total: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> tables.CalibrationTable:
    """Return the calibration table of `model` over `batches`.

    The table is the same, byte for byte, however the images are cut into batches and ordered, and whatever the
    number of threads.

    Args:
        model: the float32 graph that will be quantized: simplified, BatchNorms folded, equalized if at all.
        batches: images in the layout and dtype of the graph's input, [n, 3, H, W] float32 normalized or
            [n, H, W, 3] uint8; read once, never held.
        methods: whose ranges to work out now; the first is the table's own. The others can be had from the
            table later.
        source: the graph as it was exported, where `model` is an equalized one.
        total: the number of images, if it is known, for `progress`.
        threads: processors to use; None means all.

    Raises:
        DatasetError: there is no image, or one is not finite.
        RequestError: a tensor is infinite or NaN on an image.
        DependencyError, ExportError: see `CpuSession`.
    """
    seen = observe_graph(model, batches, total=total, threads=threads, progress=progress)
    observed = graph_hash(model)
    return tables.build(
        seen.stats,
        graph=observed if source is None else graph_hash(source),
        observed=observed,
        data=seen.data,
        images=seen.images,
        methods=tuple(methods),
    )


def observe_graph(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    tensors: Sequence[str] | None = None,
    total: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Observation:
    """Return the statistics of `tensors` (default: those that quantization needs) over all images.

    Each worker takes an image through the whole graph on its own and counts it into histograms of its own,
    which add up in the end: nothing waits for anything, and no tensor outlives its image.
    """
    wanted = tensors_to_observe(Topology(model)) if tensors is None else tuple(tensors)
    processors = threads or cpu_threads()
    workers = min(processors, _MOST_WORKERS)
    session = CpuSession(
        observed_graph(model, [name for name in wanted if name != model.graph.input[0].name]),
        threads=processors // workers,
    )
    counters = [_Counter(session, wanted) for _ in range(workers)]
    idle: queue.SimpleQueue[_Counter] = queue.SimpleQueue()
    for counter in counters:
        idle.put(counter)

    def count(image: NDArray[Any]) -> None:
        counter = idle.get()
        try:
            counter.count(image)
        finally:  # or the next image would wait for it for ever
            idle.put(counter)

    with ThreadPoolExecutor(workers, "calibrate") as pool:
        pending: deque[Future[None]] = deque()
        try:
            for image in progress(_single(batches), "Calibrating", total):
                pending.append(pool.submit(count, image))
                if len(pending) > workers:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
    images = sum(counter.images for counter in counters)
    if images == 0:
        raise DatasetError("there is no image to calibrate on; give at least one, better 100 or more")
    stats = counters[0].stats()
    data = counters[0].data
    for counter in counters[1:]:
        others = counter.stats()
        stats = {name: one.merge(others[name]) for name, one in stats.items()}
        data = add_hashes(data, counter.data)
    return Observation(stats, data, images)


class _Counter:
    """One worker's share of the data set. Not to be used by two threads at once."""

    def __init__(self, session: CpuSession, tensors: Sequence[str]) -> None:
        self._session = session
        self._observers = {name: Observer() for name in tensors}
        self.data = image_hash(np.empty((0,)))
        self.images = 0

    def count(self, image: NDArray[Any]) -> None:
        """Count in one image [1, …]."""
        self.data = add_hashes(self.data, image_hash(image))
        self.images += 1
        found = dict(zip(self._session.outputs, self._session.run(image), strict=True))
        found[self._session.input] = image
        for name, observer in self._observers.items():
            observer.update(found[name], image=True)

    def stats(self) -> dict[str, TensorStats]:
        return {name: observer.stats() for name, observer in self._observers.items()}


def _single(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield images one at a time, [1, …]. Raises DatasetError for one that is not finite."""
    for batch in batches:
        for start in range(len(batch)):
            image = batch[start : start + 1]
            if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
                raise DatasetError("an image holds an infinite value or NaN; check the image files")
            yield image
