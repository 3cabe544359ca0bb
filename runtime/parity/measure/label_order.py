"""Are some classes' labels exchanged for each other's? What a sorted label file or an off-by-one does to data.

Labels that are all wrong show in Cohen's kappa. Labels of which a few are exchanged cost both sides of a comparison
alike, and leave kappa high. But they leave a pattern that no weak network has: the images of one class go to
another, that one's to a third, and so on back to the first. A network that confuses two classes gives both to one of
them; it does not trade them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resnet_export.runtime.parity.measure.statistics import CONFIDENCE, mcnemar

Pairs = Mapping[tuple[int, int], int]
"""(label, class that the reference predicts) → number of images."""


def exchanged(pairs: Pairs) -> tuple[tuple[int, ...], ...]:
    """Return the cycles of labels whose images the reference gives to each other, each from its lowest class on.

    Each label points to the class that most of its images are given to (the lowest of several). A cycle of two
    labels or more is returned when following it is right beyond doubt more often than the labels are: by the sign
    test over its images, at 5 % divided by the number of labels (Bonferroni).
    """
    by_label: dict[int, dict[int, int]] = {}
    for (label, predicted), count in pairs.items():
        by_label.setdefault(label, {})[predicted] = count
    points = {label: max(sorted(found), key=found.__getitem__) for label, found in by_label.items()}

    def beyond_doubt(cycle: tuple[int, ...]) -> bool:
        followed = sum(by_label[label][points[label]] for label in cycle)
        as_labelled = sum(by_label[label].get(label, 0) for label in cycle)
        threshold = (1 - CONFIDENCE) / len(by_label)
        return followed > as_labelled and mcnemar(followed, as_labelled) < threshold

    return tuple(cycle for cycle in _cycles(points) if beyond_doubt(cycle))


def _cycles(points: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
    """Yield the cycles of at least two members of a function, by their lowest member."""
    for start in sorted(points):
        walk = [start]
        while (after := points.get(walk[-1])) is not None and after not in walk:
            walk.append(after)
        if after == start and start == min(walk) and len(walk) > 1:
            yield tuple(walk)
