"""`resnet-export infer`: the labels of a few images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.session_options import session_options
from resnet_export.runtime import open_session


@click.command(name="infer")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels per image.")
@session_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def command(bundle: Path, images: tuple[Path, ...], top: int, as_json: bool, **request: Any) -> None:
    """Print the most probable labels of each IMAGE."""
    with open_session(bundle, **request) as session:
        predictions = session.classify(images, top=top)
        choice = session.choice
    if as_json:
        rows = [
            {"image": str(image), "predictions": best}
            for image, best in zip(images, predictions, strict=True)
        ]
        found = {"choice": choice, "images": rows}
        # Names of files need not be UTF-8: what is not is escaped, as JSON escapes it.
        text = json.dumps(msgspec.to_builtins(found), indent=2, ensure_ascii=False)
        click.echo(text.encode("utf-8", "backslashreplace").decode())
        return
    for image, best in zip(images, predictions, strict=True):
        click.echo(f"{image}")
        for prediction in best:
            click.echo(f"  {prediction.probability:7.2%}  {prediction.label}")
    click.echo(f"ran {choice}", err=True)
