"""The versions that a manifest records, on installations of every kind."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from resnet_export.exporter.bundle.manifest import maker_versions

PACKAGES = ["resnet-export", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy", "pillow"]


def without(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Hide these distributions, as where their modules come under other names or without metadata."""
    real = metadata.version

    def version(name: str) -> str:
        if name in hidden:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_a_build_of_onnx_runtime_under_another_name_has_its_modules_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    without(monkeypatch, "onnxruntime")
    assert maker_versions()["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize("name", PACKAGES)
def test_no_package_without_metadata_ends_an_export(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, name)
    assert set(PACKAGES) - {name} <= set(maker_versions())


def test_a_package_that_tells_no_version_at_all_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *PACKAGES)
    for module in ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy", "PIL", "resnet_export"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert maker_versions() == {}
