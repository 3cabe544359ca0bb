"""Everything that builder and runner use of TensorRT exists in every version that they claim to support.

The source is searched for it, so a branch that no test runs is covered too.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

from resnet_export.exporter.engine import builder as engine
from resnet_export.exporter.engine import options as engine_options
from resnet_export.exporter.engine import progress as engine_progress
from resnet_export.runtime.backends import context_pool, tensorrt, tensorrt_library
from tests.nvidia_bindings import PINS, RTX, api

MODULES = (engine, engine_options, engine_progress, tensorrt, context_pool, tensorrt_library)

# What a variable of this name holds, wherever it stands in those modules.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "refitter": "Refitter",
    "onnx_refitter": "OnnxParserRefitter",
    "flags": "BuilderFlag",
}
# The same names for our own objects, in functions that no TensorRT object of that name enters.
OURS = {
    "engine_artifact": {"engine"},
    "_shape": {"engine"},
    "_enqueue": {"engine"},
    "_objections": {"profile"},
    "batch": {"profile"},
    "_pieces": {"profile"},
    "run": {"context"},
    "run_on_device": {"context"},
    "borrow": {"context"},
    "close": {"context"},
    "_take": {"context"},
}
ONLY_IN_RTX = {
    "ComputeCapability",
    "ComputeCapability.__members__",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "ICudaEngine.create_runtime_config",
    "EngineValidity",
    "EngineValidity.INVALID",
    "EngineInvalidityDiagnostics",
    "EngineInvalidityDiagnostics.__members__",
    "Runtime.get_engine_validity",
    "Runtime.engine_header_size",
}
# Guarded by hasattr and refused by name where it is missing.
GUARDED = {"HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"}


def used(module: ModuleType) -> Iterator[tuple[str, bool]]:
    """Each "Class.member" or "Enumeration.ENUMERATOR" in the source, and whether it is assigned to."""
    tree = ast.parse(inspect.getsource(module))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name | ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id == "library" and node.attr != "__version__":
                yield node.attr, False
            elif isinstance(owner, ast.Attribute):
                if isinstance(owner.value, ast.Name) and owner.value.id == "library":
                    yield f"{owner.attr}.{node.attr}", False
            elif owner.id in CLASSES and owner.id not in OURS.get(function.name, set()):
                yield f"{CLASSES[owner.id]}.{node.attr}", isinstance(node.ctx, ast.Store)


ALL_USED = sorted({entry for module in MODULES for entry in used(module)})


def test_the_search_finds_what_is_known_to_be_used() -> None:
    names = {name for name, _ in ALL_USED}
    assert {
        "Builder.build_serialized_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "ParserError.node_name",
        "BuilderFlag.STRIP_PLAN",
        "IExecutionContext.set_input_shape",
        "EngineInspector.get_engine_information",
        "OnnxParserRefitter.refit_from_bytes",
    } <= names
    assert ("IBuilderConfig.profiling_verbosity", True) in ALL_USED
    assert ("Runtime.engine_host_code_allowed", True) in ALL_USED
    assert names >= {name for name in ONLY_IN_RTX if not name.endswith("__members__")}


@pytest.mark.parametrize("version", [*PINS, RTX])
def test_everything_used_exists(version: str) -> None:
    found = api(version)
    wanted = [
        name
        for name, _ in ALL_USED
        if not name.endswith("__members__")
        and name not in GUARDED
        and (version == RTX or name not in ONLY_IN_RTX)
    ]
    assert [name for name in wanted if not found.has(name)] == []


@pytest.mark.parametrize("version", [*PINS, RTX])
def test_everything_assigned_to_is_writable(version: str) -> None:
    found = api(version)
    assigned = [name.split(".") for name, is_assigned in ALL_USED if is_assigned]
    assert [
        name
        for name in assigned
        if (version == RTX or ".".join(name) not in ONLY_IN_RTX) and not found.is_writable(*name)
    ] == []


def test_precision_flags_are_gone_from_version_11_and_nothing_uses_them() -> None:
    assert api("10.3").has("BuilderFlag.INT8")
    assert not api("11.4").has("BuilderFlag.INT8")
    assert not {"BuilderFlag.INT8", "BuilderFlag.FP16"} & {name for name, _ in ALL_USED}
