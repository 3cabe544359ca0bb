"""Whether an INT8 graph keeps to its limits, and what becomes of one that does not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from resnet_export.calibration.data.inputs import Feed
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.calibration.search.evaluate import Judge
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
_BLAMED = 5  # culprits to name, at most
_MOST_DAMAGE = 0.8  # the share of the damage that they make up together


@dataclass(frozen=True)
class Outcome:
    """One target's verdict, and what was seen on the way to it.

    `latency_ratio` is the time that one image takes with the kept layers over the time without, on ONNX Runtime;
    None where none were kept, and for a graph that is not for this processor.
    """

    verdict: TargetVerdict
    ranking: SensitivityRanking | None = None
    budget: MixedPrecision | None = None
    latency_ratio: float | None = None


def mended(
    candidate: Candidate,
    target: TargetName,
    found: Validation,
    judge: Judge,
    images: Feed,
    *,
    may_exclude: bool,
    threads: int | None,
    progress: Progress,
) -> tuple[Candidate, Outcome]:
    """Return the candidate within the judge's limits for `target`, if keeping layers in floating point can do that.

    Args:
        candidate: what was judged.
        target: whose graph.
        found: how it was judged.
        judge: the images it was judged on, and the limits.
        images: to rank layers on.
        may_exclude: whether layers may be kept; otherwise the culprits are only named.
        threads: for ONNX Runtime.
        progress: told about layers and trials.
    """
    if not found.outside:
        return candidate, Outcome(_verdict(target, judge, found, ()))
    ranges = candidate.plan.choose_ranges(candidate.table)
    least, most = _RANKING_IMAGES
    few = min(max(least, _RANKING_WORK // max(1, len(Topology(candidate.model).layers))), most)
    ranker = Judge(candidate.model, images.sample(few), threads=threads)
    damages = rank_layers(candidate.model, ranges, candidate.plan, target, ranker, progress=progress)
    ranking = SensitivityRanking(target=target, images=len(ranker), layers=damages)
    budget, ratio = None, None
    if may_exclude:
        plan, budget = exclude_within_budget(
            candidate.model, ranges, candidate.plan, target, damages, judge, progress=progress
        )
        if budget.holds:
            before, candidate = candidate, replace(candidate, plan=plan)
            found = judge(candidate.graph(target))
            if TARGETS[target].timed_here:
                image = next(iter(judge.images()))[:1]
                ratio = latency_ratio(candidate.graph(target), before.graph(target), image)
    culprits = blamed(damages) if found.outside else ()
    return candidate, Outcome(_verdict(target, judge, found, culprits), ranking, budget, ratio)


def blamed(damages: tuple[LayerSensitivity, ...]) -> tuple[str, ...]:
    """Return the layers that make up most of the damage, the worst first; those that break the logits alone first."""
    broken = [one.layer for one in damages if one.noise is None]
    if broken or not damages:
        return tuple(broken[:_BLAMED])
    shares = np.cumsum([one.severity for one in damages])
    needed = int(np.searchsorted(shares, _MOST_DAMAGE * shares[-1])) + 1
    return tuple(one.layer for one in damages[: min(needed, _BLAMED)])


def _verdict(target: TargetName, judge: Judge, found: Validation, culprits: tuple[str, ...]) -> TargetVerdict:
    return TargetVerdict(target=target, limit=judge.limit(), validation=found, most_sensitive=culprits)
