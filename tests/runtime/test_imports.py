"""What importing the runtime costs: numpy and msgspec, checked in a fresh interpreter."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import resnet_export.runtime

HEAVY = [
    "torch",
    "onnx",
    "click",
    "PIL",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "rich",
    "platformdirs",
    "cuda",
    "cryptography",
    "model_signing",
    "tritonclient",
    "grpc",
    "ray",
    "prometheus_client",
    "opentelemetry",
]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(resnet_export.runtime.__path__, prefix="resnet_export.runtime.")
)


def loaded_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import resnet_export.runtime",
        "from resnet_export.runtime import *",
        "from resnet_export.runtime import open_session, probe; probe()",
        "import " + ", ".join(MODULES),
    ],
    ids=["package", "every public name", "probe", "every module"],
)
def test_importing_the_runtime_loads_no_backend_and_none_of_the_exporter(statement: str) -> None:
    loaded = loaded_after(statement)
    assert loaded.isdisjoint(HEAVY)
    assert not [
        name for name in loaded if name.startswith(("resnet_export.exporter", "resnet_export.calibration"))
    ]


def test_the_package_itself_loads_no_third_party_package_at_all() -> None:
    top = {name.partition(".")[0] for name in loaded_after("import resnet_export.runtime")}
    assert top.isdisjoint({"numpy", "msgspec"})
