"""The options of the export, and nothing that needs torch: `--help` stays quick."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from resnet_export.exporter.cli.errors import one_sentence
from resnet_export.exporter.config import read_config
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.bundle.schema import CHANNELS
from resnet_export.runtime.precision import PRECISIONS, Precision

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


class PerChannel(click.ParamType[tuple[float, ...]]):
    """`R,G,B`, or one number for each channel of another number of channels: fractions of 255."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(map(float, str(value).split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) not in CHANNELS:
            self.fail(
                f"{value!r} is not R,G,B as fractions of 255, such as 0.5,0.5,0.5; for grayscale or for all channels, "
                "give one number, for RGBA four",
                param,
                ctx,
            )
        return numbers


class SizeType(click.ParamType[Any]):
    """`PX`, or height and width as `HxW`: an int, or a tuple of two."""

    name = "PX|HxW"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        if isinstance(value, int | tuple):
            return value
        try:
            sides = [int(side) for side in re.split(r"\s*[x×X,]\s*", str(value).strip())]
        except ValueError:
            sides = []
        if len(sides) not in (1, 2):
            self.fail(
                f"{value!r} is not PX or HxW (height, width) in pixels, such as 224 or 192x320", param, ctx
            )
        if min(sides) < self._least:
            self.fail(
                f"{value!r} has a side below {self._least} pixels; give at least {self._least}", param, ctx
            )
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _layers(_: click.Context, __: click.Parameter, value: str) -> str | tuple[str, ...]:
    return value if value in ("auto", "none") else tuple(name.strip() for name in value.split(","))


_SPECS = (ModelSpec, ExportSpec)
_FIELDS = {
    field.name: field for spec in _SPECS for field in fields(spec) if field.metadata.get("option", True)
}
_HINTS = {name: hint for spec in _SPECS for name, hint in get_type_hints(spec).items()}


