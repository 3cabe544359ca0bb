"""The parity gate with everything around `run_parity` that needs more than numpy: data sets, torch, onnx.

The command line, the pytest fixture and an export call this, so that all mean the same by the same `ParitySpec`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from resnet_export.runtime.bundle.manifest import Manifest, read_manifest
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.parity.attribution.layers import Layerwise
from resnet_export.runtime.parity.check import CompareLayers, run_parity
from resnet_export.runtime.parity.criteria.tolerances import overrides_of
from resnet_export.runtime.parity.measure.comparison import ImageBatch, printable
from resnet_export.runtime.parity.plan import Run
from resnet_export.runtime.parity.report.schema import Entry, ParityReport
from resnet_export.runtime.parity.report.search_report import SearchReport
from resnet_export.runtime.parity.spec import BATCHES, ParitySpec, as_spec, check_path
from resnet_export.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from resnet_export.calibration.data.dataset import Dataset

__all__ = ["check_parity"]

ALL = "all"


def check_parity(
    bundle: str | os.PathLike[str],
    spec: ParitySpec | None = None,
    *,
    batches: Iterable[ImageBatch] | None = None,
    search: SearchReport | None = None,
    times: Mapping[str, Any] | None = None,
    full_batches_known: Collection[str] = (),
    ray: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> ParityReport:
    """Check a bundle as `run_parity` does, on the data that `spec` names, and compare the layers of what failed.

    Args:
        spec: what is asked for. `data` is a path, unless `batches` are given; `reference="eager"` builds the eager
            network with torch; `layers="failed"` compares layers where onnx is installed, names and "all" need it.
        batches, search, times, full_batches_known: see `run_parity`.
        ray: the address of a Ray cluster that computes the validation images; the report is the same.
        options: fields of `spec` by name, in place of its own.

    Images of a path that cannot be read are skipped. What data sets warn of stands in the report's notes too.

    Raises what `run_parity` does, and RequestError, DatasetError or DependencyError for what is wrong here.
    """
    check_path("bundle", bundle, "a bundle's folder")
    named = {} if batches is None or (spec and spec.data is not None) else {"data": BATCHES}
    spec = as_spec(spec, named | options)
    if ray is not None:
        from resnet_export.exporter.ray.parity import check_spreadable

        check_spreadable(spec)
    overrides_of(spec.tolerances)  # whatever is wrong with a file is said before any work is done
    wanted = _wanted_layers(bundle, spec)
    images = None if batches is not None or spec.data is None else _Images.open(bundle, spec.data, spec)
    served: tuple[Run, ...] = ()
    if spec.triton is not None:
        from resnet_export.exporter.triton.client import served_runs

        for name in ("backends", "precisions", "threads"):
            if getattr(spec, name) is not None:
                raise RequestError(
                    f"{name} were given with a server, which decides them itself; leave them out"
                )
        served = served_runs(bundle, spec.triton, artifacts=spec.artifacts)
    eager = None
    if spec.reference == "eager":
        from resnet_export.exporter.parity.eager import eager_reference

        eager = eager_reference(bundle, spec.weights, progress=progress)
    check = partial(
        run_parity,
        bundle,
        spec,
        batches=batches if images is None else images.batches(),
        eager=eager,
        compare_layers=None if served else _layer_comparison(bundle, spec, wanted, progress),
        search=search,
        times=times,
        full_batches_known=full_batches_known,
        served=served,
        notes=tuple if images is None else images.notes,
        progress=progress,
    )
    if ray is None:
        return check()
    from resnet_export.exporter.ray.cluster import connected
    from resnet_export.exporter.ray.parity import spread_over

    with connected(ray) as cluster:
        return check(spread=partial(spread_over, cluster, bundle, spec.threads))


@dataclass
class _Images:
    """The validation images of a path."""

    dataset: Dataset
    manifest: Manifest
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, bundle: str | os.PathLike[str], path: str, spec: ParitySpec) -> _Images:
        from resnet_export.calibration.data.dataset import open_dataset

        manifest = read_manifest(bundle)
        dataset = open_dataset(
            path,
            preprocessing=manifest.preprocessing,
            limit=spec.limit,
            seed=spec.seed,
            labels=manifest.labels,
            num_classes=len(manifest.labels),
        )
        return cls(dataset, manifest)

    def batches(self) -> Iterator[ImageBatch]:
        """Yield all batches, and then count the images that could not be read."""
        yield from self.dataset.batches(self.manifest.batch.opt)
        found = self.dataset.describe()  # of the pass that has just ended
        if found.skipped:
            self.skipped.append(
                f"{found.skipped} of {len(self.dataset)} images of {printable(found.source)} cannot be read and "
                f"{'was' if found.skipped == 1 else 'were'} skipped; the first: {printable(str(found.first_skipped))}"
            )

    def notes(self) -> tuple[str, ...]:
        """Return what reports have to say of the images, after the pass."""
        # Warnings would not do: they go to whoever in the process listens, and other checks may run beside this one.
        return (*(printable(" ".join(note.split())) for note in self.dataset.notes), *self.skipped)


def _layer_comparison(
    bundle: str | os.PathLike[str], spec: ParitySpec, wanted: tuple[str, ...] | None, progress: Progress
) -> CompareLayers | None:
    """Return what compares the layers that `spec` asks for, `wanted` by name; None where it asks for none."""
    if spec.layers == "none":
        return None

    def compare(
        entries: Sequence[Entry], suspects: tuple[str, ...]
    ) -> tuple[tuple[Layerwise, ...], tuple[str, ...]]:
        if wanted is None and not suspects:
            return (), ()
        if not _has_onnx():
            return (), (
                "the layers of what failed were not compared, since onnx is not installed; "
                "run: pip install 'resnet-export[export]'",
            )
        from resnet_export.exporter.debug.layerwise import compare_artifacts, diagnose

        if wanted is None:
            return diagnose(bundle, entries, suspects, threads=spec.threads, progress=progress)
        return compare_artifacts(bundle, wanted, threads=spec.threads, progress=progress), ()

    return compare


def _wanted_layers(bundle: str | os.PathLike[str], spec: ParitySpec) -> tuple[str, ...] | None:
    """Return the artifacts whose layers were asked for by name, found to be there; None without any."""
    if spec.layers in ("failed", "none"):
        return None
    if not _has_onnx():
        raise DependencyError(
            "onnx is not installed, and layers are compared in graphs that it changes; "
            "run: pip install 'resnet-export[export]'"
        )
    from resnet_export.exporter.debug.layerwise import choose

    manifest = read_manifest(bundle)
    names = (spec.layers,) if isinstance(spec.layers, str) else spec.layers
    every = ALL in names and ALL not in {artifact.name for artifact in manifest.artifacts}
    return tuple(artifact.name for artifact in choose(manifest, None if every else names))


def _has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
    except ImportError:
        return False
    return True
