"""How far the layers of sound graphs are from the fp32 graph: the origin of the limits of layer attribution.

    python -m benchmarks.layer_limits BUNDLE...

For each artifact of each bundle, and for int8 graphs with ranges by each other method of the bundle's table, the
worst layer of every kind, the worst gain and the worst coarseness. Nothing should diverge.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import onnx

from resnet_export.calibration.improve.channel_scaling import rescale
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.observe.table import decode_table
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import Equalization, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.exporter.debug.layerwise import compare_artifacts, compare_layers
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import read_artifact, read_manifest
from resnet_export.runtime.parity.attribution.layers import LIMITS, Layerwise
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.text_table import text_table

_BATCH = 4
_TABLE = "calibration.json"


def requantized(bundle: str) -> Iterator[tuple[str, Layerwise]]:
    """Quantize the bundle's fp32 graph by each method of its table, for each target, and compare the layers."""
    manifest = read_manifest(bundle)
    file = next((one for one in manifest.files if one.file == _TABLE), None)
    if file is None:
        return
    table = decode_table(read_artifact(bundle, file))
    fp32 = onnx.load_from_string(read_artifact(bundle, manifest.artifact("fp32")))
    done = (Equalization(one.producers, one.consumers, one.array()) for one in table.equalization)
    reference = rescale(fp32, done)
    images = read_golden(bundle).images
    for method in METHODS:
        plan = QuantPlan(method=method)
        for target in TARGETS:
            graph = quantize(reference, plan.choose_ranges(table), plan, target)
            batches = (
                to_input(images[start : start + _BATCH], manifest.preprocessing)
                for start in range(0, len(images), _BATCH)
            )
            yield f"{method} for {target}", compare_layers(reference, graph, batches)


def row(bundle: str, name: str, found: Layerwise) -> list[str]:
    """Return the worst figures of one graph."""
    own = {
        kind: [one.local_error for one in found.layers if one.kind == kind and one.local_error is not None]
        for kind in LIMITS
    }
    gains = [abs(one.gain - 1) for one in found.layers if one.gain is not None]
    coarse = [one.coarseness for one in found.layers if one.coarseness is not None]
    figures = [*own.values(), gains, coarse]
    perturbation = "same bits" if found.perturbation_db is None else f"{found.perturbation_db:.0f} dB"
    cells = [f"{max(values):.2g}" if values else "" for values in figures]
    return [bundle, name, *cells, perturbation, "" if found.first is None else found.first.node]


def main() -> None:
    """Print one table over all bundles."""
    rows = []
    for bundle in sys.argv[1:]:
        rows += [row(bundle, one.artifact, one) for one in compare_artifacts(bundle)]
        rows += [row(bundle, name, one) for name, one in requantized(bundle)]
    headers = ["bundle", "graph", *LIMITS, "gain", "coarseness", "perturbation", "diverges"]
    print(text_table(headers, rows))


if __name__ == "__main__":
    main()
