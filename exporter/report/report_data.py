"""What the page shows and the report does not hold: names of classes, ranges, and the images that flipped.

What the export recorded can be read before the check, so that damage to it is known then. The rest is read after
it, and only what is needed: of the images, the few whose prediction changed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.dataset import DatasetWarning, crop_image, open_dataset
from resnet_export.calibration.data.image_sources import Classes, list_images
from resnet_export.calibration.observe.table import CalibrationTable, decode_table
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import (
    REPORT_NAME,
    TABLE_NAME,
    Artifact,
    Manifest,
    Preprocessing,
    Provenance,
    read_artifact,
    read_manifest,
    read_stable,
)
from resnet_export.runtime.errors import BundleError, DatasetError, ImageError, RequestError, SchemaError
from resnet_export.runtime.parity.measure.comparison import Flip, printable
from resnet_export.runtime.parity.report.schema import ParityReport, decode_report
from resnet_export.runtime.parity.report.search_report import PlanSummary

SHOWN = 48
"""Images in the gallery, at most. At some 5 kB each they leave the page far below 3 MB."""


class ImageKey(NamedTuple):
    """One image of the report: `number` of the golden images or of the data."""

    images: Literal["golden", "data"]
    number: int


@dataclass(frozen=True)
class Recorded:
    """What the export wrote beside the graphs: the ranges, and which of them the INT8 graphs have."""

    table: CalibrationTable | None = None
    choice: PlanSummary | None = None


@dataclass(frozen=True)
class Material:
    """Everything on the page that is not in the report.

    `choice` says which ranges of `table` the INT8 graphs have.
    `crops` are uint8 [H, W, 3], RGB. What is missing is left empty, and the page says so in its place.
    """

    labels: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    provenance: Provenance | None = None
    table: CalibrationTable | None = None
    choice: PlanSummary | None = None
    crops: Mapping[ImageKey, NDArray[np.uint8]] = field(default_factory=dict)


def read_recorded(bundle: str | os.PathLike[str]) -> Recorded:
    """Read a bundle's `calibration.json` and `report.json`, where it has them.

    Raises BundleError when one is missing though the manifest names it, damaged, or no table; and what reading a
    bundle raises.
    """

    def read(manifest: Manifest) -> Recorded:
        return Recorded(_table(bundle, manifest), _recorded_choice(bundle, manifest))

    return read_stable(bundle, read)


def gather(
    bundle: str | os.PathLike[str],
    report: ParityReport,
    *,
    data: str | os.PathLike[str] | None = None,
    recorded: Recorded | None = None,
) -> Material:
    """Read what the page of `report` shows from the bundle that was checked, and from the data it was checked on.

    `data` is what the check was given; `recorded` is what `read_recorded` found before it, by
    default read now. An image that cannot be read any more is left out; the page shows its row without a picture.

    Raises BundleError when the bundle is not the one that the report is about, and what reading a bundle raises.
    """
    manifest = read_manifest(bundle)
    hashes = {artifact.name: artifact.sha256 for artifact in manifest.artifacts}
    for entry in report.entries:
        if hashes.get(entry.artifact) != entry.sha256:
            raise BundleError(
                f"the report is about another {entry.artifact!r} than the bundle holds; check the bundle again"
            )
    keys = flipped(report)
    if recorded is None:
        recorded = read_recorded(bundle)
    return Material(
        labels=manifest.labels,
        artifacts=manifest.artifacts,
        provenance=manifest.provenance,
        table=recorded.table,
        choice=recorded.choice if report.int8 is None else report.int8.plan,
        crops=_golden_crops(bundle, keys) | _data_crops(report, keys, data, manifest),
    )


def flipped(report: ParityReport) -> tuple[ImageKey, ...]:
    """Return the images that the gallery shows: those that flip in the most runs first, `SHOWN` at most."""
    runs: dict[ImageKey, int] = {}
    for images, flip in _flips(report):
        key = ImageKey(images, flip.index)
        runs[key] = runs.get(key, 0) + 1
    ranked = sorted(runs, key=lambda key: (key.images == "golden", -runs[key], key.number))
    return tuple(ranked[:SHOWN])


def _flips(report: ParityReport) -> Iterable[tuple[Literal["golden", "data"], Flip]]:
    for entry in report.entries:
        for check in entry.checks:
            for flip in check.comparison.flips:
                yield check.images, flip


def _table(bundle: str | os.PathLike[str], manifest: Manifest) -> CalibrationTable | None:
    found = manifest.file(TABLE_NAME)
    if found is None:
        return None
    try:
        return decode_table(read_artifact(bundle, found))
    except RequestError as error:
        raise BundleError(
            f"{TABLE_NAME!r} of the bundle {os.fspath(bundle)} cannot be shown: {error}"
        ) from error


def _recorded_choice(bundle: str | os.PathLike[str], manifest: Manifest) -> PlanSummary | None:
    """Return the choice in the report of the export, None when there is none that this version reads."""
    found = manifest.file(REPORT_NAME)
    if found is None:
        return None
    data = read_artifact(bundle, found)
    try:
        search = decode_report(data).int8
    except SchemaError:
        return None  # of another version; the page says that it shows the table's own ranges
    return None if search is None else search.plan


def _golden_crops(
    bundle: str | os.PathLike[str], keys: tuple[ImageKey, ...]
) -> dict[ImageKey, NDArray[np.uint8]]:
    wanted = [key for key in keys if key.images == "golden"]
    if not wanted:
        return {}
    images = read_golden(bundle).images
    return {key: images[key.number] for key in wanted if key.number < len(images)}


def _data_crops(
    report: ParityReport,
    keys: tuple[ImageKey, ...],
    data: str | os.PathLike[str] | None,
    manifest: Manifest,
) -> dict[ImageKey, NDArray[np.uint8]]:
    wanted = {key for key in keys if key.images == "data"}
    if data is None or not wanted:
        return {}
    names = {ImageKey(images, flip.index): flip.name for images, flip in _flips(report)}
    count = manifest.model.num_classes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DatasetWarning)  # said when the check opened the same data
            selected = open_dataset(
                data,
                preprocessing=manifest.preprocessing,
                limit=report.asked.limit,
                seed=report.asked.seed,
                labels=manifest.labels,
                num_classes=count,
            ).names
        listing = list_images(Path(data), Classes(manifest.labels, count))
    except DatasetError:  # it was there a moment ago; the verdict does not depend on pictures
        return {}
    place = {name: i for i, name in reversed(list(enumerate(listing.names)))}
    where: dict[int, list[ImageKey]] = {}
    for key in sorted(wanted):
        position = _position(selected, key.number, names[key])
        if position is not None:
            where.setdefault(place[selected[position]], []).append(key)
    crops: dict[ImageKey, NDArray[np.uint8]] = {}
    order = sorted(where)
    try:
        for i, image in zip(order, listing.read(order), strict=True):
            crop = _crop(image, manifest.preprocessing, listing.names[i])
            crops |= {key: crop for key in where[i] if crop is not None}
    except DatasetError:
        pass  # an archive that was cut short meanwhile: what was read until then is shown
    return crops


def _position(selected: tuple[str, ...], index: int, name: str) -> int | None:
    """Return where image `index` of the stream stands in the selection.

    Images that could not be read are in the selection and not in the stream: its images lie at their index or
    behind it.
    """
    return next((i for i in range(index, len(selected)) if printable(selected[i]) == name), None)


def _crop(
    image: Path | NDArray[np.uint8], preprocessing: Preprocessing, name: str
) -> NDArray[np.uint8] | None:
    try:
        return crop_image(image, preprocessing, name)
    except ImageError:
        return None
