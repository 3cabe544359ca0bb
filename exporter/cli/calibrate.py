"""`resnet-export calibrate`: ranges only, for `--calib-table` of later exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from resnet_export.calibration.observe.methods import METHODS
from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.output import check_outputs, write_output
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.runtime.errors import DependencyError, RequestError

if TYPE_CHECKING:
    from resnet_export.calibration.observe.calibrate import Observe
    from resnet_export.calibration.observe.table import CalibrationTable


@click.command(name="calibrate")
@click.argument("sources", type=click.Path(path_type=Path), metavar="BUNDLE|ONNX", nargs=-1, required=True)
@click.option(
    "--merge",
    is_flag=True,
    help="Add up tables of one network that were made of parts of the images: the arguments are their files.",
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Images: folder, .npz or list.",
)
@click.option(
    "--calib-count", type=click.IntRange(min=2), default=256, show_default=True, help="Images to draw."
)
@click.option(
    "--calib-method",
    type=click.Choice(METHODS),
    default=None,
    show_default="mse, or that of the first table",
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
@click.option("--ray", metavar="ADDRESS", help="Run on this Ray cluster (HOST:PORT, or auto); needs ray.")
@json_option
@click.option("--quiet", is_flag=True, help="No progress.")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    sources: tuple[Path, ...],
    merge: bool,
    calib: Path | None,
    calib_count: int,
    calib_method: Any,
    out: Path,
    seed: int,
    ray: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the ranges of every tensor of an fp32 graph and write them as a table.

    The graph is that of a BUNDLE or an ONNX file that resnet-export wrote. The table does not depend on the
    target, and fits any export of the same network with the same kind of input.

    With --merge, tables A B … become the table that one run over all their images would have written.
    """  # fmt: skip
    if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
        raise DependencyError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'resnet-export[build,cpu]'"
        )
    from resnet_export.calibration.observe.table import encode_table

    if merge:
        table = _merged(ctx, sources, calib_method, out)
    else:
        table = _calibrated(sources, calib, calib_count, calib_method or "mse", out, seed, ray, quiet)
    write_output(out, encode_table(table))
    if as_json:
        made = {
            "table": str(out),
            "tensors": len(table.tensors),
            "images": table.images,
            "method": table.method,
        }
        print_json(made)
    elif not quiet:
        click.echo(f"{out}: {len(table.tensors)} tensors over {table.images} images, {table.method} ranges")


def _merged(ctx: click.Context, files: tuple[Path, ...], method: Any, out: Path) -> CalibrationTable:
    from resnet_export.calibration.observe.table import merge, read_table

    for name in ("calib", "calib_count", "seed", "ray"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise RequestError(
                f"--{name.replace('_', '-')} has no meaning with --merge, which reads no images; leave it out"
            )
    if len(files) < 2:
        raise RequestError(
            f"--merge adds up tables, and {str(files[0])!r} is the only one; give at least two files"
        )
    check_outputs({"--out": out}, {f"table {number}": file for number, file in enumerate(files, 1)})
    table = reduce(merge, map(read_table, files))
    if method is None:
        return table
    return msgspec.structs.replace(table.with_methods((method,)), method=method)


def _calibrated(
    sources: tuple[Path, ...],
    calib: Path | None,
    calib_count: int,
    method: Any,
    out: Path,
    seed: int,
    ray: str | None,
    quiet: bool,
) -> CalibrationTable:
    if len(sources) > 1:
        raise RequestError(
            f"{len(sources)} networks were given, expected one BUNDLE or ONNX file; tables are added up with --merge"
        )
    if calib is None:
        raise RequestError(
            "there are no images to calibrate on; give --calib a folder, an .npz or a list file"
        )
    from resnet_export.calibration.data.dataset import open_dataset
    from resnet_export.calibration.data.photos import BATCH, check_for_calibration
    from resnet_export.calibration.observe.calibrate import calibrate
    from resnet_export.calibration.observe.graph_source import read_source
    from resnet_export.runtime.preprocess import to_input

    (source,) = sources
    check_outputs({"--out": out}, {"BUNDLE|ONNX": source, "--calib": calib})
    graph = read_source(source)
    dataset = open_dataset(calib, preprocessing=graph.preprocessing, limit=calib_count, seed=seed)
    check_for_calibration((batch.images[0] for batch in dataset.batches(1)), str(dataset.source))
    # One pass: nothing would be gained by holding the crops, and any number of images takes the same memory.
    with _observing(ray) as observe, show_progress(quiet=quiet) as progress:
        return calibrate(
            graph.model,
            (to_input(batch.images, graph.preprocessing) for batch in dataset.batches(BATCH)),
            methods=(method,),
            total=len(dataset),
            progress=progress,
            observe=observe,
        )


@contextmanager
def _observing(ray: str | None) -> Iterator[Observe | None]:
    """Yield what runs the graph: None for this host, or a cluster."""
    if ray is None:
        yield None
        return
    from resnet_export.exporter.ray.calibrate import observe_on
    from resnet_export.exporter.ray.cluster import connected

    with connected(ray) as cluster:
        yield partial(observe_on, cluster)
