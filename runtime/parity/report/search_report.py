"""What the search for the INT8 graphs did, what each decision gained, and whether the result may be shipped.

`calibration.search` makes it, `report.json` holds it under `int8`. Targets ("tensorrt", "cpu") and calibration methods
("mse", "percentile", …) are named as calibration names them.
"""

from __future__ import annotations

import math
from typing import Literal

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.parity.measure.comparison import WorstImage
from resnet_export.runtime.parity.measure.image_errors import ImageErrors

ImprovementName = Literal["equalization", "bias correction", "rounding"]


class Validation(Struct, frozen=True):
    """A trial graph beside the float network, on the same images.

    `snr_db` is that of the logits, and None where they are equal or not finite; `non_finite` counts images with
    NaN or infinite logits. `agreement` is the top-1 agreement in percent. With labels, `accuracy_drop` is in
    percentage points, positive where accuracy was lost. `by_image` is what single images lose, and what graphs are
    compared by. `outside` are the limits that do not hold, as "centered cosine similarity 0.93, expected ≥ 0.995".
    `worst` names the images that are furthest from the float network, the worst first, where some are far from it or a
    handful owns the energy of the logits.
    """

    images: int
    non_finite: int
    snr_db: float | None
    centered_cosine: float | None
    agreement: float
    accuracy_drop: float | None
    by_image: ImageErrors
    outside: tuple[str, ...]
    worst: tuple[WorstImage, ...] = ()

    @property
    def noise(self) -> float:
        """The squared error of an image relative to its float logits': 0 where they are equal, inf if not finite."""
        return math.inf if self.non_finite else self.by_image.noise

    @property
    def decibels(self) -> float:
        """The SNR of an image in dB, with ±inf for equal and for non-finite logits."""
        if self.noise == 0:
            return math.inf
        return -math.inf if math.isinf(self.noise) else -10 * math.log10(self.noise)

    @property
    def finite_decibels(self) -> float | None:
        """`decibels`, None where they are infinite."""
        return self.decibels if math.isfinite(self.decibels) else None


class Improvement(Struct, frozen=True):
    """One improvement: an image's SNR (`Validation.decibels`) on the held-out images, without and with it.

    Everything else was the same: ranges by `method`, the improvements before it done and those after it not. `used`
    says whether it is in the plan, `note` why not, or anything else worth knowing.
    """

    name: ImprovementName
    method: str
    before_db: dict[str, float | None]
    after_db: dict[str, float | None]
    used: bool
    note: str = ""

    @property
    def gain_db(self) -> dict[str, float | None]:
        """What it gained; None where one side is not finite or has no error."""
        return {
            target: None if before is None or after is None else after - before
            for (target, before), after in zip(self.before_db.items(), self.after_db.values(), strict=True)
        }


class MethodTrial(Struct, frozen=True):
    """One calibration method, with everything else as in the plan, on the held-out images: results by target."""

    method: str
    results: dict[str, Validation]


class QuantizedLayer(Struct, frozen=True):
    """One layer of the network.

    `nearest_db` and `rounded_db` are the SNR of its output that quantizing its weights alone leaves, with each rounded
    to the nearest and as they are in the plan, on calibration images; None where it was not measured or has
    no error. `multiply_adds` is its share of the network's. `excluded` maps the targets whose graph computes it in
    floating point to the reason.
    """

    layer: str
    operator: str
    multiply_adds: float
    nearest_db: float | None
    rounded_db: float | None
    excluded: dict[str, str]


class LayerSensitivity(Struct, frozen=True):
    """What quantizing one layer alone does to the logits of one target's graph.

    `noise` is `Validation.noise`, None where logits are not finite;
    `agreement` and `accuracy_drop` as in `Validation`; `multiply_adds` is the layer's share of the network's.
    """

    layer: str
    noise: float | None
    agreement: float
    accuracy_drop: float | None
    multiply_adds: float

    @property
    def severity(self) -> float:
        """What layers are ranked by."""
        return math.inf if self.noise is None else self.noise


