"""QuantPlan: everything that was decided about quantizing one network, for every target at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe.methods import Method
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.observe.table import CalibrationTable
from resnet_export.calibration.quantize.grid import QuantizedWeight
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.report.search_report import EqualizationSummary, LayerExclusion, PlanSummary

CLASSIFIER_REASON = (
    "the classifier is a thousandth of the arithmetic, and what it rounds reaches the logits unaveraged"
)


class Exclusion(msgspec.Struct, frozen=True, kw_only=True):
    """Why a layer stays in floating point, and in whose graph."""

    reason: str
    targets: tuple[TargetName, ...] = tuple(TARGETS)


@dataclass(frozen=True, eq=False)
class Equalization:
    """One rescaling of channels that leaves the network's function as it is.

    The outputs of the layers `producers` were multiplied, and the input channels of the layers `consumers`
    divided, by `factors` (float32 [channels], positive).
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    factors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QuantPlan:
    """What was decided. The graph of each target is emitted from it, the ranges and the float graph.

    Layers and tensors are named as nodes and tensors of that graph.

    Attributes:
        method: how a tensor's range is chosen from the table,
        methods: except for these tensors.
        excluded: layers that stay in floating point.
        equalization: what was done to the exported graph before it was calibrated and quantized.
        weights: layers whose integers were chosen otherwise than by rounding each weight to the nearest.
        bias_corrections: layers to whose bias something is added, float32 [channels].
    """

    method: Method = "mse"
    methods: Mapping[str, Method] = field(default_factory=dict)
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    equalization: tuple[Equalization, ...] = ()
    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    bias_corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def choose_ranges(self, table: CalibrationTable) -> dict[str, Range]:
        """Return the range of every tensor of the table.

        Raises RequestError when the plan names a tensor that the table does not have.
        """
        if unknown := sorted(set(self.methods) - table.tensors.keys()):
            raise RequestError(
                f"the plan names tensor {unknown[0]!r}, which the calibration table does not have; "
                "calibrate this network again"
            )
        return {name: table.range(name, self.methods.get(name, self.method)) for name in table.tensors}

    def excluded_for(self, target: TargetName) -> dict[str, str]:
        """Return the layers that stay in floating point in one target's graph, with the reasons."""
        return {
            layer: excluded.reason for layer, excluded in self.excluded.items() if target in excluded.targets
        }

    def excluded_layers(self, target: TargetName, modules: Mapping[str, str]) -> tuple[ExcludedLayer, ...]:
        """Return them as the manifest lists them; `modules` maps node names to module paths."""
        return tuple(
            ExcludedLayer(
                node=layer, module=modules[layer], precision=TARGETS[target].float_precision, reason=reason
            )
            for layer, reason in self.excluded_for(target).items()
        )


def default_exclusions(model: onnx.ModelProto) -> dict[str, Exclusion]:
    """Return the layers that `--exclude auto` keeps before any search: the classifier, for TensorRT.

    There it costs nothing that can be measured and gains about 1 dB. In the CPU graph it would stay fp32, a
    fifth of a ResNet-50's INT8 file, for a gain of 0.8 dB at most. The first convolution is quantized for both
    (`docs/int8.md`).
    """
    layers = Topology(model).layers
    if not layers or layers[-1].node.op_type != "Gemm":
        return {}
    return {
        layers[-1].name: Exclusion(
            reason=CLASSIFIER_REASON,
            targets=tuple(name for name, row in TARGETS.items() if row.float_classifier),
        )
    }


def summarize(plan: QuantPlan) -> PlanSummary:
    """Return what `report.json` says of a plan."""
    return PlanSummary(
        method=plan.method,
        methods=dict(plan.methods),
        excluded={
            layer: LayerExclusion(reason=one.reason, targets=one.targets)
            for layer, one in plan.excluded.items()
        },
        equalization=tuple(
            EqualizationSummary(
                producers=one.producers,
                consumers=one.consumers,
                channels=len(one.factors),
                least=float(one.factors.min()),
                greatest=float(one.factors.max()),
            )
            for one in plan.equalization
        ),
        weights={
            layer: hashlib.sha256(np.ascontiguousarray(weight.values).tobytes()).hexdigest()[:16]
            for layer, weight in plan.weights.items()
        },
        bias_corrections={
            layer: float(np.abs(correction).max()) for layer, correction in plan.bias_corrections.items()
        },
    )
