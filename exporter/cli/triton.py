"""`resnet-export triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.output import check_outside
from resnet_export.exporter.triton.repository import write_repository
from resnet_export.exporter.triton.spec import TritonSpec


@click.command(name="triton")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="The model repository, made where it is missing.",
)
@click.option("--name", metavar="NAME", help="Name of the ensemble; by default that of BUNDLE's folder.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("python",),
    show_default=True,
    metavar="NAME",
    help="Triton's backend: python, onnxruntime, openvino or tensorrt (repeatable; the ensemble runs the first).",
)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    metavar="NAME",
    help="Serve this artifact (repeatable); by default all that passed.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Instances of each model per device.",
)
@click.option(
    "--max-queue-delay",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    metavar="US",
    help="Microseconds that a request waits for others.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Labels per image of the ensemble.",
)
@json_option
@debug_option
def command(
    bundle: Path,
    out: Path,
    name: str | None,
    backends: tuple[str, ...],
    artifacts: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Write BUNDLE as a model repository for Triton Inference Server.

    One model for each backend and artifact, and an ensemble from the bytes of an image file to labels. Run again for
    a new bundle, it adds a version.

    Needs tritonclient: pip install 'resnet-export[triton]'. A server that runs the python models needs resnet-export
    and an engine in its Python.
    """  # fmt: skip
    check_outside("--out", out, "BUNDLE", bundle)
    spec = TritonSpec(name=name, backends=backends, artifacts=artifacts or None, **options)
    written = write_repository(bundle, out, spec)
    if as_json:
        print_json(
            {
                "repository": str(out),
                "version": written.version,
                "added": written.added,
                "bundle_sha256": written.bundle_sha256,
                "models": written.models,
            }
        )
        return
    what = "added" if written.added else "there already"
    click.echo(f"{out}: version {written.version} {what}, bundle {written.bundle_sha256[:12]}")
    for model in written.models:
        click.echo(f"  {model}")
