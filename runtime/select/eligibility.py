"""The reasons why a candidate does not run, one function each.

A check returns None when it has no objection, else half a sentence: what was needed and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from resnet_export.runtime.backends.routes import Route
from resnet_export.runtime.bundle.engine_header import engine_mismatch
from resnet_export.runtime.bundle.manifest import EngineInfo, Manifest, Verdict
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.candidate import Candidate
from resnet_export.runtime.select.choice import Choice
from resnet_export.runtime.select.host import Gpu, HostFacts
from resnet_export.runtime.select.spec import SessionSpec

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class SelectionContext:
    """Everything that a check may look at. `failures` are choices that did not open, with the error."""

    manifest: Manifest
    host: HostFacts
    request: SessionSpec
    failures: Mapping[Choice, str]


def _artifact_asked(candidate: Candidate, at: SelectionContext) -> str | None:
    name = at.request.artifact
    return None if name in (None, candidate.artifact.name) else f"artifact {name!r} was requested"


def _backend_asked(candidate: Candidate, at: SelectionContext) -> str | None:
    name = at.request.backend
    return None if name in (None, candidate.route.backend) else f"backend {name!r} was requested"


def _device_asked(candidate: Candidate, at: SelectionContext) -> str | None:
    device = at.request.device
    wanted = "cpu" if device == "cpu" else "gpu"
    if device is None or candidate.route.device == wanted:
        return None
    return f"device {device!r} was requested, this runs on the {candidate.route.device.upper()}"


def _precision_asked(candidate: Candidate, at: SelectionContext) -> str | None:
    precision = at.request.precision
    if precision == candidate.precision:
        return None
    if precision is not None:
        return f"precision '{precision}' was requested, this runs in {candidate.precision}"
    if candidate.precision != candidate.artifact.precision:
        return f"less exact than the artifact, so precision='{candidate.precision}' has to request it"
    return None


def _engine_described(candidate: Candidate, _: SelectionContext) -> str | None:
    if candidate.artifact.kind != "engine" or _engine(candidate) is not None:
        return None
    return "the manifest does not say what the engine was built for"


def _package_installed(candidate: Candidate, at: SelectionContext) -> str | None:
    return missing_package(candidate.route, at.host)


def missing_package(route: Route, host: HostFacts) -> str | None:
    """Return which package a route lacks on a host and how to install it, None where it lacks none."""
    packages = [package for package in host.packages if package.module == route.module]
    if not packages:
        return f"needs the package {route.module}, which is not installed ({route.install})"
    if route.required and not {package.distribution for package in packages} & set(route.required):
        have = " and ".join(f"{package.distribution} {package.version}" for package in packages)
        return f"needs {' or '.join(route.required)}, this host has {have} ({route.install})"
    return packages[0].failure


def _gpu_present(candidate: Candidate, at: SelectionContext) -> str | None:
    if candidate.route.device != "gpu":
        return None
    if not at.host.gpus:
        return f"needs an NVIDIA GPU: {at.host.gpu_note or 'this host has none'}"
    if _gpu(candidate, at) is None:
        indices = ", ".join(str(gpu.index) for gpu in at.host.gpus)
        return f"needs GPU {at.request.device}, this host has GPU {indices}"
    return None


def _engine_fits(candidate: Candidate, at: SelectionContext) -> str | None:
    engine, package = _engine(candidate), at.host.package(candidate.route.module)
    if engine is None or package is None:
        return None
    if package.version is None:
        return f"built by {package.module} {engine.version}, and the one on this host states no version"
    gpu = _gpu(candidate, at)
    return engine_mismatch(engine, installed=package.version, device=gpu.compute_capability if gpu else None)


def _has_kernels(candidate: Candidate, _: SelectionContext) -> str | None:
    route = candidate.route
    if candidate.artifact.precision not in route.lacks:
        return None
    return f"has no kernels for {candidate.artifact.precision} graphs"


def _bf16_native(candidate: Candidate, at: SelectionContext) -> str | None:
    if candidate.precision != Precision.BF16 or candidate.route.device != "cpu":
        return None
    return _lacks_features(at.host, "bf16", NATIVE_BF16)


def _parity_passed(candidate: Candidate, at: SelectionContext) -> str | None:
    if at.request.artifact is not None:
        return None
    verdicts = _verdicts(candidate, at.manifest)
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    if failed is not None:
        where = f"on {failed.backend} ({failed.provider}) in {failed.precision}"
        detail = f": {failed.detail}" if failed.detail else ""
        override = f"artifact={candidate.artifact.name!r} runs it all the same"
        return f"failed its parity check {where}{detail}; {override}"
    if verdicts or at.request.precision is not None or candidate.precision == Precision.FP32:
        return None
    ask = f"precision='{candidate.precision}'"
    return f"has no parity verdict on record; {ask} runs it all the same"


def _products_exact(candidate: Candidate, at: SelectionContext) -> str | None:
    # Without VNNI, x86 engines multiply 8-bit numbers with VPMADDUBSW, whose 16-bit sums saturate (ONNX
    # Runtime, "Quantize ONNX models", on U8S8); a verdict from another CPU says nothing about that. Arm does
    # not have this limit.
    if candidate.precision != Precision.INT8 or candidate.route.device != "cpu" or candidate.simulated:
        return None
    if at.host.machine.lower() not in ("x86_64", "amd64") or at.request.artifact or at.request.precision:
        return None
    lacking = _lacks_features(at.host, "VNNI", VNNI)
    return lacking and f"{lacking}, so 8-bit products may saturate; precision='int8' runs it all the same"


def _opened(candidate: Candidate, at: SelectionContext) -> str | None:
    error = at.failures.get(choose(candidate, at))
    return None if error is None else f"could not be opened: {error}"


Check = Callable[[Candidate, SelectionContext], str | None]

# What the user requested comes first, so that a rejection for any other reason concerns something wanted.
REQUEST_CHECKS: tuple[Check, ...] = (_artifact_asked, _backend_asked, _device_asked, _precision_asked)
FACT_CHECKS: tuple[Check, ...] = (
    _engine_described,
    _package_installed,
    _gpu_present,
    _engine_fits,
    _has_kernels,
    _bf16_native,
    _parity_passed,
    _products_exact,
    _opened,
)


def choose(candidate: Candidate, at: SelectionContext) -> Choice:
    """Return the choice that `candidate` would be."""
    gpu = _gpu(candidate, at)
    return Choice(
        artifact=candidate.artifact.name,
        backend=candidate.route.backend,
        provider=candidate.route.provider,
        device=f"gpu:{gpu.index}" if gpu else candidate.route.device,
        precision=candidate.precision,
        simulated=candidate.simulated,
    )


def _engine(candidate: Candidate) -> EngineInfo | None:
    return candidate.artifact.engine if candidate.artifact.kind == "engine" else None


def _gpu(candidate: Candidate, at: SelectionContext) -> Gpu | None:
    """The GPU asked for; else the first that the engine was built for; else the first."""
    if candidate.route.device != "gpu":
        return None
    if isinstance(at.request.device, int):
        return next((gpu for gpu in at.host.gpus if gpu.index == at.request.device), None)
    engine, package = _engine(candidate), at.host.package(candidate.route.module)
    version = package.version if package else None
    fitting = (
        gpu
        for gpu in at.host.gpus
        if engine and not engine_mismatch(engine, installed=version, device=gpu.compute_capability)
    )
    return next(fitting, next(iter(at.host.gpus), None))


def _verdicts(candidate: Candidate, manifest: Manifest) -> tuple[Verdict, ...]:
    """The verdicts that speak for a candidate: its own, else any backend's, else an engine's source's."""
    artifact = candidate.artifact
    exact = tuple(
        verdict
        for verdict in artifact.parity
        if (verdict.backend, verdict.provider) == (candidate.route.backend, candidate.route.provider)
        and verdict.precision == candidate.precision
    )
    engine = _engine(candidate)
    if exact or artifact.parity or engine is None:
        return exact or artifact.parity
    return next((other.parity for other in manifest.artifacts if other.name == engine.source), ())


def _lacks_features(host: HostFacts, name: str, features: tuple[str, ...]) -> str | None:
    if set(host.cpu_features) & set(features):
        return None
    if host.cpu_note is not None:
        return f"needs a CPU with {name}, and whether this one has it is unknown ({host.cpu_note})"
    return f"needs a CPU with {name} ({' or '.join(features)}), this one has none of them"
