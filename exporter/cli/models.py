"""`resnet-export models`: the zoo as a table."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.models.zoo_facts import read_facts
from resnet_export.runtime.text_table import text_table


@click.command(name="models")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """List the architectures with parameters, operations and published ImageNet accuracy."""
    facts = read_facts()
    if as_json:
        click.echo(json.dumps([asdict(row) | asdict(facts[name]) for name, row in ZOO.items()], indent=2))
        return
    rows = [
        [
            name,
            row.image_size,
            f"{facts[name].parameters:,}",
            f"{facts[name].multiply_adds / 1e9:.3f}",
            f"{facts[name].activation_bytes / 1e6:.1f}",
            "\n".join(weights.name for weights in row.weights),
            "\n".join(f"{weights.top1:.3f}" for weights in row.weights),
        ]
        for name, row in ZOO.items()
    ]
    headers = ["architecture", "image", "parameters", "GMACs", "act. MB", "weights", "top-1 %"]
    click.echo(text_table(headers, rows))
    click.echo(
        "\nMultiply-adds (10⁹) and fp32 activations for one image of that size, counted from the exported graph;\n"
        "accuracy as torchvision publishes it, ImageNet-1K. resnetN_v1 has the stride in the first 1×1 convolution\n"
        "(Caffe, Keras, MSRA), resnetN in the 3×3 (v1.5: torchvision, timm).\n"
        "Others: --arch timm:NAME, --arch torchvision:NAME, --model MODULE:FACTORY|FILE.pt2."
    )
