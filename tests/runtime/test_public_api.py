"""`resnet_export.runtime.__all__` is the promise; these tests guard it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from resnet_export import runtime
from resnet_export.runtime import errors

PROMISED = {
    "Artifact",
    "BatchRange",
    "BatchingSpec",
    "Choice",
    "Considered",
    "EngineInfo",
    "Gpu",
    "HostFacts",
    "Manifest",
    "Package",
    "Precision",
    "Prediction",
    "Preprocessing",
    "Resolution",
    "Session",
    "TensorSpec",
    "Tolerance",
    "Verdict",
    "SessionObserver",
    "SessionSpec",
    "open_session",
    "probe",
    "read_manifest",
    "verify_bundle",
    "verify_signature",
    *errors.__all__,
}


def test_the_public_names_are_the_promised_ones() -> None:
    assert set(runtime.__all__) == PROMISED
    assert runtime.__all__ == sorted(runtime.__all__)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_public_name_loads_and_says_what_it_is(name: str) -> None:
    value = getattr(runtime, name)
    assert value.__doc__
    assert value.__module__.startswith("resnet_export.runtime.")


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(runtime.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen.keys() == PROMISED
    for name, module in seen.items():
        assert getattr(runtime, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_an_attribute_error_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'open_sesion'"):
        _ = runtime.open_sesion
    assert set(dir(runtime)) >= PROMISED


def test_no_public_name_is_also_the_name_of_a_module() -> None:
    folder = Path(runtime.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir()}
    assert not PROMISED & modules
