"""The images whose prediction changed, with both predictions: small pictures inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.report.report_data import ImageKey, Material, flipped
from resnet_export.runtime.parity.measure.comparison import Flip
from resnet_export.runtime.parity.report.schema import Entry, ParityReport
from resnet_export.runtime.preprocess import decode

SIDE = 128
"""Pixels on the longer side of a picture; twice what is shown on a phone, so that it is sharp there."""

_QUALITY = 80


@dataclass(frozen=True)
class Change:
    """What some runs made of an image: their names, their prediction, and how near the reference was to it.

    `near_tie` says within which width, and is empty where it was no near tie.
    """

    runs: str
    prediction: str
    margin: str
    near_tie: str


@dataclass(frozen=True)
class Tile:
    """One image: `picture` is a data URI or None, `truth` its label or None; predictions are in words."""

    name: str
    images: str
    picture: str | None
    reference: str
    truth: str | None
    changes: tuple[Change, ...]


def tiles(report: ParityReport, material: Material) -> tuple[Tile, ...]:
    """Return the images that `flipped` chooses, in its order."""
    return tuple(_tile(key, report, material) for key in flipped(report))


def flips_in_all(report: ParityReport) -> int:
    """Return in how many comparisons, of one run on one image each, the prediction changed."""
    return sum(check.comparison.flip_count for entry in report.entries for check in entry.checks)


def class_name(index: int, labels: Sequence[str]) -> str:
    """Return a class in words: its label and number; −1 stands for logits that are not finite."""
    if index < 0:
        return "none: its logits are not finite"
    return f"{labels[index]} ({index})" if index < len(labels) else f"class {index}"


def _tile(key: ImageKey, report: ParityReport, material: Material) -> Tile:
    found = list(_runs(key, report))
    first = found[0][1]
    words = [
        (entry, Change("", class_name(flip.candidate, material.labels), _margin(flip), _near(flip, width)))
        for entry, flip, width in found
    ]
    alike: dict[Change, list[Entry]] = {}
    for entry, change in words:
        alike.setdefault(change, []).append(entry)
    crop = material.crops.get(key)
    return Tile(
        name=first.name,
        images=key.images,
        picture=None if crop is None else _data_uri(crop),
        reference=class_name(first.reference, material.labels),
        truth=None if first.label is None else class_name(first.label, material.labels),
        changes=tuple(
            Change(_named(entries), change.prediction, change.margin, change.near_tie)
            for change, entries in alike.items()
        ),
    )


def _near(flip: Flip, width: float) -> str:
    """Say that an error which the limits permit can swap the two classes, as it can any that lie so near."""
    return f"within the {width:.2g} logits that permitted error may swap" if flip.near_tie else ""


def _runs(key: ImageKey, report: ParityReport) -> Iterator[tuple[Entry, Flip, float]]:
    """Yield each run that changed the image's prediction, how, and the run's near-tie width in logits."""
    for entry in report.entries:
        check = entry.check(key.images)
        if check is None:
            continue
        for flip in check.comparison.flips:
            if flip.index == key.number:
                yield entry, flip, check.comparison.near_tie


def _named(entries: Sequence[Entry]) -> str:
    """Name runs by artifact, each with its backends: "int8 on onnxruntime and openvino"."""
    titles: dict[str, list[str]] = {}
    for entry in entries:
        titles.setdefault(entry.artifact, []).append(entry.place)
    return ", ".join(f"{artifact} on {' and '.join(rest)}" for artifact, rest in titles.items())


def _margin(flip: Flip) -> str:
    """Say how much more the reference holds its own class to be right than the candidate's.

    A difference of two logits is the logarithm of the ratio of their softmax probabilities.
    """
    if flip.margin is None:
        return ""
    odds = math.exp(min(flip.margin, 50.0))
    shown = f"{odds:.2f}" if odds < 10 else f"{odds:.0f}" if odds < 10_000 else "over 10,000"
    return f"{flip.margin:.2g} logits ({shown} : 1)"


def _data_uri(crop: NDArray[np.uint8]) -> str:
    picture = decode(crop, color="rgb")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
