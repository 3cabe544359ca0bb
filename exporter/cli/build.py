"""`resnet-export build`: engines on or for a target, added to a bundle that exists."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.export_options import CommaList
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.output import check_outside
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.runtime.errors import DependencyError
from resnet_export.runtime.select.host import probe


@click.command(name="build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="Variant to build with: whatever this host can, or one.",
)
@click.option(
    "--gpu",
    type=CommaList(),
    default=(),
    metavar="GPU,…",
    help="GPUs to build for: sm86, 8.6, or a name, such as 'RTX 3090'.",
)
@click.option(
    "--workspace", "workspace_mib", type=click.IntRange(min=1), metavar="MIB", help="Limit of scratch memory."
)
@click.option("--tf32", is_flag=True, help="Let fp32 layers compute in TF32.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "same_compute_capability", "ampere+"]),
    default="none",
    show_default=True,
    help="Other GPUs that the engine runs on (standard TensorRT).",
)
@click.option("--version-compatible", is_flag=True, help="Run on later versions as well (standard TensorRT).")
@click.option(
    "--strip-weights", is_flag=True, help="Leave the weights out of the engine (standard TensorRT)."
)
@click.option("--refit", is_flag=True, help="Allow the weights to be replaced (standard TensorRT).")
@click.option(
    "--sparse", is_flag=True, help="Use 2:4 sparsity where the weights have it (standard TensorRT)."
)
@click.option(
    "--dla-core",
    type=click.IntRange(min=0),
    metavar="N",
    help="Run on this DLA core (standard TensorRT, Jetson).",
)
@click.option(
    "--log-folder", type=click.Path(path_type=Path, file_okay=False), help="Keep TensorRT's messages here."
)
@json_option
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@debug_option
def command(
    bundle: Path,
    engine: Any,
    gpu: tuple[str, ...],
    log_folder: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Build engines from BUNDLE's typed ONNX graphs and add them to it, in one step.

    Needs onnx and a builder: pip install 'resnet-export[build,tensorrt-rtx]', or [build,tensorrt] on a device; never
    torch. An option that the variant cannot honor is refused. What cannot be built here is a note with the way to
    get it, and an error only where nothing could be built. Interrupted, the bundle stays as it was.
    """  # fmt: skip
    if find_spec("onnx") is None:
        raise DependencyError("onnx is not installed; run: pip install 'resnet-export[build]'")
    from resnet_export.exporter.engine.build import add_engines
    from resnet_export.exporter.engine.options import BuildOptions

    if log_folder is not None:
        check_outside("--log-folder", log_folder, "BUNDLE", bundle)
        log_folder.mkdir(parents=True, exist_ok=True)
    with show_progress(quiet=quiet) as progress:
        extended, notes = add_engines(
            bundle,
            engine=engine,
            gpu=gpu,
            host=probe(),
            options=BuildOptions(**options),
            log_folder=log_folder,
            progress=progress,
        )
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    if as_json:
        engines = [artifact for artifact in extended.manifest.artifacts if artifact.engine is not None]
        made = {"bundle": str(extended.path), "engines": engines, "notes": notes}
        print_json(made)
    elif not quiet:
        for artifact in extended.manifest.artifacts:
            if artifact.engine is not None:
                seconds = artifact.engine.build_seconds
                click.echo(f"{artifact.file}  {artifact.bytes / 1e6:.1f} MB, built in {seconds:.1f} s")
