"""What a user asks for, what is chosen, and what became of everything else: plain values, JSON-ready."""

from __future__ import annotations

from typing import Literal

import msgspec

from resnet_export.runtime.precision import Precision


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; None leaves it to the resolver. `device` is a GPU's index, "gpu" or "cpu"."""

    backend: str | None = None
    precision: Precision | None = None
    artifact: str | None = None
    device: int | Literal["cpu", "gpu"] | None = None

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return ", ".join(
            f"{name}={value if isinstance(value, int) else repr(str(value))}"
            for name, value in given.items()
            if value is not None
        )


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
        simulated = ", simulated" if self.simulated else ""
        device = "" if self.device == "cpu" else f", {self.device}"
        where = f"{self.backend} ({self.provider}{device})"
        return f"{self.artifact} on {where} in {self.precision}{simulated}"


Outcome = Literal["chosen", "usable", "rejected", "not asked for"]


class Considered(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate and what became of it: "usable" would run, but something better was chosen."""

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
