"""`resnet-export calibrate`: ranges only, for `--calib-table` of later exports."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from resnet_export.calibration.observe.methods import METHODS
from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.output import check_outputs, write_output
from resnet_export.exporter.cli.progress import progress_bar
from resnet_export.runtime.errors import DependencyError


@click.command(name="calibrate")
@click.argument("source", type=click.Path(path_type=Path), metavar="BUNDLE|ONNX")
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR|FILE",
    help="Images: folder, .npz or list.",
)
@click.option(
    "--calib-count", type=click.IntRange(min=2), default=256, show_default=True, help="Images to draw."
)
@click.option(
    "--calib-method",
    type=click.Choice(METHODS),
    default="mse",
    show_default=True,
    help="The table's own method; the others can still be had from it.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="calibration.json",
    show_default=True,
    help="File to write.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@click.option("--quiet", is_flag=True, help="No progress.")
@debug_option
def command(
    source: Path, calib: Path, calib_count: int, calib_method: Any, out: Path, seed: int, quiet: bool
) -> None:
    """Measure the ranges of every tensor of an fp32 graph and write them as a table.

    The graph is that of a BUNDLE or an ONNX file that resnet-export wrote. The table does not depend on the
    target, and fits any export of the same network with the same kind of input.
    """  # fmt: skip
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise DependencyError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'resnet-export[build,cpu]'"
        )
    from resnet_export.calibration.data.dataset import open_dataset
    from resnet_export.calibration.data.photos import check_for_calibration, load_photos
    from resnet_export.calibration.observe.calibrate import calibrate
    from resnet_export.calibration.observe.graph_source import read_source
    from resnet_export.calibration.observe.table import encode_table

    check_outputs({"--out": out}, {"BUNDLE|ONNX": source, "--calib": calib})
    graph = read_source(source)
    dataset = open_dataset(calib, preprocessing=graph.preprocessing, limit=calib_count, seed=seed)
    progress = progress_bar(quiet=quiet)
    photos = load_photos(dataset, progress=progress)
    check_for_calibration(photos)
    table = calibrate(
        graph.model,
        photos.inputs(),
        methods=(calib_method,),
        total=len(photos),
        progress=progress,
    )
    write_output(out, encode_table(table))
    if not quiet:
        click.echo(f"{out}: {len(table.tensors)} tensors over {table.images} images, {calib_method} ranges")
