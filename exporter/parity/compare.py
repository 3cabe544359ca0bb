"""Two bundles side by side: what was asked for otherwise, and what became of accuracy, predictions, size and time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import Artifact, Manifest, Struct, read_manifest
from resnet_export.runtime.errors import BackendError, NoBackendError, RequestError
from resnet_export.runtime.parity.measure.comparison import Batch, Comparison, Tally
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.session import Session, open_session

__all__ = ["ArtifactChange", "BundleChange", "compare_bundles"]


class ArtifactChange(Struct, frozen=True):
    """One artifact, by its name, in both bundles; None on a side that lacks it.

    `milliseconds` are what one image took on `backend`, in the same batches taken in turns; `comparison` has the bundle
    before as its reference. `error` says why nothing was compared.
    """

    name: str
    megabytes: tuple[float | None, ...]
    backend: str | None = None
    milliseconds: tuple[float, ...] = ()
    comparison: Comparison | None = None
    error: str | None = None


class BundleChange(Struct, frozen=True):
    """What changed from one bundle to another.

    `facts` are sentences on what was asked for and made otherwise; `images` says on what the artifacts were compared;
    `failures` are the artifacts that lost more than `max_drop`, in words.
    """

    before: str
    after: str
    images: str
    facts: tuple[str, ...]
    artifacts: tuple[ArtifactChange, ...]
    max_drop: float | None
    failures: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 where an artifact lost more than was allowed."""
        return 1 if self.failures else 0


def compare_bundles(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    artifacts: tuple[str, ...] = (),
    limit: int | None = None,
    max_drop: float | None = None,
    progress: Progress = silent,
) -> BundleChange:
    """Run the artifacts that both bundles have on the same images, each with its own preprocessing.

    Args:
        before, after: the bundles' folders.
        data: images, labeled or not; by default the golden images of `before`, which need the same crop in both.
        artifacts: restricts the artifacts, by name.
        limit: use at most that many images of `data`.
        max_drop: percentage points of accuracy that an artifact may lose; of agreement where there are no labels.

    Raises RequestError where the bundles do not tell the same classes apart or share no artifact that was asked for,
    and what opening bundles and data raises.
    """
    sides = tuple(_Side(Path(path), read_manifest(path)) for path in (before, after))
    one, other = (side.manifest for side in sides)
    if one.model.num_classes != other.model.num_classes:
        raise RequestError(
            f"{before} tells {one.model.num_classes} classes apart and {after} {other.model.num_classes}; compare "
            "bundles of one task"
        )
    names = {artifact.name: None for manifest in (one, other) for artifact in manifest.artifacts}
    if unknown := [name for name in artifacts if name not in names]:
        raise RequestError(f"neither bundle has an artifact {unknown[0]!r}; they have {', '.join(names)}")
    chosen = [name for name in names if not artifacts or name in artifacts]
    images = _golden(sides) if data is None else _data(sides, data, limit)
    with ExitStack() as stack:
        pairs = [_open(sides, name, stack) for name in chosen]
        _run(pairs, progress(images.batches(), "images", images.count))
    changes = tuple(pair.change() for pair in pairs)
    return BundleChange(
        before=os.fspath(before),
        after=os.fspath(after),
        images=images.title,
        facts=tuple(_facts(one, other)),
        artifacts=changes,
        max_drop=max_drop,
        failures=() if max_drop is None else tuple(_failures(changes, max_drop)),
    )


@dataclass(frozen=True)
class _Side:
    path: Path
    manifest: Manifest

    def artifact(self, name: str) -> Artifact | None:
        return next((found for found in self.manifest.artifacts if found.name == name), None)


@dataclass(frozen=True)
class _Images:
    """Batches of both sides' crops of the same images."""

    title: str
    count: int
    batches: Callable[[], Iterator[tuple[Batch, Batch]]]


@dataclass
class _Pair:
    """One artifact of both bundles while it runs."""

    name: str
    found: tuple[Artifact | None, ...]
    sessions: tuple[Session, ...] = ()
    error: str | None = None
    tally: Tally | None = None
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    count: int = 0

    def change(self) -> ArtifactChange:
        return ArtifactChange(
            name=self.name,
            megabytes=tuple(None if artifact is None else artifact.bytes / 1e6 for artifact in self.found),
            backend=self.sessions[0].choice.backend if self.sessions else None,
            milliseconds=tuple(1000 * seconds / self.count for seconds in self.seconds) if self.count else (),
            comparison=None if self.tally is None or self.error else self.tally.comparison(),
            error=self.error,
        )


def _open(sides: tuple[_Side, ...], name: str, stack: ExitStack) -> _Pair:
    found = tuple(side.artifact(name) for side in sides)
    missing = [side.path for side, artifact in zip(sides, found, strict=True) if artifact is None]
    if missing:
        return _Pair(name, found, error=f"{missing[0]} has none")
    try:
        first = stack.enter_context(open_session(sides[0].path, artifact=name))
        second = stack.enter_context(
            open_session(
                sides[1].path, artifact=name, backend=first.choice.backend, device=first.choice.device
            )
        )
    except (NoBackendError, BackendError) as error:
        return _Pair(name, found, error=" ".join(str(error).split()))
    return _Pair(name, found, (first, second))


