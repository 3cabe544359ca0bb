"""What is counted of each row of the zoo, from its exported graph: parameters, multiply-adds, activation memory.

Counting takes minutes, so the figures stand in `data/zoo_facts.json`. Run as a program, this module counts them again
and writes that file and the tables of `docs/zoo.md`; a test holds the file to the graphs.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from resnet_export.exporter.models.zoo import ZOO, Architecture

__all__ = ["OTHER_NETWORKS", "RowFacts", "count_row", "read_facts", "to_markdown"]

_FILE = "zoo_facts.json"

OTHER_NETWORKS = "\n## Networks of other families\n"
"""The heading in `docs/zoo.md` from which on it is written by hand."""


@dataclass(frozen=True)
class RowFacts:
    """Counted figures of one network, for one image of its own size and its own number of classes.

    Attributes:
        parameters: trainable numbers.
        multiply_adds: of its convolutions and matrix products.
        activation_bytes: of every tensor that a layer of the float32 graph writes.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int


def read_facts() -> dict[str, RowFacts]:
    """Return the figures of every row by name, as they were counted."""
    text = (files("resnet_export.exporter") / "data" / _FILE).read_text(encoding="utf-8")
    return {name: RowFacts(**facts) for name, facts in json.loads(text).items()}


def count_row(row: Architecture) -> RowFacts:
    """Export `row` without weights and count its graph."""
    import onnx
    import torch

    from resnet_export.exporter.graph.facts import count_graph
    from resnet_export.exporter.models.resnet import build

    network = build(row)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters(), 1):
            parameter.fill_(index / 1024)  # the exporter would merge parameters that are equal
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, 3, row.image_size, row.image_size)
        torch.onnx.export(network, (image,), buffer, dynamo=False, opset_version=17)  # type: ignore[arg-type, unused-ignore]
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))
    sizes = {
        value.name: _elements(value)
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    written = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return RowFacts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=count_graph(model).multiply_adds,
        activation_bytes=4 * sum(sizes.get(name, 0) for name in written),
    )


def _elements(value: object) -> int:
    count = 1
    for dimension in value.type.tensor_type.shape.dim:  # type: ignore[attr-defined]
        count *= dimension.dim_value
    return count


def to_markdown(facts: dict[str, RowFacts]) -> str:
    """Return `docs/zoo.md` as far as it is generated: up to its section on other networks."""
    lines = [
        "# The networks that can be built",
        "",
        "Written by `python -m resnet_export.exporter.models.zoo_facts`. Parameters, multiply-adds and activation",
        "memory are counted from the exported float32 graph, for one image of the size in the table and the number of",
        "classes of the data set that the network was designed for. Accuracy is ImageNet-1K top-1 as torchvision 0.28",
        "publishes it with the weights of that name; a row without it has none that `--weights imagenet` would fetch.",
        "",
        "| `--arch` | image | parameters | multiply-adds (10⁹) | activations (MB) | published top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in ZOO.items():
        counted = facts[name]
        accuracy = ", ".join(f"{weights.top1:.3f} ({weights.name})" for weights in row.weights)
        lines.append(
            f"| {name} | {row.image_size} | {counted.parameters:,} | {counted.multiply_adds / 1e9:.3f} | "
            f"{counted.activation_bytes / 1e6:.1f} | {accuracy or '–'} |"
        )
    lines += [
        "",
        "`resnet50_v1`, `resnet101_v1` and `resnet152_v1` have the stride in the first 1×1 convolution of a block,",
        "as published in 2015 and as Caffe's, Keras's and MSRA's checkpoints have it; without the suffix it is in the",
        '3×3, as in torchvision and timm ("v1.5"). The two have the same names and shapes: a checkpoint is taken for',
        "v1.5 unless `--arch` says otherwise or the file names such an architecture.",
        "",
        "`resnet20` to `resnet110` have the parameter-free shortcuts of the paper's CIFAR networks (option A, zero",
        "channels), `cifar_resnet20` to `cifar_resnet110` 1×1 convolutions (option B).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Count every row and write `exporter/data/zoo_facts.json` and the tables of `docs/zoo.md` of the source tree."""
    root = Path(__file__).resolve().parents[2]
    facts = {name: count_row(row) for name, row in ZOO.items()}
    data = json.dumps({name: asdict(counted) for name, counted in facts.items()}, indent=1)
    (root / "exporter" / "data" / _FILE).write_text(data + "\n", encoding="utf-8")
    page = root / "docs" / "zoo.md"
    _, heading, others = page.read_text(encoding="utf-8").partition(OTHER_NETWORKS)
    page.write_text(to_markdown(facts) + heading + others, encoding="utf-8")


if __name__ == "__main__":
    main()