def _spec(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return the option of a field of a spec, which gives the flag, the default and the choices."""
    field = _FIELDS[name]
    default = field.default if field.default_factory is MISSING else field.default_factory()
    flag = "--" + name.replace("_", "-")
    if default is True:
        flag += f"/--no-{flag[2:]}"
    elif default is False:
        attributes["is_flag"] = True
    elif default not in (None, ()):
        attributes["show_default"] = True
    if isinstance(default, BatchRange):
        default = f"{default.min},{default.opt},{default.max}"
    if field.metadata.get("repeated", False):
        attributes["multiple"] = True
    choices = [hint for hint in (_HINTS[name], *get_args(_HINTS[name])) if get_origin(hint) is Literal]
    if choices and "type" not in attributes and "callback" not in attributes:
        attributes["type"] = click.Choice(get_args(choices[0]))
    return click.option(flag, name, default=default, **attributes)


def specs(options: dict[str, Any]) -> tuple[ModelSpec, ExportSpec]:
    """Return the specs that the values of the options make, by name."""
    model, export = (
        {field.name: options[field.name] for field in fields(spec) if field.name in _FIELDS}
        for spec in _SPECS
    )
    return ModelSpec(**model), ExportSpec(**export)


def _precision_flags() -> list[Callable[[Command], Command]]:
    """Return a flag for each precision that an export can be asked for."""
    rows = (PRECISIONS[precision] for precision in Precision if precision in _FIELDS)
    return [
        _spec(
            row.precision, help=f"Add the {row.precision} artifact{'s' if row.graphs > 1 else ''}{row.needs}."
        )
        for row in rows
    ]


def _use_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        with one_sentence(context):
            context.default_map = read_config(value)


OPTIONS = [
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=_use_config,
        help="Options from a file, such as a bundle's export.toml: these names under `[model]` and `[export]`; flags "
        "win.",
    ),
    _spec("depth", type=click.Choice([18, 34, 50, 101, 152]), help="Depth of the ResNet."),
    _spec(
        "arch",
        metavar="NAME",
        help="Architecture by name, see `resnet-export models`, or one of a library: `timm:NAME`, `torchvision:NAME`.",
    ),
    _spec(
        "model",
        metavar="MODULE:FACTORY|FILE.pt2|FILE.onnx",
        help="A network of your own: a function that returns an nn.Module (it is imported and run as code), a program "
        "of torch.export, or an ONNX classifier, for which torch is not needed.",
    ),
    _spec(
        "model_arg",
        metavar="KEY=VALUE",
        help="An argument of the factory; repeat it for more.",
    ),
    _spec(
        "weights",
        metavar="FILE|DIR|hf:NAME[@REV]",
        help="Checkpoint (.pth, .pt, .safetensors), `imagenet`, a torchvision weight name, a folder with config.json "
        "as timm and transformers write it, or a repository of the Hugging Face hub, `hf:OWNER/NAME@REVISION`. "
        "Without it the network is untrained.",
    ),
    _spec(
        "checkpoint_key",
        metavar="NAME",
        help="Which weights of a checkpoint that holds several: their place (`state_dict_ema`), or their prefix.",
    ),
    _spec(
        "key_map",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Names of tensors, as JSON or lines of `name in the checkpoint = name in the network`.",
    ),
    _spec(
        "num_classes",
        type=click.IntRange(min=1),
        help="Number of classes.  [default: the checkpoint's, 1000]",
    ),
    _spec(
        "labels",
        type=click.Path(path_type=Path),
        help="Text file, one label a line.  [default: ImageNet's for 1000]",
    ),
    _spec(
        "image_size",
        type=SizeType(32),
        metavar="PX|HxW",
        help="Side of a square input in pixels, or height and width.  [default: the network's, 224]",
    ),
    _spec(
        "resize",
        type=SizeType(1),
        metavar="PX|HxW",
        help="What an image is resized to before the central crop: PX is its shorter side; HxW squashes it to height "
        "and width whatever its aspect ratio, as Resize((H, W)) does.  [default: 256 to a crop of 224, in that ratio, "
        "or what published weights were evaluated with; an oblong input is squashed]",
    ),
    _spec(
        "interpolation",
        help="Filter of the resizing.  [default: bilinear]",
    ),
    _spec(
        "input_channels",
        type=click.Choice(CHANNELS),
        help="Channels of the input: 1 decodes images to grayscale, 3 to RGB, 4 to RGBA.  [default: the checkpoint's, "
        "3]",
    ),
    _spec(
        "mean",
        type=PerChannel(),
        metavar="R,G,B",
        help="Mean of the channels, as fractions of 255; one number is for all.  [default: ImageNet's for RGB, else "
        "0.5]",
    ),
    _spec(
        "std",
        type=PerChannel(),
        metavar="R,G,B",
        help="Standard deviation of the channels, likewise.  [default: ImageNet's for RGB, else 0.5]",
    ),
    _spec(
        "batch",
        type=BatchRangeType(),
        help="Batch sizes to check and build for.",
    ),
    *_precision_flags(),
    _spec(
        "calib",
        type=click.Path(path_type=Path),
        metavar="DIR|FILE",
        help="Images for calibration, range scans and golden outputs.",
    ),
    _spec(
        "calib_count",
        type=click.IntRange(min=2),
        help="Images to draw from --calib.",
    ),
    _spec(
        "calib_method",
        help="How INT8 ranges are clipped; `auto` takes what comes closest on held-out images.",
    ),
    _spec(
        "calib_table",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Use the ranges of `resnet-export calibrate` instead of calibrating.",
    ),
    _spec(
        "val",
        type=click.Path(path_type=Path),
        metavar="DIR|FILE",
        help="Images that nothing is fitted to, on which the finished bundle is judged.",
    ),
    _spec(
        "max_drop",
        type=click.FloatRange(0, 100),
        metavar="PP",
        help="Top-1 accuracy (without labels, top-1 agreement) that may be lost, in percentage points: layers are "
        "excluded from INT8 until it holds on --calib, and --val decides.",
    ),
    _spec(
        "exclude",
        metavar="auto|none|LAYER,…",
        callback=_layers,
        help="Layers to exclude from INT8 (mixed precision).",
    ),
    _spec(
        "equalize",
        help="Cross-layer equalization of channels before INT8.  [default: yes]",
    ),
    _spec(
        "correct_bias",
        help="Bias correction of INT8 layers.  [default: yes]",
    ),
    _spec(
        "round_weights",
        help="GPTQ-style rounding of INT8 weights.  [default: yes]",
    ),
    _spec(
        "input",
        help="Input tensor: normalized NCHW float32, or raw RGB NHWC uint8.",
    ),
    _spec(
        "engine",
        help="Engines to build: whatever this host can, one variant, or none.",
    ),
    _spec(
        "gpu",
        type=CommaList(),
        metavar="sm86,sm89,…",
        help="GPUs to build engines for.  [default: this host's; every RTX GPU from Ampere on]",
    ),
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Bundle to write.  [default: ./ARCHITECTURE]",
    ),
    _spec("multi_label", help="Each class is decided on by itself, by the sigmoid of its logit."),
    _spec("embedding", help="Add the output `embedding` [N, F]: the vector that the classifier reads."),
    _spec("features", help="Add the stage maps `c2` to `c5` as outputs, as far as the network has them."),
    _spec("softmax", help="Add the output `probabilities` [N, classes]."),
    _spec("labels_as_given", help="Keep labels that contradict labeled --calib images."),
    _spec("force", help="Replace an existing bundle."),
    _spec(
        "reuse",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Take over what was made from the very same before.  [default: from the bundle that --force replaces]",
    ),
    _spec("seed", type=int, help="Seed of untrained weights and sampling."),
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
