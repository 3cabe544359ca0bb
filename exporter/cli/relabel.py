"""`resnet-export relabel`: new names for the classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.runtime.errors import DependencyError


@click.command(name="relabel")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="The names, in any form that --labels of an export takes.",
)
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing.")
@debug_option
def command(bundle: Path, labels: Path, as_json: bool, quiet: bool) -> None:
    """Give BUNDLE's classes other names, in its manifest, its ONNX files and its report; nothing else changes."""
    if find_spec("onnx") is None:
        raise DependencyError("onnx is not installed; run: pip install 'resnet-export[build]'")
    from resnet_export.exporter.bundle.relabel import relabel

    changed = relabel(bundle, labels)
    names = changed.manifest.labels
    if as_json:
        print_json({"bundle": str(changed.path), "labels": names})
    elif not quiet:
        click.echo(
            f"{bundle} has {len(names)} classes: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
