"""Images as a graph takes them, read again for every pass, and parts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Inputs


@dataclass(frozen=True)
class Feed:
    """A data set as a graph takes it. Nothing is held: `read` starts a pass over all of its images.

    Attributes:
        read: gives the batches of the whole data set, always in the same order.
        count: the number of images.
        chosen: positions of the images that belong to this part; None means all.
    """

    read: Callable[[], Iterable[Inputs]]
    count: int
    chosen: frozenset[int] | None = None

    def __len__(self) -> int:
        return self.count if self.chosen is None else len(self.chosen)

    def __call__(self) -> Iterator[Inputs]:
        """Yield the batches of one pass. A batch may be smaller than those of the source, never empty."""
        position = 0
        for images, labels in self.read():
            mine = [
                index
                for index in range(len(images))
                if self.chosen is None or position + index in self.chosen
            ]
            position += len(images)
            if len(mine) == len(images):
                yield images, labels
            elif mine:
                yield images[mine], None if labels is None else labels[mine]

    def images(self) -> Iterator[NDArray[Any]]:
        """Yield the batches of one pass without their labels."""
        return (images for images, _ in self())

    def split(self, count: int) -> tuple[Feed, Feed]:
        """Return the feed without `count` images, and those images, spread evenly over the source's order.

        Folders and lists are in the order of their classes, so every class gives its share.
        """
        drawn = self._spread(count)
        rest = frozenset(self._positions()) - drawn
        return replace(self, chosen=rest), replace(self, chosen=drawn)

    def sample(self, count: int) -> Feed:
        """Return `count` of the images, spread evenly, or all if there are no more."""
        return self if count >= len(self) else replace(self, chosen=self._spread(count))

    def _spread(self, count: int) -> frozenset[int]:
        positions = self._positions()
        return frozenset(positions[(2 * index + 1) * len(positions) // (2 * count)] for index in range(count))

    def _positions(self) -> list[int]:
        return list(range(self.count)) if self.chosen is None else sorted(self.chosen)


def in_fours(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Cut batches into parts of at most four images: all activations of more would take a gigabyte."""
    for batch in batches:
        for start in range(0, len(batch), 4):
            yield batch[start : start + 4]
