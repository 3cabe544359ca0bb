"""Run a bundle: numpy in, logits or labels out, on whatever engine this host has.

    from resnet_export.runtime import open_session

    with open_session("resnet50") as session:
        print(session.classify(["cat.jpg"], top=5))
        print(session.choice, *session.trace, sep="\\n")

Importing this package loads nothing but itself. A name is loaded on first use and needs numpy and msgspec;
Pillow is loaded with the first image, an engine when a session opens it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_export.runtime.batching import BatchingSpec
    from resnet_export.runtime.bundle.manifest import (
        Artifact,
        BatchRange,
        EngineInfo,
        Manifest,
        Preprocessing,
        TensorSpec,
        Verdict,
        read_manifest,
        verify_bundle,
    )
    from resnet_export.runtime.bundle.signature import verify_signature
    from resnet_export.runtime.errors import (
        BackendError,
        BundleError,
        CheckpointError,
        DatasetError,
        DependencyError,
        ExportError,
        ImageError,
        IntegrityError,
        KeyMismatchError,
        NoBackendError,
        QueueFullError,
        RequestError,
        RequestTimeoutError,
        ResnetExportError,
        SchemaError,
        SessionClosedError,
        SignatureError,
    )
    from resnet_export.runtime.observe import SessionObserver
    from resnet_export.runtime.precision import Precision, Tolerance
    from resnet_export.runtime.prediction import Prediction
    from resnet_export.runtime.select.choice import Choice, Considered, Resolution
    from resnet_export.runtime.select.host import Gpu, HostFacts, Package, probe
    from resnet_export.runtime.select.spec import SessionSpec
    from resnet_export.runtime.session import Session, open_session

__all__ = [
    "Artifact",
    "BackendError",
    "BatchRange",
    "BatchingSpec",
    "BundleError",
    "CheckpointError",
    "Choice",
    "Considered",
    "DatasetError",
    "DependencyError",
    "EngineInfo",
    "ExportError",
    "Gpu",
    "HostFacts",
    "ImageError",
    "IntegrityError",
    "KeyMismatchError",
    "Manifest",
    "NoBackendError",
    "Package",
    "Precision",
    "Prediction",
    "Preprocessing",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "ResnetExportError",
    "Resolution",
    "SchemaError",
    "Session",
    "SessionClosedError",
    "SessionObserver",
    "SessionSpec",
    "SignatureError",
    "TensorSpec",
    "Tolerance",
    "Verdict",
    "open_session",
    "probe",
    "read_manifest",
    "verify_bundle",
    "verify_signature",
]

_HOMES = {
    "batching": ("BatchingSpec",),
    "select.choice": ("Choice", "Considered", "Resolution"),
    "select.spec": ("SessionSpec",),
    "errors": (
        "BackendError",
        "BundleError",
        "CheckpointError",
        "DatasetError",
        "DependencyError",
        "ExportError",
        "ImageError",
        "IntegrityError",
        "KeyMismatchError",
        "NoBackendError",
        "QueueFullError",
        "RequestError",
        "RequestTimeoutError",
        "ResnetExportError",
        "SchemaError",
        "SessionClosedError",
        "SignatureError",
    ),
    "select.host": ("Gpu", "HostFacts", "Package", "probe"),
    "bundle.manifest": (
        "Artifact",
        "BatchRange",
        "EngineInfo",
        "Manifest",
        "Preprocessing",
        "TensorSpec",
        "Verdict",
        "read_manifest",
        "verify_bundle",
    ),
    "bundle.signature": ("verify_signature",),
    "observe": ("SessionObserver",),
    "precision": ("Precision", "Tolerance"),
    "prediction": ("Prediction",),
    "session": ("Session", "open_session"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
