"""Images decoded once, for everything of an export that looks at them."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.dataset import Dataset, Description, draw, hash_crops
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.progress import Progress, silent

__all__ = ["Inputs", "Photos", "check_for_calibration", "load_photos"]

Inputs: TypeAlias = "tuple[NDArray[Any], NDArray[np.int64] | None]"
"""A batch in the layout and dtype of the graph's input, and its labels int64 [n] where there are any."""

BATCH = 8

MAX_IN_MEMORY = 512 * 2**20
"""Bytes from which on the crops lie in a memory-mapped temporary file (3,400 crops of 224 pixels)."""


@dataclass(frozen=True, eq=False)
class Photos:
    """Images in memory, in a fixed order. Parts of them are Photos, too.

    Attributes:
        images: read-only. The crops, uint8 [N, H, W, C], or, where `preprocessing` is None, graph inputs of any dtype
            and shape [N, …].
        labels: int64 [N], or None.
        names: of the images, for messages.
        preprocessing: what turns the crops into graph inputs; None where `images` are graph inputs.
        description: what the whole source held. A part keeps it; `len` counts the images of the part.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    preprocessing: Preprocessing | None
    description: Description

    @classmethod
    def of(
        cls,
        images: NDArray[Any],
        preprocessing: Preprocessing | None,
        *,
        labels: NDArray[np.int64] | None = None,
        kind: Literal["memory", "bundled"] = "memory",
    ) -> Photos:
        """Return the photos of an array, which is not copied, called "images[0]" and so on."""
        view = images.view()
        view.flags.writeable = False
        description = Description(
            source=kind,
            kind=kind,
            count=len(view),
            skipped=0,
            first_skipped=None,
            labeled=labels is not None,
            sha256=hash_crops(view),
        )
        names = tuple(f"images[{index}]" for index in range(len(view)))
        return cls(view, labels, names, preprocessing, description)

    @property
    def bundled(self) -> bool:
        """Whether they ship with the package, and are not the user's."""
        return self.description.kind == "bundled"

    def __len__(self) -> int:
        """Return the number of images; unreadable ones are not among them."""
        return len(self.images)

    def __getitem__(self, part: slice) -> Photos:
        """Return a part of the photos; nothing is copied."""
        labels = None if self.labels is None else self.labels[part]
        return replace(self, images=self.images[part], labels=labels, names=self.names[part])

    def as_input(self) -> NDArray[Any]:
        """Return all images as one batch of the graph's input."""
        return self.images if self.preprocessing is None else to_input(self.images, self.preprocessing)

    def batches(self, size: int = BATCH) -> Iterator[Inputs]:
        """Yield graph inputs with their labels, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            part = self[start : start + size]
            yield part.as_input(), part.labels

    def inputs(self, size: int = BATCH) -> Iterator[NDArray[Any]]:
        """Yield graph inputs, `size` at a time, without their labels."""
        return (inputs for inputs, _ in self.batches(size))

    def sample(self, count: int) -> Photos:
        """Return `count` of the images, spread evenly, or all if there are no more.

        Folders and lists are in the order of their classes, so every class gives its share.
        """
        return self if count >= len(self) else self._part(self.spread(count))

    def split(self, count: int) -> tuple[Photos, Photos]:
        """Return the photos without `count` of them, and those, which are `sample(count)`."""
        if not 0 <= count <= len(self):
            raise DatasetError(f"{count} of {len(self)} images cannot be held out; give more images")
        drawn = self.spread(count)
        return self._part(sorted(set(range(len(self))) - set(drawn))), self._part(drawn)

    def where(self, chosen: NDArray[np.bool_]) -> Photos:
        """Return the photos that bool `chosen` [N] says."""
        return self if chosen.all() else self._part([int(place) for place in np.flatnonzero(chosen)])

    def draw(self, count: int, seed: int) -> Photos:
        """Return `count` of the images (all, if there are fewer), drawn by seed as `open_dataset` draws."""
        return self._part(draw(self.names, self.labels, count, seed))

    def with_preprocessing(self, preprocessing: Preprocessing) -> Photos:
        """Return the same crops for graphs with another preprocessing, normalization in the graph, say."""
        return replace(self, preprocessing=preprocessing)

    def spread(self, count: int) -> list[int]:
        """Return the positions of the images that `sample` returns."""
        return [(2 * index + 1) * len(self) // (2 * count) for index in range(count)]

    def _part(self, positions: Sequence[int]) -> Photos:
        images = _allocate((len(positions), *self.images.shape[1:]), self.images.dtype)
        for place, position in enumerate(positions):
            images[place] = self.images[position]
        images.flags.writeable = False
        labels = None if self.labels is None else self.labels[list(positions)]
        names = tuple(self.names[position] for position in positions)
        return replace(self, images=images, labels=labels, names=names)


def load_photos(
    dataset: Dataset, preprocessing: Preprocessing | None = None, *, progress: Progress = silent
) -> Photos:
    """Decode a data set, once and in parallel.

    Args:
        dataset: the images; the crops are as its preprocessing says.
        preprocessing: what turns the crops into graph inputs, where that differs from the data set's own in
            `in_graph`.
        progress: told about every image.

    Unreadable images are left out, with a DatasetWarning. Raises DatasetError as `Dataset.batches` does, and when
    the crops take more than `MAX_IN_MEMORY` and the temporary folder has no room for them.
    """
    images = _allocate((len(dataset), *dataset.preprocessing.crop_shape), np.dtype(np.uint8))
    names: list[str] = []
    labels: list[NDArray[np.int64]] = []
    for batch in progress(dataset.batches(1), "Reading images", len(dataset)):
        images[len(names)] = batch.images[0]
        names += batch.names
        labels += [] if batch.labels is None else [np.asarray(batch.labels, np.int64)]
    images = images[: len(names)]
    images.flags.writeable = False
    return Photos(
        images,
        np.concatenate(labels) if labels else None,
        tuple(names),
        preprocessing or dataset.preprocessing,
        dataset.describe(),
    )


def check_for_calibration(crops: Iterable[NDArray[np.uint8]], source: str) -> None:
    """Refuse images of `source`, uint8 [H, W, C] each, that ranges cannot be measured on.

    That takes at least two that differ and are not a single color each. Reading stops as soon as they are found, mostly
    with the second image. Raises DatasetError.
    """
    count = 0
    pictures = set()
    for crop in crops:
        count += 1
        if (crop != crop[0, 0]).any():
            pictures.add(hashlib.sha256(crop.tobytes()).digest())
        if len(pictures) > 1:
            return
    if count == 1:
        found = "a single image"
    elif pictures:
        found = f"only one picture in {count} images, the others being copies of it or of a single color"
    else:
        found = f"{count} images, each of a single color"
    raise DatasetError(
        f"{source!r} has {found}; calibrate on at least 2 different photographs, better 100 or more"
    )


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array to be filled: in memory, or in a file without a name, which goes with the array."""
    size = math.prod(shape) * dtype.itemsize
    if size <= MAX_IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(prefix="resnet-export-") as file:
            # Reserved now: writing to a mapped page for which the disk has no room would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise DatasetError(
            f"{shape[0]} images take {size / 2**20:.0f} MB, for which {tempfile.gettempdir()!r} has no room "
            f"({error.strerror or error}); give fewer, or set TMPDIR to a folder that has"
        ) from error
