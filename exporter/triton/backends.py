"""Which of Triton's backends runs which artifact: one row for each, and the models that follow from a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, Manifest
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import Precision

__all__ = ["BACKENDS", "ServedNetwork", "TritonBackend", "choose"]


@dataclass(frozen=True)
class TritonBackend:
    """A backend of Triton Inference Server.

    Attributes:
        platform: its name in configurations from before backends had names; empty for the python backend.
        file: what the server looks for in a version's folder.
        refusal: why it does not run an artifact, None where it does.
    """

    name: str
    platform: str
    file: str
    refusal: Callable[[Artifact], str | None]


@dataclass(frozen=True)
class ServedNetwork:
    """The model of one network on one backend.

    Attributes:
        name: of the model.
        artifacts: what it runs: one ONNX graph, the engines of one precision for several GPUs, or, for the python
            backend, the artifact that a session is told to open, none where it chooses itself.
        batch: the sizes it takes.
        device: where its instances run.
    """

    name: str
    backend: TritonBackend
    artifacts: tuple[Artifact, ...]
    batch: BatchRange
    device: Literal["auto", "cpu", "gpu"]


def _onnxruntime(artifact: Artifact) -> str | None:
    if artifact.kind != "onnx":
        return "it is an engine"
    if artifact.precision is Precision.BF16:
        return "ONNX Runtime has no bf16 convolutions"
    return None


def _openvino(artifact: Artifact) -> str | None:
    if artifact.kind != "onnx":
        return "it is an engine"
    if artifact.target == "tensorrt":
        return "it is laid out for TensorRT"
    return None


def _tensorrt(artifact: Artifact) -> str | None:
    if artifact.engine is None:
        return "it is an ONNX graph, and no engine; build one with: resnet-export build --engine tensorrt"
    if artifact.engine.variant != "tensorrt":
        return "it is an engine of TensorRT for RTX, and Triton's backend loads those of standard TensorRT"
    if min(profile.min for profile in artifact.engine.profiles) > 1:
        return "it takes no batch of 1, which Triton may send"
    return None


BACKENDS: Mapping[str, TritonBackend] = {
    row.name: row
    for row in (
        TritonBackend("python", "", "model.py", lambda _: None),
        TritonBackend("onnxruntime", "onnxruntime_onnx", "model.onnx", _onnxruntime),
        TritonBackend("openvino", "", "model.onnx", _openvino),
        TritonBackend("tensorrt", "tensorrt_plan", "model.plan", _tensorrt),
    )
}


def choose(manifest: Manifest, spec: TritonSpec, name: str) -> tuple[ServedNetwork, ...]:
    """Return the models of the network, the one that the ensemble runs first.

    Raises RequestError where a backend is unknown, or has nothing to run; BundleError for an unknown artifact.
    """
    found: list[ServedNetwork] = []
    for asked in spec.backends:
        if asked not in BACKENDS:
            raise RequestError(
                f"Triton has no backend {asked!r} for a bundle; give one of {', '.join(BACKENDS)}"
            )
        models = tuple(_models(manifest, spec, name, BACKENDS[asked]))
        if not models:
            reasons = "; ".join(
                f"{artifact.name}: {_refusal(artifact, BACKENDS[asked], spec)}"
                for artifact in _artifacts(manifest, spec)
            )
            raise RequestError(f"nothing of the bundle runs on Triton's backend {asked} ({reasons})")
        found += models
    names = [model.name for model in found]
    for one in names:
        if names.count(one) > 1:
            raise RequestError(f"two models would be called {one!r}; name each backend once")
    return tuple(found)


def _models(
    manifest: Manifest, spec: TritonSpec, name: str, backend: TritonBackend
) -> Iterator[ServedNetwork]:
    if backend.name == "python" and spec.artifacts is None:
        yield ServedNetwork(f"{name}_python", backend, (), manifest.batch, "cpu")
        return
    usable = [one for one in _artifacts(manifest, spec) if _refusal(one, backend, spec) is None]
    if backend.name == "tensorrt":
        for precision in dict.fromkeys(artifact.precision for artifact in usable):
            engines = tuple(artifact for artifact in usable if artifact.precision is precision)
            yield ServedNetwork(f"{name}_tensorrt_{precision}", backend, engines, _range(engines), "gpu")
        return
    for artifact in usable:
        # ONNX Runtime's CPU provider miscomputes graphs with fp16 scales; on a GPU TensorRT takes them whole.
        gpu_only = artifact.target == "tensorrt" and backend.name == "onnxruntime"
        device: Literal["auto", "cpu", "gpu"] = (
            "gpu"
            if gpu_only
            else "cpu"
            if backend.name != "onnxruntime" or artifact.target == "cpu"
            else "auto"
        )
        model = f"{name}_{backend.name}_{re.sub('[^A-Za-z0-9_-]', '_', artifact.name)}"
        yield ServedNetwork(model, backend, (artifact,), manifest.batch, device)


def _artifacts(manifest: Manifest, spec: TritonSpec) -> tuple[Artifact, ...]:
    if spec.artifacts is None:
        return manifest.artifacts
    return tuple(manifest.artifact(name) for name in spec.artifacts)


def _refusal(artifact: Artifact, backend: TritonBackend, spec: TritonSpec) -> str | None:
    if spec.artifacts is None:  # what is asked for by name is served whatever its parity check said
        if artifact.refusal is not None:
            return "the export refused to ship it"
        if any(not verdict.passed for verdict in artifact.parity):
            return "it failed a parity check"
    return backend.refusal(artifact)


def _range(engines: tuple[Artifact, ...]) -> BatchRange:
    """Return the batches that every one of these engines takes."""
    profiles = [engine.engine.profiles for engine in engines if engine.engine is not None]
    most = min(max(profile.max for profile in each) for each in profiles)
    best = min(max(profile.opt for profile in each) for each in profiles)
    return BatchRange(min=1, opt=min(best, most), max=most)
