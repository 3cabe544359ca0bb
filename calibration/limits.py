"""What an INT8 graph may lose, whether it keeps to that, and what becomes of one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from resnet_export.calibration.feed import Feed
from resnet_export.calibration.findings import Ranking, Verdict
from resnet_export.calibration.improve import Candidate
from resnet_export.calibration.layout import Target
from resnet_export.calibration.sensitivity import Budget, Damage, keep_within, latency_ratio, rank_layers
from resnet_export.calibration.topology import Topology
from resnet_export.calibration.trial import Judge, Judgement
from resnet_export.runtime.progress import Progress

FLOOR = 95.0
"""Percent of the images on which an INT8 graph must agree with the float network, unless that hesitates itself
(`Judgement.clear`). Below it the result has collapsed: healthy networks keep 99 % and more."""

_RANKING_WORK = 1000  # layers times images that a ranking may take
_RANKING_IMAGES = 8, 64  # but no fewer images than this, and no more
_BLAMED = 5  # culprits to name, at most
_MOST_DAMAGE = 0.8  # the share of the damage that they make up together

Measure = Literal["clear disagreement", "disagreement", "top-1 accuracy drop"]

_LOST: Mapping[Measure, Callable[[Judgement], float | None]] = {
    "clear disagreement": lambda found: 100 - found.clear,
    "disagreement": lambda found: 100 - found.agreement,
    "top-1 accuracy drop": lambda found: found.accuracy_drop,
}


@dataclass(frozen=True)
class Limit:
    """How much may be lost, in percentage points, and of what."""

    measure: Measure
    points: float

    def lost(self, found: Judgement) -> float:
        """Return what a graph loses; logits that are not finite lose everything."""
        value = _LOST[self.measure](found)
        return math.inf if value is None or found.non_finite else value

    def holds(self, found: Judgement) -> bool:
        """Say whether a graph keeps to the limit."""
        return self.lost(found) <= self.points


@dataclass(frozen=True)
class Outcome:
    """One target's verdict, and what was seen on the way to it.

    `latency_ratio` is the time that one image takes with the kept layers over the time without, on ONNX Runtime;
    None where none were kept, and for a graph that is not for this processor.
    """

    verdict: Verdict
    ranking: Ranking | None = None
    budget: Budget | None = None
    latency_ratio: float | None = None


def limit_for(max_drop: float | None, judge: Judge) -> Limit:
    """Return the budget that was asked for, of accuracy where there are labels; else no collapse."""
    if max_drop is None:
        return Limit("clear disagreement", 100 - FLOOR)
    return Limit("disagreement" if judge.labels is None else "top-1 accuracy drop", max_drop)


def mended(
    candidate: Candidate,
    target: Target,
    found: Judgement,
    judge: Judge,
    limit: Limit,
    images: Feed,
    *,
    may_keep: bool,
    threads: int | None,
    progress: Progress,
) -> tuple[Candidate, Outcome]:
    """Return the candidate within the limit for `target`, if keeping layers in floating point can do that.

    Args:
        candidate: what was judged.
        target: whose graph.
        found: how it was judged.
        judge: the images it was judged on.
        limit: what it may lose.
        images: to rank layers on.
        may_keep: whether layers may be kept; otherwise the culprits are only named.
        threads: for ONNX Runtime.
        progress: told about layers and trials.
    """
    if limit.holds(found):
        return candidate, Outcome(_verdict(target, found, limit, ()))
    ranges = candidate.plan.choose_ranges(candidate.table)
    least, most = _RANKING_IMAGES
    few = min(max(least, _RANKING_WORK // max(1, len(Topology(candidate.model).layers))), most)
    ranker = Judge(candidate.model, images.sample(few), threads=threads)
    damages = rank_layers(candidate.model, ranges, candidate.plan, target, ranker, progress=progress)
    ranking = Ranking(target=target, images=len(ranker), layers=damages)
    budget, ratio = None, None
    if may_keep:
        plan, budget = keep_within(
            candidate.model,
            ranges,
            candidate.plan,
            target,
            damages,
            judge,
            limit.lost,
            measure=limit.measure,
            limit=limit.points,
            progress=progress,
        )
        if budget.holds:
            before, candidate = candidate, replace(candidate, plan=plan)
            found = judge(candidate.graph(target))
            if target == "cpu":
                image = next(iter(judge.images()))[:1]
                ratio = latency_ratio(candidate.graph(target), before.graph(target), image)
    culprits = () if limit.holds(found) else blamed(damages)
    return candidate, Outcome(_verdict(target, found, limit, culprits), ranking, budget, ratio)


def blamed(damages: tuple[Damage, ...]) -> tuple[str, ...]:
    """Return the layers that make up most of the damage, the worst first; those that break the logits alone first."""
    broken = [one.layer for one in damages if one.noise is None]
    if broken or not damages:
        return tuple(broken[:_BLAMED])
    shares = np.cumsum([one.severity for one in damages])
    needed = int(np.searchsorted(shares, _MOST_DAMAGE * shares[-1])) + 1
    return tuple(one.layer for one in damages[: min(needed, _BLAMED)])


def _verdict(target: Target, found: Judgement, limit: Limit, culprits: tuple[str, ...]) -> Verdict:
    sentence = (
        f"the INT8 graph for {target} has {limit.lost(found):.2f} points of {limit.measure} on {found.images} "
        f"images, and {limit.points:g} are allowed"
    )
    if not limit.holds(found):
        sentence += f"; the layers to blame are {', '.join(culprits)}: ship fp16 instead"
    return Verdict(
        target=target,
        shippable=limit.holds(found),
        measure=limit.measure,
        limit=limit.points,
        found=limit.lost(found),
        judged=found,
        culprits=culprits,
        sentence=sentence,
    )
