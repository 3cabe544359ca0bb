"""Images for calibration and for parity: sampled by a seed, decoded in parallel, streamed in batches.

A data set is read again for every pass and never held in memory: at any moment there are the batch that is
being put together and two crops for each worker. The preprocessing is the runtime's own.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.image_sources import Classes, Kind, Listing, list_images
from resnet_export.runtime import preprocess
from resnet_export.runtime.ahead import map_ahead
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError, ImageError
from resnet_export.runtime.parity.measure.comparison import Batch
from resnet_export.runtime.progress import Progress, silent

__all__ = [
    "MAX_SKIPPED_SHARE",
    "Batch",
    "Dataset",
    "DatasetWarning",
    "Description",
    "crop_image",
    "draw",
    "hash_crops",
    "open_dataset",
]

MAX_SKIPPED_SHARE = 0.05
"""A pass fails when more than this share of the images, and more than one image, cannot be read.

A few damaged files are normal in collections of photographs (ImageNet has some) and cannot move a range or an
accuracy noticeably. Every twentieth file is a broken download or a wrong folder, and where damage goes along
with content (one camera, one class), what remains is no longer a fair sample.
"""


class DatasetWarning(UserWarning):
    """A data set is used, but not all of it, or not as its owner may think: the message says what and why."""


@dataclass(frozen=True)
class Description:
    """What a complete pass found.

    `count` images were read and `skipped` could not be (the first of them was `first_skipped`). `sha256`
    hashes the crops in order, so that it does not depend on names, labels, batch size or kind of source.
    """

    source: str
    kind: Kind | Literal["memory", "bundled"]
    count: int
    skipped: int
    first_skipped: str | None
    labeled: bool
    sha256: str


class Dataset:
    """A fixed selection of images from one source, in the source's order. Made by `open_dataset`.

    Attributes:
        source: where the images are.
        kind: "folder", "list" or "npz".
        preprocessing: what turns an image into a crop.
        names: of the selected images, for messages.
        labels: int64 [N], their classes, or None.
        notes: what was taken otherwise than its owner may think; `open_dataset` says it in warnings.
    """

    def __init__(
        self,
        source: Path,
        listing: Listing,
        selected: Sequence[int],
        preprocessing: Preprocessing,
        workers: int,
    ) -> None:
        self.source = source
        self.kind = listing.kind
        self.preprocessing = preprocessing
        self.names = tuple(listing.names[index] for index in selected)
        self.labels = None if listing.labels is None else listing.labels[list(selected)]
        self.notes = listing.notes
        self._listing = listing
        self._selected = tuple(selected)
        self._workers = workers
        self._description: Description | None = None

    def __len__(self) -> int:
        """Return how many images are selected; those that turn out unreadable are among them."""
        return len(self._selected)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images, `batch_size` at a time (the last batch may be smaller), always in the same order.

        Unreadable images are left out; the first complete pass counts them in one DatasetWarning. Raises
        DatasetError when there are too many of them (`MAX_SKIPPED_SHARE`) or nothing else, or when the source
        itself is damaged.
        """
        if batch_size < 1:
            raise DatasetError(f"the batch size is {batch_size}, expected at least 1; give a larger one")
        return self._batches(batch_size)

    def describe(self, progress: Progress = silent) -> Description:
        """Return what a complete pass found: the first one's findings, or those of a pass made now."""
        if self._description is None:
            for _ in progress(self._batches(1), "Reading images", len(self)):
                pass
        if self._description is None:
            raise DatasetError(f"{str(self.source)!r} was not read to its end; read it again")
        return self._description

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        digest = _hash("uint8", self.preprocessing.crop_shape)
        count = 0
        failures: list[ImageError] = []
        first_skipped: str | None = None
        crops: list[NDArray[np.uint8]] = []
        positions: list[int] = []
        for position, crop in enumerate(self._crops()):
            if isinstance(crop, ImageError):
                first_skipped = first_skipped or self.names[position]
                failures.append(crop)
                self._check_failures(failures)
                continue
            digest.update(crop.tobytes())
            count += 1
            crops.append(crop)
            positions.append(position)
            if len(crops) == batch_size:
                yield self._batch(crops, positions)
                crops, positions = [], []
        if crops:
            yield self._batch(crops, positions)
        if not count:
            raise DatasetError(f"{str(self.source)!r} has no readable image: {failures[0]}") from failures[0]
        if self._description is None:
            self._description = Description(
                source=str(self.source),
                kind=self.kind,
                count=count,
                skipped=len(failures),
                first_skipped=first_skipped,
                labeled=self.labels is not None,
                sha256=digest.hexdigest(),
            )
            if failures:
                warnings.warn(
                    f"{len(failures)} of {len(self)} images of {str(self.source)!r} cannot be read and "
                    f"{'was' if len(failures) == 1 else 'were'} skipped; the first: {failures[0]}",
                    DatasetWarning,
                    stacklevel=2,
                )

    def _batch(self, crops: list[NDArray[np.uint8]], positions: list[int]) -> Batch:
        labels = None if self.labels is None else self.labels[positions]
        return Batch(np.stack(crops), labels, tuple(self.names[position] for position in positions))

    def _check_failures(self, failures: list[ImageError]) -> None:
        if len(failures) > max(1, MAX_SKIPPED_SHARE * len(self)):
            raise DatasetError(
                f"at least {len(failures)} of {len(self)} images of {str(self.source)!r} cannot be read, "
                f"which is over the limit of {MAX_SKIPPED_SHARE:.0%}; the first: {failures[0]}"
            ) from failures[0]

    def _crops(self) -> Iterator[NDArray[np.uint8] | ImageError]:
        """Yield each selected image's crop, or why there is none, in order, decoding ahead in threads."""

        def crop(named: tuple[str, Path | NDArray[np.uint8]]) -> NDArray[np.uint8] | ImageError:
            name, image = named
            return _crop(image, self.preprocessing, name)

        images = zip(self.names, self._listing.read(self._selected), strict=True)
        yield from map_ahead(crop, images, ahead=2 * self._workers - 1, workers=self._workers)


