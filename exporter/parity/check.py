"""The parity gate with everything around `run_parity` that needs more than numpy: data sets, torch, onnx.

The command line and the pytest fixture call this, so that both mean the same by the same words.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from resnet_export.runtime.bundle.manifest import Manifest, read_manifest
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.parity.attribution.diagnosis import suspects
from resnet_export.runtime.parity.check import run_asked
from resnet_export.runtime.parity.criteria.tolerances import (
    GivenLimits,
    Overrides,
    checked_overrides,
    parse_overrides,
)
from resnet_export.runtime.parity.measure.comparison import Batch, ImageBatch, printable
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.parity.spec import ask, check_path, names
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from resnet_export.calibration.data.dataset import Dataset

__all__ = ["ALL", "check_parity", "open_data"]

ALL = "all"

Layers = Literal["failed", "none", "all"] | Collection[str]


def check_parity(
    bundle: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | Iterable[ImageBatch] | None = None,
    data_name: str | None = None,
    artifacts: Collection[str] | None = None,
    backends: Collection[str] | None = None,
    precisions: Collection[Precision] | None = None,
    reference: Literal["onnx", "eager"] = "onnx",
    weights: str | os.PathLike[str] | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_accuracy: float | None = None,
    tolerances: str | os.PathLike[str] | GivenLimits | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    layers: Layers = "failed",
    progress: Progress = silent,
) -> ParityReport:
    """Check a bundle as `run_parity` does, and look into the layers of what failed.

    Arguments of `run_parity` mean what they mean there. Besides:

    Args:
        data: a folder of images, an .npz file or a list file; or batches, as for `run_parity`.
        reference: what validation images are compared with: the fp32 graph, or the eager network, which needs torch.
        weights: the checkpoint that the bundle was exported from, for `reference="eager"`.
        tolerances: a JSON file with limits, or the limits, such as {"fp16": {"centered_cosine": 0.9995}}.
        seed: of the draw that `limit` makes from a path.
        layers: whose layers to compare with the fp32 graph's: those of the artifacts that "failed", where onnx is
            installed and the artifacts are to blame; of these artifacts, or "all", which needs onnx; or "none".

    Images of a path that cannot be read are skipped. What data sets warn of stands in the report's notes too.

    Raises what `run_parity` does, and RequestError, DatasetError or DependencyError for what is wrong here.
    """
    if isinstance(data, str | os.PathLike):
        path, batches = data, None
    else:
        path, batches = None, data
    check_path("bundle", bundle, "a bundle's folder")
    asked = ask(
        data=batches if path is None else (),
        data_name=("validation images" if path is None else os.fspath(path))
        if data_name is None
        else data_name,
        artifacts=artifacts,
        backends=backends,
        precisions=precisions,
        eager=None,
        max_drop=max_drop,
        min_agreement=min_agreement,
        min_accuracy=min_accuracy,
        tolerances=tolerances,
        limit=limit,
        threads=threads,
    )
    _check_seed(seed, data)
    wanted = _wanted_layers(bundle, layers)
    if weights is not None:
        check_path("weights", weights, "a checkpoint")
    if weights is not None and reference != "eager":
        raise RequestError(
            "weights were given without the eager reference, which alone needs them; add --reference eager"
        )
    if reference not in ("onnx", "eager"):
        raise RequestError(f"the reference is {reference!r}, expected 'onnx' or 'eager'")
    if reference == "eager" and data is None:
        raise RequestError(
            "the eager reference is for validation images, and there are none (the golden images are compared with "
            "recorded eager logits in any case); give --data, or leave --reference out"
        )
    overrides = _overrides(tolerances)
    noted: list[str] = []
    if path is not None:
        manifest = read_manifest(bundle)
        dataset = _open(manifest, path, limit=limit, seed=seed)
        batches = _counted(dataset, manifest, noted)
        # Warnings would not do: they go to whoever in the process listens, and other checks may run beside this one.
        noted += [printable(" ".join(note.split())) for note in dataset.notes]
    eager = None
    if reference == "eager":
        from resnet_export.exporter.parity.eager import eager_reference

        eager = eager_reference(bundle, weights, progress=progress)
    asked = msgspec.structs.replace(
        asked,
        reference=reference,
        seed=seed if path is not None and limit is not None else None,
        tolerances=printable(os.fspath(tolerances))
        if isinstance(tolerances, str | os.PathLike)
        else asked.tolerances,
        layers=_asked_layers(layers),
        weights=None if weights is None else printable(os.fspath(weights)),
    )
    report = run_asked(
        bundle, asked, overrides, data=batches, eager=eager, threads=threads, progress=progress
    )
    report = msgspec.structs.replace(report, notes=(*report.notes, *noted))
    if layers == "none" or (wanted is None and not suspects(report)):
        return report
    if wanted is None and not _has_onnx():
        note = (
            "the layers of what failed were not compared, since onnx is not installed; "
            "run: pip install 'resnet-export[export]'"
        )
        return msgspec.structs.replace(report, notes=(*report.notes, note))
    from resnet_export.exporter.debug.layerwise import with_layers

    return with_layers(
        report, bundle, "failed" if wanted is None else wanted, threads=threads, progress=progress
    )


def open_data(
    bundle: str | os.PathLike[str], data: str | os.PathLike[str], *, limit: int | None = None, seed: int = 0
) -> Iterator[Batch]:
    """Return the images of a folder, an .npz file or a list file, cropped as the bundle says, in batches.

    `limit` draws that many, by `seed`. Raises DatasetError, or BundleError for the bundle.
    """
    manifest = read_manifest(bundle)
    return _batches(_open(manifest, data, limit=limit, seed=seed), manifest)


def _open(manifest: Manifest, data: str | os.PathLike[str], *, limit: int | None, seed: int) -> Dataset:
    from resnet_export.calibration.data.dataset import open_dataset

    return open_dataset(
        data,
        preprocessing=manifest.preprocessing,
        limit=limit,
        seed=seed,
        labels=manifest.labels,
        num_classes=manifest.model.num_classes,
    )


def _batches(dataset: Dataset, manifest: Manifest) -> Iterator[Batch]:
    return (
        Batch(images=batch.images, labels=batch.labels, names=batch.names)
        for batch in dataset.batches(manifest.batch.opt)
    )


def _counted(dataset: Dataset, manifest: Manifest, notes: list[str]) -> Iterator[Batch]:
    """Yield all batches, and then add to `notes` how many images could not be read."""
    yield from _batches(dataset, manifest)
    found = dataset.describe()  # of the pass that has just ended
    if found.skipped:
        notes.append(
            f"{found.skipped} of {len(dataset)} images of {printable(found.source)} cannot be read and "
            f"{'was' if found.skipped == 1 else 'were'} skipped; the first: {printable(str(found.first_skipped))}"
        )


def _check_seed(seed: object, data: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed is {seed!r}, expected a whole number")
    if seed and data is None:
        raise RequestError("seed was given without data; it is that of the draw that limit makes: give some")


def _asked_layers(layers: Layers) -> tuple[str, ...] | None:
    """Return whose layers were asked for, as `Asked.layers` says it."""
    if layers == "failed":
        return None
    if layers == "none":
        return ()
    return (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))


def _wanted_layers(bundle: str | os.PathLike[str], layers: Layers) -> tuple[str, ...] | None:
    """Return the artifacts whose layers were asked for by name, None without any."""
    if isinstance(layers, str) and layers not in ("failed", "none", ALL):
        raise RequestError(f"layers is {layers!r}, expected 'failed', 'none', 'all' or names of artifacts")
    named = () if layers in ("failed", "none") else names("layers", (ALL,) if layers == ALL else layers)
    return _checked_layers(bundle, named) if named else None


def _checked_layers(bundle: str | os.PathLike[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the artifacts whose layers were asked for, found to be there before anything runs."""
    if not _has_onnx():
        raise DependencyError(
            "onnx is not installed, and layers are compared in graphs that it changes; "
            "run: pip install 'resnet-export[export]'"
        )
    from resnet_export.exporter.debug.layerwise import choose

    manifest = read_manifest(bundle)
    wanted = None if ALL in names and ALL not in {one.name for one in manifest.artifacts} else names
    return tuple(artifact.name for artifact in choose(manifest, wanted))


def _has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return True


def _overrides(given: str | os.PathLike[str] | GivenLimits | None) -> Overrides:
    if given is None:
        return {}
    if not isinstance(given, str | os.PathLike):
        return checked_overrides(given)
    path = Path(given)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"the tolerance file {path} cannot be read: {error.strerror}") from error
    return parse_overrides(data, str(path))
