"""Turn a trained ResNet into a verified bundle.

    from resnet_export.exporter import ModelSpec, ExportSpec, export
    result = export(ModelSpec(depth=50), ExportSpec(fp16=True), out="resnet50")
    result.bundle.path, result.report.verdict

Names are loaded on first use, so the command line's lighter commands work without torch and onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_export.exporter.bundle.staging import Bundle
    from resnet_export.exporter.pipeline import Export, export
    from resnet_export.exporter.spec import ExportSpec, ModelSpec

__all__ = ["Bundle", "Export", "ExportSpec", "ModelSpec", "export"]

_HOMES = {
    "Bundle": "resnet_export.exporter.bundle.staging",
    "Export": "resnet_export.exporter.pipeline",
    "ExportSpec": "resnet_export.exporter.spec",
    "ModelSpec": "resnet_export.exporter.spec",
    "export": "resnet_export.exporter.pipeline",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
