"""Whether an INT8 graph is within its limits, and which layers to exclude from INT8 where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.calibration.search.evaluate import Evaluator, Limits, run_float
from resnet_export.calibration.search.improvements import Candidate
from resnet_export.calibration.search.mixed_precision import (
    exclude_within_budget,
    latency_ratio,
    rank_layers,
)
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.report.search_report import (
    LayerSensitivity,
    MixedPrecision,
    SensitivityRanking,
    TargetVerdict,
    Validation,
)
from resnet_export.runtime.progress import Progress

_RANKING_WORK = 1000  # layers times images that a ranking may take
_RANKING_IMAGES = 8, 64  # but no fewer images than this, and no more
_NAMED = 5  # most sensitive layers to name, at most
_MOST_ERROR = 0.8  # the share of the error that they make up together


@dataclass(frozen=True)
class Outcome:
    """One target's verdict, and what was seen on the way to it.

    `latency_ratio` is the time that one image takes with the excluded layers over the time without, on ONNX Runtime;
    None where none were excluded, and for a graph that is not for this processor.
    """

    verdict: TargetVerdict
    ranking: SensitivityRanking | None = None
    budget: MixedPrecision | None = None
    latency_ratio: float | None = None


def exclude_sensitive_layers(
    candidate: Candidate,
    target: TargetName,
    found: Validation,
    evaluator: Evaluator,
    images: Photos,
    *,
    may_exclude: bool,
    threads: int | None,
    progress: Progress,
) -> tuple[Candidate, Outcome]:
    """Return the candidate within the evaluator's limits for `target`, if excluding layers from INT8 can do that.

    Args:
        candidate: what was validated.
        target: whose graph.
        found: the validation.
        evaluator: the images it was validated on, and the limits.
        images: to rank layers on.
        may_exclude: whether layers may be excluded; otherwise the most sensitive are only named.
        threads: for ONNX Runtime.
        progress: told about layers and trials.
    """
    if not found.outside:
        return candidate, Outcome(_verdict(target, evaluator, found, ()))
    ranges = candidate.plan.choose_ranges(candidate.table)
    least, most = _RANKING_IMAGES
    few = min(max(least, _RANKING_WORK // max(1, len(Topology(candidate.model).layers))), most)
    same = Limits(activation=evaluator.limits.activation)
    ranker = Evaluator(run_float(candidate.model, images.sample(few), threads), same, threads=threads)
    sensitivities = rank_layers(candidate.model, ranges, candidate.plan, target, ranker, progress=progress)
    ranking = SensitivityRanking(target=target, images=len(ranker), layers=sensitivities)
    budget, ratio = None, None
    if may_exclude:
        plan, budget = exclude_within_budget(
            candidate.model, ranges, candidate.plan, target, sensitivities, evaluator, progress=progress
        )
        if budget.holds:
            before, candidate = candidate, replace(candidate, plan=plan)
            found = evaluator(candidate.graph(target), target)
            if TARGETS[target].timed_here:
                image = next(iter(evaluator.images()))[:1]
                ratio = latency_ratio(candidate.graph(target), before.graph(target), image)
    worst = most_sensitive_layers(sensitivities) if found.outside else ()
    return candidate, Outcome(_verdict(target, evaluator, found, worst), ranking, budget, ratio)


def most_sensitive_layers(sensitivities: tuple[LayerSensitivity, ...]) -> tuple[str, ...]:
    """Return the layers that make up most of the error, the worst first; those that break the logits alone first."""
    broken = [one.layer for one in sensitivities if one.noise is None]
    if broken or not sensitivities:
        return tuple(broken[:_NAMED])
    shares = np.cumsum([one.severity for one in sensitivities])
    needed = int(np.searchsorted(shares, _MOST_ERROR * shares[-1])) + 1
    return tuple(one.layer for one in sensitivities[: min(needed, _NAMED)])


def _verdict(
    target: TargetName, evaluator: Evaluator, found: Validation, worst: tuple[str, ...]
) -> TargetVerdict:
    return TargetVerdict(target=target, limit=evaluator.limit(), validation=found, most_sensitive=worst)
