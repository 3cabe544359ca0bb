"""One artifact on one route, in one arithmetic: what selection puts in order and holds against the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from resnet_export.runtime.backends.routes import Execution, Route
from resnet_export.runtime.bundle.manifest import Artifact
from resnet_export.runtime.precision import Precision

_UNKNOWN_ORDER = 1000


@dataclass(frozen=True)
class Candidate:
    """One artifact on one route, in one arithmetic."""

    artifact: Artifact
    route: Route
    precision: Precision

    @cached_property
    def execution(self) -> Execution:
        """How the route executes the artifact; one that its row says nothing of comes last."""
        found = self.route.execution(self.precision, self.artifact.target)
        return found or Execution(
            precision=self.precision, order=_UNKNOWN_ORDER, why="its speed is not known, so it comes last"
        )

    @property
    def simulated(self) -> bool:
        """Whether the engine computes in wider arithmetic than `precision`."""
        return self.execution.simulated
