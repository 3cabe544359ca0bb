"""`resnet-export models`: the zoo as a table."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.models.zoo import ZOO


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def command(as_json: bool) -> None:
    """List the architectures with parameters, operations and published ImageNet accuracy."""
    if as_json:
        click.echo(json.dumps([asdict(architecture) for architecture in ZOO.values()], indent=2))
        return
    from tabulate import tabulate

    rows = [
        [
            architecture.name,
            f"{architecture.parameters:,}",
            architecture.gmacs,
            "\n".join(weights.name for weights in architecture.weights),
            "\n".join(f"{weights.top1:.3f}" for weights in architecture.weights),
        ]
        for architecture in ZOO.values()
    ]
    headers = ["architecture", "parameters", "GMACs", "weights", "top-1 %"]
    click.echo(tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True))
    click.echo("\nMultiply-adds for one 224 × 224 image; accuracy as torchvision publishes it, ImageNet-1K.")
