"""Reports that a page can be made of: a clean one, and one in which everything that can be shown is there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet_export.calibration.observe.histogram import observe
from resnet_export.calibration.observe.table import CalibrationTable, build
from resnet_export.exporter.parity.check import check_parity
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, FileInfo, encode_manifest, read_manifest
from resnet_export.runtime.parity.attribution.layers import LayerFigure, Layerwise
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.precision import Precision
from tests.parity_bundle import crops, graph, logits, write
from tests.tiny_bundle import CLASSES, INT8_CPU


def archive(folder: Path, count: int, wrong: int = 7) -> Path:
    """Write labeled crops to an .npz file; every `wrong`-th label is not what the fp32 graph says."""
    images = crops(count, seed=9)
    labels = logits(images).argmax(axis=1)
    labels[::wrong] = (labels[::wrong] + 1) % CLASSES
    path = folder / "data.npz"
    np.savez(path, images=images, labels=labels)
    return path


def swapped(data: bytes) -> bytes:
    """The graph with the input channels of its first convolution in the opposite order."""
    model = onnx.load_from_string(data)
    first = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first)[:, ::-1].copy(), first.name))
    changed: bytes = model.SerializeToString()
    return changed


def damaged_bundle(folder: Path, fault: Callable[[bytes], bytes] = swapped) -> Path:
    """A bundle of a trained network whose int8 graph for CPUs has a fault that predictions flip of."""
    return write(folder, graphs={INT8_CPU.name: fault(graph(INT8_CPU))}, trained=True)


def checked(
    bundle: Path, data: Path | None = None, *, limit: int | None = None, seed: int = 0
) -> ParityReport:
    """Check a bundle on ONNX Runtime, on one thread, without looking into layers."""
    return check_parity(
        bundle, data=data, backends=["onnxruntime"], limit=limit, seed=seed, layers="none", threads=1
    )


def with_layers(
    report: ParityReport, node: str = "layer2.0.conv1", module: str = "layer2.0.conv1"
) -> ParityReport:
    """Add layers to a report: twelve that keep their limit and one, `node`, that does not."""
    layers = [_layer(f"layer{i}.conv", f"layer{i}.conv", 2e-3 * (i + 1), diverges=False) for i in range(12)]
    first = _layer(node, module, 1.5, diverges=True)
    layers.insert(7, first)
    found = Layerwise(
        artifact=INT8_CPU.name,
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        precision=Precision.INT8,
        images=32,
        first=first,
        layers=tuple(layers),
        unpaired=(),
        perturbation_db=None,
        notes=(),
        sentence=f"{INT8_CPU.name} diverges at {first.node}",
    )
    return msgspec.structs.replace(report, layerwise=(found,))


def _layer(node: str, module: str, error: float, *, diverges: bool) -> LayerFigure:
    ratio = -20 * math.log10(error)
    return LayerFigure(
        node=node,
        module=module,
        op="Conv",
        kind="weights",
        snr_db=ratio,
        relative_error=error,
        local_snr_db=ratio,
        local_error=error,
        limit=0.06,
        non_finite=0,
        gain=1.0,
        coarseness=None,
        diverges=diverges,
        missing=False,
        reason="an error that rounding does not explain" if diverges else "",
    )


def with_file(bundle: Path, name: str, data: bytes) -> Path:
    """Add a file to a bundle that is there, as an export writes it beside the artifacts."""
    (bundle / name).write_bytes(data)
    manifest = read_manifest(bundle)
    info = FileInfo(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    changed = msgspec.structs.replace(manifest, files=(*manifest.files, info))
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return bundle


def table(tensors: int = 9) -> CalibrationTable:
    """Ranges of that many tensors: after a ReLU and on both sides of zero, some with outliers."""
    rng = np.random.default_rng(0)

    def values(i: int) -> NDArray[np.float32]:
        found = rng.normal(size=4000) * (i + 1)
        if i % 3 == 0:
            found = np.maximum(found, 0)
        if i % 4 == 1:
            found[:3] *= 20
        return found.astype(np.float32)

    return build(
        {f"layer{i}.output": observe(values(i)) for i in range(tensors)},
        graph="0" * 64,
        observed="0" * 64,
        data="1" * 64,
        images=16,
        methods=("mse",),
    )
