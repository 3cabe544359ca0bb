"""What is chosen, and what became of everything else: plain values, JSON-ready."""

from __future__ import annotations

from typing import Literal

import msgspec

from resnet_export.runtime.precision import Precision


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What runs.

    `precision` is the coarsest arithmetic that really runs and decides which tolerance applies. `simulated`
    says that the numbers are those of `precision` but the speed is not: the engine computes in wider
    arithmetic. `device` is "cpu" or "gpu:<index>"; `provider` is the engine's own name for what executes the
    graph; `notes` are the backend's, on how it runs the artifact.
    """

    artifact: str
    backend: str
    provider: str
    device: str
    precision: Precision
    simulated: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        wider = "fp32" if self.device == "cpu" else "a wider precision"
        simulated = f", simulated (computed in {wider})" if self.simulated else ""
        device = "" if self.device == "cpu" else f", {self.device}"
        where = f"{self.backend} ({self.provider}{device})"
        return f"{self.artifact} on {where} in {self.precision}{simulated}"


Outcome = Literal["chosen", "usable", "rejected", "skipped"]


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate and what became of it.

    "usable" would run, but something better was chosen; "rejected" cannot run here, or must not; "skipped" is not what
    the request is about.
    """

    artifact: str
    backend: str
    provider: str
    precision: Precision
    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        where = f"{self.backend} ({self.provider})"
        return f"{self.outcome}: {self.artifact} on {where} in {self.precision}: {self.reason}"


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """The choice, None when nothing is usable, and every candidate, best first."""

    choice: Choice | None
    trace: tuple[Considered, ...]
