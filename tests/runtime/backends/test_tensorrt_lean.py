"""The lean runtime of TensorRT: which engines it is chosen for, and that its real library has all that is called."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resnet_export.runtime.backends import tensorrt as runner
from resnet_export.runtime.backends import tensorrt_library
from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, EngineInfo, Manifest
from resnet_export.runtime.errors import DependencyError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from resnet_export.runtime.select.resolver import resolve
from resnet_export.runtime.select.spec import SessionSpec
from tests import tiny_bundle
from tests.nvidia_bindings import FOLDER, LEAN, api
from tests.runtime.backends.test_tensorrt_conformance import ONLY_IN_RTX, used

HOST = HostFacts(
    system="linux",
    machine="x86_64",
    cpus=2,
    packages=(
        Package(
            module="tensorrt_lean_bindings", distribution="tensorrt-lean-cu13-bindings", version="11.4.0.106"
        ),
    ),
    gpus=(Gpu(index=0, name="a GPU", compute_capability="8.6", memory=1 << 33),),
)
# For engines without their weights, which the lean runtime does not load.
ONLY_IN_FULL = {"OnnxParserRefitter", "OnnxParserRefitter.refit_from_bytes"}


def bundle(**changes: Any) -> Manifest:
    """A manifest with an fp32 graph and an engine of TensorRT 10.3 for 8.6."""
    source = tiny_bundle.artifact(tiny_bundle.FP32, b"graph")
    known: dict[str, Any] = {
        "variant": "tensorrt",
        "version": "10.3.0",
        "compute_capabilities": ("8.6",),
        "profiles": (BatchRange(),),
        "source": source.name,
        "source_sha256": source.sha256,
    }
    engine = Artifact(
        name="engine",
        file="engines/it.engine",
        kind="engine",
        precision=Precision.FP32,
        target="tensorrt",
        bytes=1,
        sha256=hashlib.sha256(b"x").hexdigest(),
        engine=EngineInfo(**(known | changes)),
    )
    return tiny_bundle.manifest([source, engine])


def test_a_version_compatible_engine_of_tensorrt_10_runs_on_the_lean_runtime_of_11() -> None:
    found = resolve(bundle(options={"version_compatible": True}), HOST, SessionSpec(backend="tensorrt"))
    assert found.choice is not None
    assert (found.choice.artifact, found.choice.provider) == ("engine", "tensorrt_lean")
    full = msgspec.structs.replace(
        HOST,
        packages=(*HOST.packages, Package(module="tensorrt", distribution="tensorrt", version="11.4.0.106")),
    )
    preferred = resolve(bundle(options={"version_compatible": True}), full, SessionSpec(backend="tensorrt"))
    assert preferred.choice is not None
    assert preferred.choice.provider == "tensorrt"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "11.4.0.106"},
        {"options": {"version_compatible": True, "strip_weights": True}},
        {"variant": "tensorrt_rtx", "options": {"version_compatible": True}},
    ],
    ids=["plain", "same version", "without weights", "RTX"],
)
def test_no_other_engine_is_a_candidate_for_it(changes: dict[str, Any]) -> None:
    found = resolve(bundle(**changes), HOST, SessionSpec(backend="tensorrt"))
    assert found.choice is None
    assert "tensorrt_lean" not in {one.provider for one in found.trace}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "12.0.0"}, "built for TensorRT 12 from 12.0.0 on, this host has 11.4.0.106"),
        ({"version": "8.6.1"}, "built for TensorRT 8 from 8.6.1 on, this host has 11.4.0.106"),
        ({"compute_capabilities": ("8.9",)}, "built for compute capability 8.9, this GPU has 8.6"),
    ],
)
def test_a_compatible_engine_for_something_else_is_rejected_with_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    found = resolve(
        bundle(options={"version_compatible": True}, **changes), HOST, SessionSpec(backend="tensorrt")
    )
    assert found.choice is None
    assert reason in {one.reason for one in found.trace if one.provider == "tensorrt_lean"}


def test_the_real_lean_library_has_everything_that_running_an_engine_calls() -> None:
    lean = api(LEAN)
    wanted = {name for module in (runner, tensorrt_library) for name, _ in used(module)}
    assert len(wanted) > 15
    wanted = {name for name in wanted if not name.endswith("__members__")} - ONLY_IN_RTX - ONLY_IN_FULL
    assert [name for name in sorted(wanted) if not lean.has(name)] == []
    assert not lean.has("Builder")


def test_the_real_lean_library_is_imported_without_a_gpu(tmp_path: Path) -> None:
    # No further: without a GPU, its `Runtime` is a null pointer that it follows. The resolver asks for one first.
    code = (
        "from resnet_export.runtime.backends.tensorrt_library import load_library\n"
        "library = load_library('tensorrt_lean')\n"
        "print(library.__version__, library.Runtime.deserialize_cuda_engine.__name__)\n"
    )
    environment = {"PYTHONPATH": str(FOLDER / LEAN), "HOME": str(tmp_path)}
    assert api(LEAN).version == "11.4.0.106"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["11.4.0.106", "deserialize_cuda_engine"]


def test_a_missing_lean_runtime_is_named_with_its_install_line() -> None:
    with pytest.raises(
        DependencyError, match=r"lean runtime .* pip install 'resnet-export\[tensorrt-lean\]'"
    ):
        tensorrt_library.load_library("tensorrt_lean")
