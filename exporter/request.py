"""Whether a request can be served, decided before any work: packages, options that need each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from resnet_export.exporter.engine.targets import EnginePlan
from resnet_export.exporter.models.hub import hub_name
from resnet_export.exporter.models.weight_source import locate
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import ModelInfo
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.precision import PRECISIONS, Precision

# Module → the extra that installs it. Every step of an export is checked with ONNX Runtime.
_NEEDED = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnxsim": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
}
_NEEDED_FOR_ONNX = {"onnx": "onnx", "onnx_ir": "onnx", "onnxsim": "onnx", "onnxruntime": "cpu"}

# Golden images and logits, manifest and reports.
_OVERHEAD = 16 * 2**20


def check_request(model: ModelSpec, spec: ExportSpec) -> None:
    """Raise DependencyError or RequestError for what would fail later, without importing anything heavy."""
    needed = _NEEDED if model.onnx_file is None else _NEEDED_FOR_ONNX
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        why = ", with which every step of an export is checked" if list(missing) == ["onnxruntime"] else ""
        raise DependencyError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed{why}; "
            f"run: pip install -c constraints.txt 'resnet-export[{extras}]'"
        )
    named = [name for name in ("depth", "arch", "model", "weights") if getattr(model, name) is not None]
    if model.model is not None and named != ["model"]:
        raise RequestError(f"--model is a whole network, and {', '.join(named)} were given; give it alone")
    if model.model_arg and (model.model is None or ":" not in model.model):
        raise RequestError("--model-arg is for a factory; give --model MODULE:FACTORY as well")
    if model.module is not None and named:
        raise RequestError(f"a module is at hand, and {named[0]} names another network; give one of them")
    if not named and model.module is None:
        raise RequestError(
            "nothing says which network to export; give --depth, --arch, or --weights with a checkpoint"
        )
    if not spec.batch.min <= spec.batch.opt <= spec.batch.max:
        raise RequestError(
            f"the batch sizes {spec.batch.min},{spec.batch.opt},{spec.batch.max} are not in order; "
            "give MIN,OPT,MAX with 1 ≤ MIN ≤ OPT ≤ MAX"
        )
    if spec.int8 and spec.calib is None and spec.calib_table is None:
        raise RequestError(
            "--int8 needs images to calibrate on; give --calib with a folder, or --calib-table with a table made before"
        )
    if spec.max_drop is not None and spec.val is None:
        if not spec.int8:
            raise RequestError(
                "--max-drop is the budget of INT8, which was not asked for; give --int8, or --val with images on "
                "which everything is judged"
            )
        if spec.calib is None:
            raise RequestError(
                "--max-drop is measured on images, and a table has none; give --calib with a folder as well, or --val"
            )
    if spec.max_drop is not None and not 0 <= spec.max_drop <= 100:
        raise RequestError(f"max_drop is {spec.max_drop:g}, expected percentage points from 0 to 100")
    for what, images in (("calibration", spec.calib), ("validation", spec.val)):
        if images is not None and not images.exists():
            raise RequestError(f"the {what} images {images} do not exist; give a folder, .npz or list file")


def folder_name(model: ModelSpec) -> str | None:
    """Return the default name of the bundle's folder, or None where only the checkpoint tells it.

    Raises what `source.locate` raises for a request that contradicts itself or a checkpoint that is missing.
    """
    if model.module is not None:
        return type(model.module).__name__.lower()
    if model.model is not None:
        return Path(model.model.rpartition(":")[2]).stem
    if model.arch is not None and ":" in model.arch:
        return model.arch.rpartition(":")[2].partition(".")[0]
    if model.depth is None and model.arch is None and model.weights is not None:
        found = hub_name(model.weights)
        if found is not None or Path(model.weights).is_dir():
            return Path(model.weights).resolve().name if found is None else found["name"].partition("/")[2]
    architecture = locate(model).architecture
    return None if architecture is None else architecture.name


def bytes_needed(model: ModelInfo, spec: ExportSpec, engines: EnginePlan) -> int:
    """Return about how much the bundle will take on disk, engines included: an upper bound."""
    lowered = [PRECISIONS[precision] for precision in spec.lowered]
    fp32 = PRECISIONS[Precision.FP32]
    copies = sum(row.weight_bytes * row.graphs for row in (fp32, *lowered))
    # An engine holds the weights of its graph once for each kind of kernel that needs its own layout of them.
    built = sum(row.weight_bytes for row in lowered or [fp32]) * len(engines.builds)
    return int((1.1 * copies + 2 * built) * model.parameters) + _OVERHEAD
