"""`resnet-export constraints`: the versions that this release was tested with."""

from __future__ import annotations

from importlib.resources import files

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json


@click.command(name="constraints")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """Print the versions that this release was tested with, for pip.

    resnet-export constraints > constraints.txt; pip install -c constraints.txt 'resnet-export[cpu,export]'
    """  # fmt: skip
    text = (files("resnet_export.exporter") / "data" / "constraints.txt").read_text(encoding="utf-8")
    if as_json:
        lines = (line.partition("==") for line in text.splitlines() if line and not line.startswith("#"))
        print_json({name: version for name, _, version in lines})
    else:
        click.echo(text, nl=False)
