"""Calibration on a Ray cluster: each shard of the images makes histograms, which add up exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe.calibrate import Observation, observe_graph
from resnet_export.exporter.ray.cluster import Cluster
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["observe_on"]

_SHARD = 32  # images; a shard costs a session


def observe_on(
    cluster: Cluster,
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    total: int | None = None,
    progress: Progress = silent,
) -> Observation:
    """Return what `observe_graph` returns, bit for bit, with the images spread over the cluster.

    The images are decoded here and travel as arrays, so that no node needs the files; each processor of the cluster
    takes a shard at a time. Raises what `observe_graph` does.
    """
    shared = cluster.share(model.SerializeToString())
    shards = None if total is None else -(-total // _SHARD)
    found = reduce(
        lambda one, other: other if one is None else one.merge(other),
        progress(cluster.map(_observe, shared, _shards(batches)), "Calibrating", shards),
        None,
    )
    if found is None:
        raise DatasetError("there is no image to calibrate on; give at least one, better 100 or more")
    return found


def _observe(model: bytes, images: NDArray[Any]) -> Observation:
    return observe_graph(onnx.load_from_string(model), [images], threads=1)


def _shards(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    held: list[NDArray[Any]] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= _SHARD:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
