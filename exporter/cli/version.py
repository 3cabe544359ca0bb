"""`--version`: this package and every backend, because a bug report without them says nothing."""

from __future__ import annotations

from importlib import metadata

# Distribution names, as pip knows them.
BACKENDS = [
    "torch",
    "onnx",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-python",
    "numpy",
    "pillow",
]


def versions() -> dict[str, str | None]:
    """Return distribution name → version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in ["resnet-export", *BACKENDS]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def versions_text() -> str:
    """Return one line per package: the name and its version, or that it is not installed."""
    found = versions()
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {version or 'not installed'}" for name, version in found.items())
