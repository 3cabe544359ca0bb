"""Run a graph over a stream of images, look at each tensor once, and make a CalibrationTable of it."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
from resnet_export.runtime.ahead import map_ahead
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.progress import Progress, silent

_MOST_WORKERS = 4  # each holds the activations of one image; more processors share in the work of these

Look = Callable[[Mapping[str, NDArray[Any]]], Any]
"""What else is to be made of an image's tensors, [1, …] by name. Several threads call it; it must not keep them."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What one pass over a data set found.

    `stats` are by tensor, `data` is the images' hash and `images` their number; `looks` has what `Look` returned, image
    by image in their order.
    """

    stats: dict[str, TensorStats]
    data: str
    images: int
    looks: tuple[Any, ...] = ()

    def merge(self, other: Observation) -> Observation:
        """Return what one pass over the images of both, this one's first, would have found."""
        return Observation(
            {name: one.merge(other.stats[name]) for name, one in self.stats.items()},
            add_hashes(self.data, other.data),
            self.images + other.images,
            self.looks + other.looks,
        )

    def table(
        self, model: onnx.ModelProto, source: onnx.ModelProto | None, methods: Sequence[Method]
    ) -> tables.CalibrationTable:
        """Return the table of `model`, which was observed; arguments and errors are `calibrate`'s."""
        observed = graph_hash(model)
        return tables.build(
            self.stats,
            graph=observed if source is None else graph_hash(source),
            observed=observed,
            data=self.data,
            images=self.images,
            methods=tuple(methods),
        )


class Observe(Protocol):
    """How a graph is run over images: here (`observe_graph`), or on a cluster."""

    def __call__(
        self,
        model: onnx.ModelProto,
        batches: Iterable[NDArray[Any]],
        /,
        *,
        total: int | None,
        progress: Progress,
    ) -> Observation:
        """Return the statistics of the tensors that quantization needs."""


def calibrate(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    methods: Sequence[Method] = ("mse",),
    source: onnx.ModelProto | None = None,
    total: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    observe: Observe | None = None,
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
        observe: what runs the graph, None for this host.

    Raises:
        DatasetError: there is no image, or one is not finite.
        RequestError: a tensor is infinite or NaN on an image.
        DependencyError, ExportError: see `CpuSession`.
    """
    run = observe or functools.partial(observe_graph, threads=threads)
    return run(model, batches, total=total, progress=progress).table(model, source, methods)


def observe_graph(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    tensors: Sequence[str] | None = None,
    further: Iterable[str] = (),
    look: Look | None = None,
    total: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Observation:
    """Return the statistics of `tensors` (default: those that quantization needs) over all images.

    Each worker takes an image through the whole graph on its own and counts it into histograms of its own,
    which add up in the end: nothing waits for anything, and no tensor outlives its image. `look` is called with
    `tensors` and the `further` ones.
    """
    wanted = tensors_to_observe(Topology(model)) if tensors is None else tuple(tensors)
    processors = threads or cpu_threads()
    workers = min(processors, _MOST_WORKERS)
    session = CpuSession(
        observed_graph(model, {*wanted, *further} - {model.graph.input[0].name}),
        threads=processors // workers,
    )
    counters = [_Counter(session, wanted, look) for _ in range(workers)]
    idle: queue.SimpleQueue[_Counter] = queue.SimpleQueue()
    for counter in counters:
        idle.put(counter)

    def count(image: NDArray[Any]) -> Any:
        counter = idle.get()
        try:
            return counter.count(image)
        finally:  # or the next image would wait for it for ever
            idle.put(counter)

    images = progress(_single(batches), "Calibrating", total)
    looks = list(map_ahead(count, images, ahead=workers, workers=workers))
    if not looks:
        raise DatasetError("there is no image to calibrate on; give at least one, better 100 or more")
    first, *others = (counter.observation() for counter in counters)
    whole = functools.reduce(Observation.merge, others, first)
    return whole if look is None else replace(whole, looks=tuple(looks))


class _Counter:
    """One worker's share of the data set. Not to be used by two threads at once."""

    def __init__(self, session: CpuSession, tensors: Sequence[str], look: Look | None) -> None:
        self._session, self._look = session, look
        self._observers = {name: Observer() for name in tensors}
        self.data = image_hash(np.empty((0,)))
        self.images = 0

    def count(self, image: NDArray[Any]) -> Any:
        """Count in one image [1, …], and have a look at it."""
        self.data = add_hashes(self.data, image_hash(image))
        self.images += 1
        found = dict(zip(self._session.outputs, self._session.run(image), strict=True))
        found[self._session.input] = image
        for name, observer in self._observers.items():
            observer.update(found[name], image=True)
        return None if self._look is None else self._look(found)

    def observation(self) -> Observation:
        stats = {name: observer.stats() for name, observer in self._observers.items()}
        return Observation(stats, self.data, self.images)


def _single(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield images one at a time, [1, …]. Raises DatasetError for one that is not finite."""
    for batch in batches:
        for start in range(len(batch)):
            image = batch[start : start + 1]
            if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
                raise DatasetError("an image holds an infinite value or NaN; check the image files")
            yield image
