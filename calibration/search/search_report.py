"""What the INT8 step decided, what each decision gained, and whether the result may be shipped: for `report.json`."""

from __future__ import annotations

from typing import Literal

from resnet_export.calibration.observe.ranges import Method
from resnet_export.calibration.quantize.placement import Target
from resnet_export.calibration.quantize.plan import PlanSummary
from resnet_export.calibration.search.evaluate import Judgment
from resnet_export.calibration.search.mixed_precision import Budget, Damage
from resnet_export.runtime.bundle.manifest import Struct

StepName = Literal["equalization", "bias correction", "rounding"]


class Step(Struct, frozen=True):
    """One improvement: the logits' SNR on the held-out images without and with it, per target.

    Everything else was the same: ranges by `method`, the steps before it done and those after it not. `used` says
    whether it is in the plan, `note` why not, or anything else worth knowing.
    """

    name: StepName
    method: Method
    before_db: dict[Target, float | None]
    after_db: dict[Target, float | None]
    used: bool
    note: str = ""

    @property
    def gain_db(self) -> dict[Target, float | None]:
        """What it gained; None where one side is not finite or has no error."""
        return {
            target: None if before is None or after is None else after - before
            for (target, before), after in zip(self.before_db.items(), self.after_db.values(), strict=True)
        }


class MethodTrial(Struct, frozen=True):
    """One way to choose ranges, with everything else as in the plan, on the held-out images."""

    method: Method
    judged: dict[Target, Judgment]


class LayerFinding(Struct, frozen=True):
    """One layer of the network.

    `nearest_db` and `rounded_db` are the SNR of its output that quantizing its weights alone leaves, with each rounded
    to the nearest and as they are in the plan, on calibration images; None where it was not measured or has
    no error. `multiply_adds` is its share of the network's. `excluded` names the targets that keep it in floating
    point.
    """

    layer: str
    operator: str
    multiply_adds: float
    nearest_db: float | None
    rounded_db: float | None
    excluded: dict[Target, str]


class Ranking(Struct, frozen=True):
    """Layers of one target's graph by the damage that quantizing each alone does, the worst first."""

    target: Target
    images: int
    layers: tuple[Damage, ...]


class Verdict(Struct, frozen=True):
    """Whether the graph of one target may be shipped, judged on the calibration images.

    `limit` says in words what was to hold. `culprits` are the layers to blame where it does not, the worst first.
    """

    target: Target
    limit: str
    judged: Judgment
    culprits: tuple[str, ...]

    @property
    def shippable(self) -> bool:
        """Whether every limit holds."""
        return not self.judged.outside

    @property
    def sentence(self) -> str:
        """Why it may not be shipped, and who is to blame."""
        return (
            f"on {self.judged.images} calibration images INT8 has {', '.join(self.judged.outside)}; the layers to "
            f"blame are {', '.join(self.culprits)}: ship fp16 instead"
        )


class Findings(Struct, frozen=True):
    """The whole of what the search saw: the same for the same network and images. `notices` are for the user.

    `held_back` of the `images` were kept for comparing trial graphs; 0 when there were too few, and all served both.
    """

    images: int
    held_back: int
    steps: tuple[Step, ...]
    methods: tuple[MethodTrial, ...]
    method: Method
    layers: tuple[LayerFinding, ...]
    rankings: tuple[Ranking, ...]
    budgets: tuple[Budget, ...]
    verdicts: tuple[Verdict, ...]
    plan: PlanSummary
    notices: tuple[str, ...]

    @property
    def shippable(self) -> bool:
        """Whether every target's graph may be shipped."""
        return all(verdict.shippable for verdict in self.verdicts)