def _run(pairs: list[_Pair], batches: Iterator[tuple[Batch, Batch]]) -> None:
    done = 0
    for crops in batches:
        _check_labels(crops)
        for pair in pairs:
            if pair.error is None:
                try:
                    was, now = (_timed(pair, side, crops[side].images) for side in (0, 1))
                except BackendError as error:
                    pair.error = " ".join(str(error).split())
                    continue
                activation = pair.sessions[0].manifest.model.activation
                part = Tally.of(was, now, crops[0].labels, crops[0].names, first=done, activation=activation)
                pair.tally = part if pair.tally is None else pair.tally + part
                pair.count += len(crops[0].images)
        done += len(crops[0].images)


def _check_labels(crops: tuple[Batch, Batch]) -> None:
    """Raise RequestError where the bundles take the labels of the same images for different classes."""
    one, other = (batch.labels for batch in crops)
    if one is not None and (other is None or not np.array_equal(one, other)):
        raise RequestError(
            "the bundles name their classes otherwise, so that a label of --data means one class in one and another "
            "in the other; give both the same labels (resnet-export relabel), or images without labels"
        )


def _timed(pair: _Pair, side: int, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = pair.sessions[side]
    images = to_input(crops, session.manifest.preprocessing)
    start = time.perf_counter()
    logits = session.run(images)
    pair.seconds[side] += time.perf_counter() - start
    return logits


def _golden(sides: tuple[_Side, ...]) -> _Images:
    one, other = (side.manifest.preprocessing for side in sides)
    if (one.resize, one.crop, one.interpolation, one.channels) != (
        other.resize,
        other.crop,
        other.interpolation,
        other.channels,
    ):
        raise RequestError(
            "the bundles resize or crop images otherwise, so that golden images of one are none of the other; give "
            "--data with images"
        )
    images = read_golden(sides[0].path).images
    batch = Batch(images, None)
    return _Images(f"{len(images)} golden images of {sides[0].path}", 1, lambda: iter([(batch, batch)]))


def _data(sides: tuple[_Side, ...], data: str | os.PathLike[str], limit: int | None) -> _Images:
    from resnet_export.calibration.data.dataset import open_dataset

    datasets = [
        open_dataset(
            data,
            preprocessing=side.manifest.preprocessing,
            limit=limit,
            labels=side.manifest.labels,
            num_classes=len(side.manifest.labels),
        )
        for side in sides
    ]
    size = min(side.manifest.batch.opt for side in sides)
    count = len(datasets[0])
    return _Images(
        f"{count} images of {os.fspath(data)}",
        -(-count // size),
        lambda: zip(*(dataset.batches(size) for dataset in datasets), strict=True),
    )


def _facts(before: Manifest, after: Manifest) -> Iterator[str]:
    told: Mapping[str, Callable[[Manifest], Any]] = {
        "architecture": lambda manifest: manifest.model.arch,
        "weights": lambda manifest: manifest.model.weights.sha256 or f"seed {manifest.model.weights.seed}",
        "labels": lambda manifest: f"{len(manifest.labels)}, the first {manifest.labels[0]!r}",
        "preprocessing": lambda manifest: manifest.preprocessing.words,
        "input": lambda manifest: f"{manifest.input.dtype} {manifest.input.layout}",
        "batch sizes": lambda manifest: f"{manifest.batch.min},{manifest.batch.opt},{manifest.batch.max}",
        "exporter": lambda manifest: manifest.provenance.exporter,
    }
    for name, tell in told.items():
        was, now = tell(before), tell(after)
        if was != now:
            yield f"{name}: {was} → {now}"
    if before.labels != after.labels and told["labels"](before) == told["labels"](after):
        yield "labels: other names for the classes"
    packages = before.provenance.versions | after.provenance.versions
    for package in packages:
        was, now = (side.provenance.versions.get(package, "none") for side in (before, after))
        if was != now:
            yield f"{package}: {was} → {now}"
    later = {artifact.name: artifact for artifact in after.artifacts}
    for was, now in ((one, later[one.name]) for one in before.artifacts if one.name in later):
        if {layer.node for layer in was.excluded} != {layer.node for layer in now.excluded}:
            yield f"{was.name}: {len(was.excluded)} → {len(now.excluded)} layers excluded"
        if was.sha256 == now.sha256:
            yield f"{was.name}: the same file"


def _failures(changes: tuple[ArtifactChange, ...], max_drop: float) -> Iterator[str]:
    for change in changes:
        if change.comparison is None:
            if change.megabytes[0] is not None and change.megabytes[1] is None:
                yield f"{change.name} is gone"
            continue
        labeled = change.comparison.labeled
        agreement = 100 * change.comparison.figures.top1_agreement
        lost = 100 - agreement if labeled is None else labeled.drop_points
        if lost > max_drop:
            what = "agreement" if labeled is None else "accuracy"
            yield f"{change.name} lost {lost:.2f} points of {what}, {max_drop:g} are allowed"
