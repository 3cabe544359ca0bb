"""What can be counted of a float32 graph: its layers in series and its multiply-adds."""

from __future__ import annotations

import onnx

from resnet_export.calibration.quantize.topology import Topology
from resnet_export.calibration.search.mixed_precision import multiply_adds
from resnet_export.runtime.bundle.schema import GraphInfo

__all__ = ["count_graph"]


def count_graph(model: onnx.ModelProto) -> GraphInfo:
    """Return the facts of a float32 graph. Raises ExportError for one whose nodes lack unique names."""
    topology = Topology(model)
    layers = {layer.name for layer in topology.layers}
    series: dict[str, int] = {}
    for node in topology.nodes:
        longest = max((series.get(name, 0) for name in node.input), default=0) + (node.name in layers)
        series |= dict.fromkeys(node.output, longest)
    return GraphInfo(
        layers_in_series=max(series.get(name, 0) for name in topology.outputs),
        multiply_adds=round(sum(multiply_adds(model, topology).values())),
    )
