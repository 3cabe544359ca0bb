"""Which layers INT8 hurts, and how few of them have to stay in floating point.

Every layer is quantized on its own and ranked by the error of the logits. Errors of different layers are close to
independent and add up, so excluding the worst ones first is the best a single order can do, and a bisection over the
ranked prefix finds how many it takes: one trial for every halving, in place of one for every layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.improve.input_moments import filter_size
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.plan import Exclusion, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.calibration.search.evaluate import Evaluator
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.report.search_report import ExclusionTrial, LayerSensitivity, MixedPrecision
from resnet_export.runtime.progress import Progress, silent

MOST_FLOAT = 0.5
"""The share of the multiply-adds that may stay in floating point. Beyond it fp16 serves as well, and is smaller
trouble."""

_TIMED_RUNS = 9


def rank_layers(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    plan: QuantPlan,
    target: TargetName,
    evaluator: Evaluator,
    *,
    progress: Progress = silent,
) -> tuple[LayerSensitivity, ...]:
    """Return the layers that `plan` quantizes for `target`, the most sensitive first.

    Args:
        model: the float32 graph that `ranges` belong to.
        ranges: of every tensor, as `plan.choose_ranges` returns them.
        plan: its weights and corrections are used, and layers that it excludes are left out.
        target: whose graph.
        evaluator: the images to compare on; a dozen tell layers apart.
        progress: told how many layers were tried.
    """
    topology = Topology(model)
    excluded = plan.excluded_for(target)
    layers = [layer.name for layer in topology.layers if layer.name not in excluded]
    shares = multiply_add_shares(model, topology)
    ranked = []
    for name in progress(layers, f"Ranking layers ({target})", len(layers)):
        others = {layer.name: Exclusion(reason="on trial") for layer in topology.layers if layer.name != name}
        found = evaluator(quantize(model, ranges, replace(plan, excluded=others), target), target)
        ranked.append(
            LayerSensitivity(
                layer=name,
                noise=found.noise if math.isfinite(found.noise) else None,
                agreement=found.agreement,
                accuracy_drop=found.accuracy_drop,
                multiply_adds=shares[name],
            )
        )
    return tuple(sorted(ranked, key=lambda layer: -layer.severity))


def bisect(most: int, tried: Callable[[int], ExclusionTrial]) -> Iterator[ExclusionTrial]:
    """Yield the trials that find the least number of excluded layers, from 1 to `most`, that is enough.

    `tried` excludes a number of layers and looks. The largest number comes first, and is the only trial where it is not
    enough; otherwise there are at most 1 + log2(`most`), rounded up. None at all is known not to be enough.
    """
    low, high = 0, most
    count = most
    while True:
        found = tried(count)
        yield found
        low, high = (low, count) if found.holds else (count, high)
        if high - low <= 1:
            return
        count = (low + high) // 2


def exclude_within_budget(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    plan: QuantPlan,
    target: TargetName,
    sensitivities: Sequence[LayerSensitivity],
    evaluator: Evaluator,
    *,
    progress: Progress = silent,
) -> tuple[QuantPlan, MixedPrecision]:
    """Return the plan with as few layers excluded for `target` as the evaluator's limits take, and how it was found.

    Where nothing holds, the plan comes back as it was.

    Args:
        sensitivities: what `rank_layers` found.
        evaluator: the images to validate on, and the limits.
    """
    limit = evaluator.limit()

    def excluding(count: int) -> QuantPlan:
        names = [one.layer for one in sensitivities[:count]]
        return exclude_layers(plan, names, target, f"INT8 would be outside its limits with it: {limit}")

    def tried(count: int) -> ExclusionTrial:
        found = evaluator(quantize(model, ranges, excluding(count), target), target)
        return ExclusionTrial(excluded=count, outside=found.outside)

    floats = np.cumsum([one.multiply_adds for one in sensitivities])
    most = int(np.searchsorted(floats, MOST_FLOAT, side="right"))
    trials = bisect(most, tried) if most else iter(())
    total = 1 + math.ceil(math.log2(max(most, 1)))
    path = tuple(progress(trials, f"Searching layers to exclude ({target})", total))
    count = min((one.excluded for one in path if one.holds), default=0)
    chosen = excluding(count) if count else plan
    return chosen, MixedPrecision(
        target=target,
        limit=limit,
        path=path,
        excluded=tuple(one.layer for one in sensitivities[:count]),
        float_share=sum(one.multiply_adds for one in sensitivities[:count]),
    )


def exclude_layers(plan: QuantPlan, layers: Sequence[str], target: TargetName, reason: str) -> QuantPlan:
    """Return the plan with `layers` excluded for `target` as well."""
    excluded = dict(plan.excluded)
    for name in layers:
        before = excluded.get(name)
        if before is None:
            excluded[name] = Exclusion(reason=reason, targets=(target,))
        elif target not in before.targets:
            excluded[name] = Exclusion(reason=before.reason, targets=(*before.targets, target))
    return replace(plan, excluded=excluded)


def multiply_adds(model: onnx.ModelProto, topology: Topology | None = None) -> dict[str, float]:
    """Return the multiply-adds of each layer for one image."""
    topology = topology or Topology(model)
    types = infer_types(model)
    counts = {}
    for layer in topology.layers:
        axes = types[layer.output].type.tensor_type.shape.dim
        places = axes[1:-1] if layer.node.op_type == "MatMul" else axes[2:]
        positions = np.prod([max(axis.dim_value, 1) for axis in places])
        outputs = topology.constants[layer.weight].dims[layer.axis]
        counts[layer.name] = float(positions * outputs * filter_size(layer, topology))
    return counts


def multiply_add_shares(model: onnx.ModelProto, topology: Topology | None = None) -> dict[str, float]:
    """Return each layer's share of the multiply-adds of all layers."""
    counts = multiply_adds(model, topology)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def latency_ratio(first: onnx.ModelProto, second: onnx.ModelProto, image: NDArray[np.generic]) -> float:
    """Return the median time of `first` over that of `second` on ONNX Runtime, on one image, taken in turns."""
    sessions = [CpuSession(graph.SerializeToString()) for graph in (first, second)]
    times: list[list[float]] = [[], []]
    for run in range(_TIMED_RUNS + 1):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(image)
            if run:
                taken.append(time.perf_counter() - start)
    return float(np.median(times[0]) / np.median(times[1]))