class SensitivityRanking(Struct, frozen=True):
    """The layers of one target's graph, the most sensitive first, measured on `images` images."""

    target: str
    images: int
    layers: tuple[LayerSensitivity, ...]


class ExclusionTrial(Struct, frozen=True):
    """One trial: this many of the most sensitive layers excluded from INT8, and the limits that still do not hold."""

    excluded: int
    outside: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether that many are enough."""
        return not self.outside


class MixedPrecision(Struct, frozen=True):
    """How the layers to exclude from INT8 were found for one target.

    `limit` says in words what was to hold; `path` are the trials in their order. `excluded` is empty where even the
    largest allowed number of layers was not enough. `float_share` is the share of multiply-adds that the excluded
    layers have, and so about the share of the work that INT8 does not speed up.
    """

    target: str
    limit: str
    path: tuple[ExclusionTrial, ...]
    excluded: tuple[str, ...]
    float_share: float

    @property
    def holds(self) -> bool:
        """Whether some number of excluded layers stays within the limit."""
        return any(trial.holds for trial in self.path)


class TargetVerdict(Struct, frozen=True):
    """Whether the graph of one target may be shipped, validated on the calibration images.

    `limit` says in words what was to hold. `most_sensitive` are the layers that cause the error where it does not, the
    worst first.
    """

    target: str
    limit: str
    validation: Validation
    most_sensitive: tuple[str, ...]

    @property
    def shippable(self) -> bool:
        """Whether every limit holds."""
        return not self.validation.outside

    @property
    def sentence(self) -> str:
        """Why it may not be shipped, and which layers cause that."""
        return (
            f"on {self.validation.images} calibration images INT8 has {', '.join(self.validation.outside)}; the most "
            f"sensitive layers are {', '.join(self.most_sensitive)}: ship fp16 instead"
        )


class LayerExclusion(Struct, frozen=True):
    """Why a layer is excluded from INT8, and in whose graphs."""

    reason: str
    targets: tuple[str, ...]


class EqualizationSummary(Struct, frozen=True):
    """One equalization: the layers, and the least and greatest factor."""

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    least: float
    greatest: float


class PlanSummary(Struct, frozen=True):
    """A `calibration.quantize.plan.QuantPlan` without its arrays. Fields are those of the plan.

    A tensor's range is chosen by its method in `methods`, or by `method`. `weights` has the first 16 hex digits of the
    sha256 of each layer's integers, `bias_corrections` the greatest magnitude that was added.
    """

    method: str
    methods: dict[str, str]
    excluded: dict[str, LayerExclusion]
    equalization: tuple[EqualizationSummary, ...]
    weights: dict[str, str]
    bias_corrections: dict[str, float]


class SearchReport(Struct, frozen=True):
    """The whole of what the search saw: the same for the same network and images. `notices` are for the user.

    `held_out` of the `images` were kept for comparing trial graphs; 0 when there were too few, and all served both.
    `rankings` and `mixed_precision` have a row for each target whose graph was outside its limits.
    """

    images: int
    held_out: int
    steps: tuple[Improvement, ...]
    methods: tuple[MethodTrial, ...]
    method: str
    layers: tuple[QuantizedLayer, ...]
    rankings: tuple[SensitivityRanking, ...]
    mixed_precision: tuple[MixedPrecision, ...]
    verdicts: tuple[TargetVerdict, ...]
    plan: PlanSummary
    notices: tuple[str, ...]

    @property
    def shippable(self) -> bool:
        """Whether every target's graph may be shipped."""
        return all(verdict.shippable for verdict in self.verdicts)

    def refusal(self, target: str) -> str | None:
        """Return why the graph of `target` may not be shipped, None when it may."""
        return next(
            (
                verdict.sentence
                for verdict in self.verdicts
                if verdict.target == target and not verdict.shippable
            ),
            None,
        )