def open_dataset(
    source: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 2,
    labels: Sequence[str] = (),
    num_classes: int | None = None,
) -> Dataset:
    """Open a folder of images, a list file (.txt) or an archive (.npz); `sources.list_images` has the forms.

    Args:
        source: the folder or file.
        preprocessing: what turns an image into a crop. Archive images of exactly the crop's size are taken as
            they are.
        limit: draw this many images (all, if there are fewer); stratified where there are labels: every class
            keeps its share. The draw depends on the seed and the names only, not on library versions, and
            another image in the source changes at most one in the draw where there are no labels.
        seed: of the draw.
        workers: threads that decode; Pillow releases the interpreter lock.
        labels: the network's labels, to recognize class folders and named labels by.
        num_classes: the network's number of classes, by default that of `labels`; without either, only
            negative labels are refused.

    What the source leaves open and was settled here is said in a DatasetWarning.

    Raises:
        DatasetError: the source is missing, empty, of an unknown form or damaged, or its labels do not fit.
    """
    for option, value in (("limit", limit), ("number of workers", workers)):
        if value is not None and value < 1:
            raise DatasetError(f"the {option} is {value}, expected at least 1; give a larger one")
    path = Path(source)
    count = num_classes if num_classes is not None else len(labels) or None
    listing = list_images(path, Classes(tuple(labels), count))
    for note in listing.notes:
        warnings.warn(note, DatasetWarning, stacklevel=2)
    total = len(listing.names)
    selected = range(total) if limit is None else draw(listing.names, listing.labels, limit, seed)
    return Dataset(path, listing, selected, preprocessing, workers)


def hash_crops(images: NDArray[Any]) -> str:
    """Return `Description.sha256` of images [N, …] in memory."""
    digest = _hash(str(images.dtype), images.shape[1:])
    for image in images:
        digest.update(image.tobytes())
    return digest.hexdigest()


def _hash(dtype: str, shape: tuple[int, ...]) -> hashlib._Hash:
    return hashlib.sha256(f"{dtype} {'×'.join(map(str, shape))}\n".encode())


def _crop(
    image: Path | NDArray[np.uint8], preprocessing: Preprocessing, name: str
) -> NDArray[np.uint8] | ImageError:
    try:
        return crop_image(image, preprocessing, name)
    except ImageError as error:
        return error


def crop_image(image: Path | NDArray[np.uint8], preprocessing: Preprocessing, name: str) -> NDArray[np.uint8]:
    """Return the crop of an image as a listing reads it; an array of exactly the crop's shape is one already.

    Raises ImageError.
    """
    if isinstance(image, Path):
        _require_regular(image)
        return preprocess.load(image, preprocessing)
    if image.shape == preprocessing.crop_shape:
        return image
    return preprocess.load(image, preprocessing, color="rgb", name=name)


def _require_regular(path: Path) -> None:
    """Raise ImageError for a pipe, which blocks whoever opens it, and for anything else that is no file."""
    with suppress(OSError, ValueError):  # What cannot be looked up cannot be read, which `load` says.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{str(path)!r} is not a regular file; give an image file")


def draw(names: Sequence[str], labels: NDArray[np.int64] | None, limit: int, seed: int) -> list[int]:
    """Draw `limit` of the images, and return their indices in ascending order.

    An image's rank is a hash of seed and name; the lowest ranks win. With labels, each class gets its
    proportional share, rounded by the method of largest remainders; equal remainders go to the class that has
    the lowest rank among them.
    """
    ranks = [hashlib.blake2b(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names]
    ranked = sorted(range(len(names)), key=lambda index: (ranks[index], index))
    if limit >= len(names):
        return sorted(ranked)
    if labels is None or labels.ndim == 2:
        return sorted(ranked[:limit])
    classes = labels.tolist()
    sizes = Counter(classes[index] for index in ranked)  # in the order of each class's lowest rank
    quotas = {label: limit * size // len(names) for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: -(limit * sizes[label] % len(names)))
    for label in by_remainder[: limit - sum(quotas.values())]:
        quotas[label] += 1
    drawn = []
    for index in ranked:
        if quotas[classes[index]]:
            quotas[classes[index]] -= 1
            drawn.append(index)
    return sorted(drawn)
