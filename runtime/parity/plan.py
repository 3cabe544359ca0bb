"""What a parity check will run: every artifact on every backend that can, and why the rest cannot.

A pure function of the manifest, the host and what was asked for; nothing is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.routes import ROUTES, Route, find_route
from resnet_export.runtime.bundle.manifest import Artifact, Manifest
from resnet_export.runtime.parity.report.schema import Skipped
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.choice import Choice, Considered
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.select.resolver import resolve
from resnet_export.runtime.select.spec import SessionSpec, parse_request


class Opened(Protocol):
    """What a check needs of a session, on this host or another."""

    @property
    def manifest(self) -> Manifest:
        """The bundle that runs."""

    @property
    def choice(self) -> Choice:
        """What runs."""

    def run(self, batch: NDArray[np.float32] | NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return the logits of a batch."""

    def run_outputs(
        self, batch: NDArray[np.float32] | NDArray[np.uint8], names: Sequence[str], /
    ) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of these names of a batch."""

    def close(self) -> None:
        """End it. Twice is harmless."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Run:
    """One artifact on one backend, to be opened with exactly these words.

    `wanted` is False for the fp32 run that was not asked for and takes part as the reference of further
    images. `open` opens what another host runs, and `version` is that of its server; both are None for this host.
    """

    artifact: Artifact
    backend: str
    provider: str
    precision: Precision
    device: Literal["cpu", "gpu"]
    wanted: bool = True
    open: Callable[[], Opened] | None = None
    version: str | None = None


@dataclass(frozen=True)
class Plan:
    """The runs, in the order of the manifest and the best backend first, and what cannot run here.

    `unverified` are the artifacts that nothing here runs. `unmet` are the artifacts and backends, in words,
    that were asked for by name and have no run.
    """

    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    unverified: tuple[str, ...]
    unmet: tuple[str, ...]


def plan(
    manifest: Manifest,
    host: HostFacts,
    asked: ParitySpec,
    routes: tuple[Route, ...] = ROUTES,
    *,
    served: tuple[Run, ...] = (),
) -> Plan:
    """Return what to run.

    Without `asked.precisions`, each artifact runs in its own precision; coarser arithmetic that a backend
    offers for fp32 graphs (bf16) is checked when it is asked for. With validation images and the onnx
    reference, the fp32 graph runs on one backend even when it was not asked for. Where `served` are given, the runs of
    a server, this host runs nothing but that reference. Raises BundleError or RequestError for an artifact or backend
    that does not exist.
    """
    for name in asked.artifacts or ():
        parse_request(manifest, artifact=name, routes=routes)
    for name in asked.backends or ():
        parse_request(manifest, backend=name, routes=routes)
    trace = resolve(manifest, host, SessionSpec(), routes=routes).trace
    if served:
        needed = asked.data is not None and asked.reference == "onnx"
        reference = tuple(_references(manifest, host, trace, routes)) if needed else ()
        return Plan(runs=(*reference, *served), skipped=(), unverified=(), unmet=())
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for artifact in manifest.artifacts:
        for item in (item for item in trace if item.artifact == artifact.name):
            if not _asked_for(item, artifact, asked):
                continue
            run, reason = _try(manifest, host, artifact, item, routes)
            if reason is None:
                runs.append(run)
            else:
                skipped.append(
                    Skipped(
                        artifact=item.artifact,
                        declared=artifact.precision,
                        backend=item.backend,
                        provider=item.provider,
                        precision=item.precision,
                        reason=reason,
                    )
                )
    artifacts = {run.artifact.name for run in runs}
    backends = {run.backend for run in runs}
    unmet = [f"artifact {name!r}" for name in asked.artifacts or () if name not in artifacts]
    unmet += [f"backend {name!r}" for name in asked.backends or () if name not in backends]
    if asked.data is not None and asked.reference == "onnx" and not any(map(is_reference, runs)):
        runs = [*_references(manifest, host, trace, routes), *runs]
    return Plan(
        runs=tuple(runs),
        skipped=tuple(skipped),
        unverified=tuple(dict.fromkeys(item.artifact for item in skipped if item.artifact not in artifacts)),
        unmet=tuple(unmet),
    )


def is_reference(run: Run) -> bool:
    """Whether validation images may be compared with this run: the fp32 graph, computed here in fp32."""
    return (
        run.open is None
        and run.artifact.kind == "onnx"
        and run.artifact.precision is Precision.FP32
        and run.precision is Precision.FP32
    )


def _asked_for(item: Considered, artifact: Artifact, asked: ParitySpec) -> bool:
    precisions = asked.precisions or (artifact.precision,)
    return (
        (asked.artifacts is None or item.artifact in asked.artifacts)
        and (asked.backends is None or item.backend in asked.backends)
        and item.precision in precisions
    )


def _try(
    manifest: Manifest, host: HostFacts, artifact: Artifact, item: Considered, routes: tuple[Route, ...]
) -> tuple[Run, str | None]:
    """Return the run, and why it cannot be, None when it can."""
    device = find_route(item.backend, item.provider, routes).device
    request = SessionSpec(
        backend=item.backend, precision=item.precision, artifact=item.artifact, device=device
    )
    resolution = resolve(manifest, host, request, routes=routes)
    run = Run(artifact, item.backend, item.provider, item.precision, device)
    if resolution.choice is not None and resolution.choice.provider == item.provider:
        return run, None
    for found in resolution.trace:
        if (found.artifact, found.backend, found.provider, found.precision) == (
            item.artifact,
            item.backend,
            item.provider,
            item.precision,
        ):
            return run, found.reason
    raise AssertionError("the trace of a resolution holds every candidate")


def _references(
    manifest: Manifest, host: HostFacts, trace: tuple[Considered, ...], routes: tuple[Route, ...]
) -> Iterator[Run]:
    """Yield the best fp32 run, if there is any."""
    for item in trace:
        run, reason = _try(manifest, host, manifest.artifact(item.artifact), item, routes)
        if reason is None and is_reference(run):
            yield Run(run.artifact, run.backend, run.provider, run.precision, run.device, wanted=False)
            return
