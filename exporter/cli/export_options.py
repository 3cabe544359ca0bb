"""The options of the export, and nothing that needs torch: `--help` stays quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from resnet_export.runtime.bundle.manifest import BatchRange

Command = TypeVar("Command", bound=Callable[..., Any])


class BatchRangeType(click.ParamType[BatchRange]):
    """`MIN,OPT,MAX`, or one number for all three."""

    name = "MIN,OPT,MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BatchRange:
        if isinstance(value, BatchRange):
            return value
        try:
            sizes = [int(part) for part in str(value).split(",")]
        except ValueError:
            sizes = []
        if len(sizes) == 1:
            sizes *= 3
        if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            self.fail(f"{value!r} is not MIN,OPT,MAX with 1 ≤ MIN ≤ OPT ≤ MAX, such as 1,8,32", param, ctx)
        return BatchRange(min=sizes[0], opt=sizes[1], max=sizes[2])


class CommaList(click.ParamType[tuple[str, ...]]):
    """Comma-separated names, as a tuple."""

    name = "NAME,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name in it", param, ctx)
        return names


class ChannelTriple(click.ParamType[tuple[float, float, float]]):
    """`R,G,B`, three fractions of 255."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        if isinstance(value, tuple):
            return value
        try:
            red, green, blue = map(float, str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not R,G,B as fractions of 255, such as 0.5,0.5,0.5", param, ctx)
        return red, green, blue


def _layers(_: click.Context, __: click.Parameter, value: str) -> str | tuple[str, ...]:
    return value if value in ("auto", "none") else tuple(name.strip() for name in value.split(","))


OPTIONS = [
    click.option("--depth", type=click.Choice(["18", "34", "50", "101", "152"]), help="Depth of the ResNet."),
    click.option("--arch", metavar="NAME", help="Architecture by name; see `resnet-export models`."),
    click.option(
        "--weights",
        metavar="FILE",
        help="Checkpoint (.pth, .pt, .safetensors), or `imagenet`, or a torchvision weight name. "
        "Without it the network is untrained.",
    ),
    click.option(
        "--num-classes",
        type=click.IntRange(min=1),
        help="Number of classes.  [default: the checkpoint's, 1000]",
    ),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Text file, one label a line.  [default: ImageNet's for 1000]",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(min=32),
        default=224,
        show_default=True,
        help="Side of the input, pixels.",
    ),
    click.option(
        "--resize",
        type=click.IntRange(min=1),
        metavar="PX",
        help="What an image's shorter side is resized to before the crop.  [default: 256 to a crop of 224, in that "
        "ratio, or what published weights were evaluated with]",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(["bilinear", "bicubic"]),
        help="Filter of the resizing.  [default: bilinear]",
    ),
    click.option(
        "--mean", type=ChannelTriple(), metavar="R,G,B", help="Mean of the channels.  [default: ImageNet's]"
    ),
    click.option(
        "--std",
        type=ChannelTriple(),
        metavar="R,G,B",
        help="Standard deviation of the channels.  [default: ImageNet's]",
    ),
    click.option(
        "--batch",
        type=BatchRangeType(),
        default="1,8,32",
        show_default=True,
        help="Batch sizes to check and build for.",
    ),
    click.option("--fp16", is_flag=True, help="Add the fp16 artifact."),
    click.option("--int8", is_flag=True, help="Add the INT8 artifacts; needs --calib or --calib-table."),
    click.option(
        "--calib",
        type=click.Path(path_type=Path),
        metavar="DIR|FILE",
        help="Images for calibration, range scans and golden outputs.",
    ),
    click.option(
        "--calib-count",
        type=click.IntRange(min=2),
        default=256,
        show_default=True,
        help="Images to draw from --calib.",
    ),
    click.option(
        "--calib-method",
        type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
        default="auto",
        show_default=True,
        help="How INT8 ranges are clipped; `auto` takes what comes closest on held-out images.",
    ),
    click.option(
        "--calib-table",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Use the ranges of `resnet-export calibrate` instead of calibrating.",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 100),
        metavar="PP",
        help="Accuracy (without labels, agreement) that INT8 may lose on --calib, in percentage points: "
        "layers are kept in fp16 until it holds.",
    ),
    click.option(
        "--exclude",
        metavar="auto|none|LAYER,…",
        default="auto",
        show_default=True,
        callback=_layers,
        help="Layers that INT8 leaves alone.",
    ),
    click.option(
        "--equalize/--no-equalize",
        default=True,
        help="Give channels the scale at which INT8 loses least.  [default: yes]",
    ),
    click.option(
        "--correct-bias/--no-correct-bias",
        default=True,
        help="Take away what INT8 weights do to the mean of each channel.  [default: yes]",
    ),
    click.option(
        "--round-weights/--no-round-weights",
        default=True,
        help="Round INT8 weights so that their errors cancel.  [default: yes]",
    ),
    click.option(
        "--input",
        "input_kind",
        type=click.Choice(["float32", "uint8"]),
        default="float32",
        show_default=True,
        help="Input tensor: normalized NCHW float32, or raw RGB NHWC uint8.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "none"]),
        default="auto",
        show_default=True,
        help="Engines to build: whatever this host can, one variant, or none.",
    ),
    click.option(
        "--gpu",
        type=CommaList(),
        default=(),
        metavar="sm86,sm89,…",
        help="GPUs to build engines for.  [default: this host's; every RTX GPU from Ampere on]",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Bundle to write.  [default: ./ARCHITECTURE]",
    ),
    click.option("--force", is_flag=True, help="Replace an existing bundle."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of untrained weights and sampling."
    ),
    click.option(
        "--dry-run", is_flag=True, help="Check the request and say what would be written; write nothing."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."),
    click.option("--quiet", is_flag=True, help="No progress and no table; errors and notices only."),
]


def export_options(command: Command) -> Command:
    """Add every export option to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
