"""The eager network behind a bundle, rebuilt from its manifest, as the reference of a parity check."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.models.hub import find_hub_folder
from resnet_export.exporter.models.weight_source import sha256_of
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import Manifest, read_manifest
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.parity.criteria.tolerances import TABLE
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import normalize, to_input
from resnet_export.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

__all__ = ["eager_reference"]

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def eager_reference(
    bundle: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Run:
    """Return the eager network of the bundle: takes what its artifacts take, and returns logits float32 [N, classes].

    Args:
        weights: the checkpoint that the bundle was exported from. An untrained network is built from its seed
            instead, and published weights are fetched where no file is given.

    Raises:
        RequestError: `weights` are missing, not wanted, or have another hash than the manifest says; or the
            network does not give the logits that the bundle has recorded.
        CheckpointError: they cannot be read.
        DependencyError: torch is not installed.
        BundleError: the bundle cannot be read.
    """
    manifest = read_manifest(bundle)
    spec = _spec(manifest, weights)
    try:
        import torch
    except ImportError as error:
        raise DependencyError(
            "torch is not installed, and the eager reference runs the network in it; "
            "run: pip install 'resnet-export[export]', or take --reference onnx"
        ) from error
    from resnet_export.exporter.models.load import load_classifier

    network = load_classifier(spec, progress)
    if network.info.weights.sha256 != manifest.model.weights.sha256:
        raise RequestError(f"{spec.weights} was changed while it was read; give the file that was exported")
    run = _runner(cast("nn.Module", network.module), manifest)
    _require_recorded(run, bundle, manifest, torch.__version__)
    return run


def _runner(network: nn.Module, manifest: Manifest) -> Run:
    import torch

    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        # Artifacts that normalize by themselves take uint8, the network never does.
        floats = normalize(images, manifest.preprocessing) if manifest.preprocessing.in_graph else images
        batch = torch.from_numpy(np.ascontiguousarray(floats, np.float32))
        with torch.inference_mode():
            found = network(batch.contiguous(memory_format=torch.channels_last))
        logits: NDArray[np.float32] = (found["logits"] if isinstance(found, dict) else found).numpy()
        return logits

    return run


def _spec(manifest: Manifest, weights: str | os.PathLike[str] | None) -> ModelSpec:
    """Return what to build, once the weights have been found to be those of the manifest."""
    info = manifest.model.weights
    spec = ModelSpec(
        arch=manifest.model.arch,
        num_classes=manifest.model.num_classes,
        image_size=manifest.preprocessing.size,
        input_channels=manifest.preprocessing.channels,
    )
    if info.source == "untrained":
        if weights is not None:
            raise RequestError(
                f"{os.fspath(weights)} was given, but the bundle's network is untrained (seed {info.seed}) and is "
                "built from its seed; leave the weights out"
            )
        return replace(spec, seed=0 if info.seed is None else info.seed)
    if info.source == "onnx":
        raise RequestError(
            f"the bundle was exported from the ONNX file {info.name}, so there is no eager network; take --reference "
            "onnx"
        )
    if info.source == "module":
        raise RequestError(
            f"the bundle was exported from a module in memory ({info.name}), which no file rebuilds; "
            "take --reference onnx"
        )
    if weights is None:
        if info.source == "torchvision":
            return replace(spec, weights=info.name)
        if info.source == "hub":
            return replace(spec, weights=f"hf:{info.name}@{info.revision}")
        raise RequestError(
            f"the eager reference needs the weights that the bundle was exported from, {info.name} with sha256 "
            f"{info.sha256}; give that file with --weights"
        )
    path = Path(weights)
    folder = find_hub_folder(os.fspath(path)) if path.is_dir() else None
    path = path if folder is None else folder.weights
    sha256 = sha256_of(path)
    if sha256 != info.sha256:
        raise RequestError(
            f"{path} has sha256 {sha256}, but the bundle was exported from {info.name} with sha256 {info.sha256}; "
            "give that file"
        )
    # A file of the name of published weights would be taken for them.
    return replace(spec, weights=str(path.absolute()))


def _require_recorded(
    run: Run,
    bundle: str | os.PathLike[str],
    manifest: Manifest,
    version: str,
) -> None:
    """Raise RequestError unless the network gives the eager logits that the bundle has recorded."""
    golden = read_golden(bundle)
    size = manifest.batch.opt
    parts = [
        run(to_input(golden.images[start : start + size], manifest.preprocessing))
        for start in range(0, len(golden.images), size)
    ]
    error = relative_error(np.concatenate(parts), golden.logits[EAGER])
    limit = TABLE[Precision.FP32].relative_error
    if limit is not None and (error is None or error > limit):
        made = manifest.provenance.versions.get("torch", "another version")
        raise RequestError(
            f"the network built here differs from the one that the bundle was exported from: relative error "
            f"{'undefined' if error is None else f'{error:.2g}'} on the golden images, expected ≤ {limit:g}; torch "
            f"here is {version}, at the export it was {made}: use that version, or --reference onnx"
        )
