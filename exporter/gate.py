"""The parity gate with everything around `run_parity` that needs more than numpy: data sets, torch, onnx.

The command line and the pytest fixture call this, so that both mean the same by the same words.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.manifest import Precision, read_manifest
from resnet_export.runtime.parity.compare import Batch, ImageBatch
from resnet_export.runtime.parity.gate import run_parity
from resnet_export.runtime.parity.report import ParityReport
from resnet_export.runtime.parity.tolerances import Overrides, parse_overrides
from resnet_export.runtime.progress import Progress, silent

__all__ = ["ALL", "check_parity", "open_data"]

ALL = "all"

Layers = Literal["failed", "none"] | Collection[str]


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
    tolerances: str | os.PathLike[str] | Overrides | None = None,
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
        reference: what further images are compared with: the fp32 graph, or the eager network, which needs torch.
        weights: the checkpoint that the bundle was exported from, for `reference="eager"`.
        tolerances: a JSON file with limits, or the limits.
        seed: of the draw that `limit` makes from a path.
        layers: whose layers to compare with the fp32 graph's: those of the artifacts that "failed", where onnx is
            installed; of these artifacts ("all" of them), which needs onnx; or "none".

    Raises what `run_parity` does, and RequestError, DatasetError or DependencyError for what is wrong here.
    """
    named = layers if not isinstance(layers, str) else None
    if isinstance(layers, str) and layers not in ("failed", "none"):
        raise RequestError(f"layers is {layers!r}, expected 'failed', 'none' or names of artifacts")
    if named is not None:
        named = _checked_layers(bundle, named)
    if weights is not None and reference != "eager":
        raise RequestError(
            "weights were given without the eager reference, which alone needs them; add --reference eager"
        )
    if reference not in ("onnx", "eager"):
        raise RequestError(f"the reference is {reference!r}, expected 'onnx' or 'eager'")
    if reference == "eager" and data is None:
        raise RequestError(
            "the eager reference is for further images, and there are none (the golden images are compared with "
            "recorded eager logits in any case); give --data, or leave --reference out"
        )
    overrides = _overrides(tolerances)
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data) if data_name is None else data_name
        batches: Iterable[ImageBatch] | None = open_data(bundle, data, limit=limit, seed=seed)
    else:
        name, batches = data_name or "further images", data
    eager = None
    if reference == "eager":
        from resnet_export.exporter.eager import eager_reference

        eager = eager_reference(bundle, weights, progress=progress)
    report = run_parity(
        bundle,
        data=batches,
        data_name=name,
        artifacts=artifacts,
        backends=backends,
        precisions=precisions,
        eager=eager,
        max_drop=max_drop,
        min_agreement=min_agreement,
        tolerances=overrides,
        limit=limit,
        threads=threads,
        progress=progress,
    )
    if layers == "none" or (named is None and all(entry.passed for entry in report.entries)):
        return report
    if named is None and not _has_onnx():
        note = (
            "the layers of what failed were not compared, since onnx is not installed; "
            "run: pip install 'resnet-export[export]'"
        )
        return msgspec.structs.replace(report, notes=(*report.notes, note))
    from resnet_export.exporter.layerwise import with_layers

    return with_layers(
        report, bundle, "failed" if named is None else named, threads=threads, progress=progress
    )


def open_data(
    bundle: str | os.PathLike[str], data: str | os.PathLike[str], *, limit: int | None = None, seed: int = 0
) -> Iterator[Batch]:
    """Return the images of a folder, an .npz file or a list file, cropped as the bundle says, in batches.

    `limit` draws that many, by `seed`. Raises DatasetError, or BundleError for the bundle.
    """
    from resnet_export.calibration.dataset import open_dataset

    manifest = read_manifest(bundle)
    dataset = open_dataset(
        data,
        preprocessing=manifest.preprocessing,
        limit=limit,
        seed=seed,
        labels=manifest.labels,
        num_classes=manifest.model.num_classes,
    )
    return (
        Batch(images=batch.images, labels=batch.labels, names=batch.names)
        for batch in dataset.batches(manifest.batch.opt)
    )


def _checked_layers(bundle: str | os.PathLike[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the artifacts whose layers were asked for, found to be there before anything runs."""
    if not _has_onnx():
        raise DependencyError(
            "onnx is not installed, and layers are compared in graphs that it changes; "
            "run: pip install 'resnet-export[export]'"
        )
    from resnet_export.exporter.layerwise import choose

    manifest = read_manifest(bundle)
    wanted = None if ALL in names and ALL not in {one.name for one in manifest.artifacts} else names
    return tuple(artifact.name for artifact in choose(manifest, wanted))


def _has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return True


def _overrides(given: str | os.PathLike[str] | Overrides | None) -> Overrides | None:
    if not isinstance(given, str | os.PathLike):
        return given
    path = Path(given)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"the tolerance file {path} cannot be read: {error.strerror}") from error
    return parse_overrides(data, str(path))
