"""`resnet-export doctor` says what a host can do, and how to get the rest."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli import cli, doctor
from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.select.host import Gpu, HostFacts, Package


def host(*packages: Package, gpus: tuple[Gpu, ...] = ()) -> HostFacts:
    return HostFacts(
        system="linux", machine="x86_64", cpus=2, packages=packages, gpus=gpus, gpu_note="there is none"
    )


ORT = Package(module="onnxruntime", distribution="onnxruntime", version="1.31.1")


def findings(monkeypatch: pytest.MonkeyPatch, found: HostFacts) -> dict[tuple[str, str], str]:
    monkeypatch.setattr(doctor, "probe", lambda **_: found)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    return {(row["does"], row["what"]): row["missing"] for row in json.loads(result.stdout)["findings"]}


def test_every_backend_has_a_row_that_agrees_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, host(ORT))
    runs = {what: missing for (does, what), missing in found.items() if does == "runs"}
    assert len(runs) == len(ROUTES)
    assert runs["onnx on onnxruntime (CPUExecutionProvider)"] == ""
    assert "pip install" in runs["onnx on openvino (CPU)"]
    assert "onnxruntime-gpu" in runs["onnx on onnxruntime (CUDAExecutionProvider)"]


def test_what_only_a_gpu_runs_is_said_to_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_build = Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1")
    found = findings(monkeypatch, host(gpu_build))
    assert (
        found["runs", "onnx on onnxruntime (CUDAExecutionProvider)"] == "needs an NVIDIA GPU: there is none"
    )
    card = Gpu(index=0, name="A10", compute_capability="8.6", memory=24 * 10**9)
    found = findings(monkeypatch, host(gpu_build, gpus=(card,)))
    assert found["runs", "onnx on onnxruntime (CUDAExecutionProvider)"] == ""


def test_an_extra_is_here_only_when_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "onnxsim")
    found = findings(monkeypatch, host(ORT))
    assert found["has", "the extra [cpu]"] == ""
    assert "lacks onnxsim: pip install" in found["has", "the extra [export]"]


def test_the_table_names_what_this_host_can_do() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "the extra [cpu]" in result.stdout
    assert "onnx on onnxruntime" in result.stdout
