"""Importing the engines' Python packages, without what they would send or write on the way.

ONNX Runtime from 1.29 on opens a data base of events in the user's cache folder when it is imported, and OpenVINO
reports its import to an analytics service, under an identifier that it writes to `~/intel`; without a home folder its
import fails. Both are switched off for this process by whoever imports them first: an application that imported one
itself before has made its own choice, and only what can still be switched off is.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from resnet_export.runtime.errors import BackendError

__all__ = ["import_library"]

_ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
_OPENVINO_SENDER = "openvino_telemetry"
_lock = threading.Lock()


def import_library(module: str) -> Any:
    """Return the module of an engine, imported without its telemetry. Raises BackendError."""
    try:
        return _IMPORTS.get(module, importlib.import_module)(module)
    except Exception as error:  # a package may raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise BackendError(f"{module} is not installed") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackendError(f"{module} is installed but cannot be imported: {reason}") from error


def _import_onnxruntime(module: str) -> Any:
    os.environ.setdefault(_ORT_SWITCH, "1")  # read once, by the import
    library = importlib.import_module(module)
    if hasattr(library, "disable_telemetry_events"):
        library.disable_telemetry_events()
    return library


def _import_openvino(module: str) -> Any:
    with _lock:
        if module in sys.modules or _OPENVINO_SENDER in sys.modules:
            return importlib.import_module(module)
        # OpenVINO has a stand-in for hosts that lack the package, and no other switch that needs no home folder.
        sys.modules[_OPENVINO_SENDER] = None  # type: ignore[assignment]
        try:
            return importlib.import_module(module)
        finally:
            del sys.modules[_OPENVINO_SENDER]


_IMPORTS: dict[str, Callable[[str], Any]] = {
    "onnxruntime": _import_onnxruntime,
    "openvino": _import_openvino,
}
