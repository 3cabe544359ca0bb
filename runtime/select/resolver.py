"""Which artifact runs on which engine: a pure function of the manifest, the host and what the user asked for.

With nothing asked for, a session runs the fastest candidate whose results are vouched for:

* an artifact with a failed parity verdict for that engine is never picked, and neither is a reduced-precision
  one without a passing verdict; the fp32 graph, which the others are measured against, needs none on record;
* bf16 arithmetic on an fp32 graph runs on request only;
* the order is what was measured on this host (`select/profile.py`), and until then, and for what was not measured, a
  fact of each route's row (`Execution.order`). `prefer` says what is compared: the time of a small batch, the
  throughput, or the exactness of the precision, and then the time.

`precision=` lifts the need for a verdict but not the ban on a failed one; `artifact=` lifts both, since then
the user has named the very file. Every candidate ends in the trace, with the reason that decided about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from resnet_export.runtime.backends.routes import ROUTES, Route
from resnet_export.runtime.bundle.manifest import Manifest
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.select.candidate import Candidate
from resnet_export.runtime.select.choice import Choice, Considered, Outcome, Resolution
from resnet_export.runtime.select.eligibility import FACT_CHECKS, REQUEST_CHECKS, SelectionContext, choose
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.select.profile import HostProfile
from resnet_export.runtime.select.spec import SessionSpec

__all__ = ["explain", "resolve"]


def resolve(
    manifest: Manifest,
    host: HostFacts,
    request: SessionSpec,
    failures: Mapping[Choice, str] | None = None,
    routes: tuple[Route, ...] = ROUTES,
    profile: HostProfile | None = None,
) -> Resolution:
    """Choose what runs, and say of every candidate why it does or does not.

    `profile` is what was measured of this bundle on this host.
    `failures` maps choices of earlier resolutions that could not be opened to the error's text; they are
    rejected. Never raises: an impossible request leaves `choice` None and its reasons in the trace.
    """
    at = SelectionContext(manifest, host, request, failures or {})
    speeds = [(candidate, _speed(candidate, request, profile)) for candidate in _candidates(manifest, routes)]
    speeds.sort(key=lambda pair: _rank(pair[0], pair[1], request))
    ranked = [candidate for candidate, _ in speeds]
    verdicts = [_judge(candidate, at, speed.why) for candidate, speed in speeds]
    first = next((index for index, (outcome, _) in enumerate(verdicts) if outcome == "usable"), None)
    trace = tuple(
        Considered(
            artifact=candidate.artifact.name,
            backend=candidate.route.backend,
            provider=candidate.route.provider,
            precision=candidate.precision,
            outcome="chosen" if index == first else outcome,
            reason=reason,
        )
        for index, (candidate, (outcome, reason)) in enumerate(zip(ranked, verdicts, strict=True))
    )
    return Resolution(choice=None if first is None else choose(ranked[first], at), trace=trace)


def explain(resolution: Resolution, request: SessionSpec) -> str:
    """Return one sentence that says why nothing was chosen."""
    asked = f" with {request}" if str(request) else ""
    wanted = [item for item in resolution.trace if item.outcome != "skipped"]
    if wanted:
        reasons = (f"{item.artifact} on {item.backend} ({item.provider}): {item.reason}" for item in wanted)
        return f"nothing on this host runs the bundle{asked}: {'; '.join(dict.fromkeys(reasons))}"
    holders: dict[str, list[str]] = {}
    for item in resolution.trace:
        holders.setdefault(f"{item.artifact} in {item.precision}", []).append(item.backend)
    held = "; ".join(f"{what} on {' or '.join(dict.fromkeys(on))}" for what, on in holders.items())
    engines = "; `resnet-export build` adds engines" if request.backend == "tensorrt" else ""
    return f"the bundle has nothing to run{asked}, it has {held or 'nothing'}{engines}"


def _candidates(manifest: Manifest, routes: tuple[Route, ...]) -> Iterable[Candidate]:
    for artifact in manifest.artifacts:
        for route in routes:
            if route.kind != artifact.kind:
                continue
            # An engine belongs to one variant; on the other one it is not even a candidate.
            if artifact.kind == "engine" and artifact.engine and not route.loads(artifact.engine):
                continue
            yield Candidate(artifact, route, artifact.precision)
            if artifact.precision == Precision.FP32:
                yield from (Candidate(artifact, route, coarser) for coarser in route.also)


class _Speed(NamedTuple):
    """How fast a candidate is, comparable, and how that is known."""

    order: tuple[bool, float]
    why: str


def _speed(candidate: Candidate, request: SessionSpec, profile: HostProfile | None) -> _Speed:
    """Return what was measured, which comes before everything that was not, or the route's place in the table."""
    row = profile.find(candidate, request.prefer) if profile else None
    if profile is None or row is None:
        unmeasured = "" if profile is None else "; not measured on this host"
        return _Speed((True, candidate.execution.order), f"{candidate.execution.why}{unmeasured}")
    found = f"{row.milliseconds:.3g} ms"
    if request.prefer == "throughput":
        return _Speed(
            (False, -row.images_per_second),
            f"{row.images_per_second:.4g} images/s ({found} for a batch of {row.batch}), measured on this host on "
            f"{profile.created}",
        )
    return _Speed(
        (False, row.milliseconds),
        f"{found} for a batch of {row.batch}, measured on this host on {profile.created}",
    )


def _rank(candidate: Candidate, speed: _Speed, request: SessionSpec) -> tuple[int, bool, float]:
    exactness = list(PRECISIONS).index(candidate.precision) if request.prefer == "accuracy" else 0
    return exactness, *speed.order


def _judge(candidate: Candidate, at: SelectionContext, why: str) -> tuple[Outcome, str]:
    for check in REQUEST_CHECKS:
        if reason := check(candidate, at):
            return "skipped", reason
    for check in FACT_CHECKS:
        if reason := check(candidate, at):
            return "rejected", reason
    return "usable", why
