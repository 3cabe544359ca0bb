"""What a source says of its images, in whatever form it has: timm's, transformers', torchvision's, a training script's.

Sources of the forms:

- timm 1.0, `timm/data/transforms_factory.py`: the shorter side is resized to floor(size / crop_pct), then the center is
  cut; `crop_mode` "squash" resizes both sides.
- transformers 4.50, `ConvNextImageProcessor` (that of its ResNets): below 384 the shorter side is resized to
  int(shortest_edge / crop_pct), then the center is cut; from 384 on both sides are resized. Other processors resize to
  `size`, and cut to `crop_size` where `do_center_crop` says so.
- torchvision 0.28, `transforms/_presets.py`, `ImageClassification`; its reference training script's `args`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import msgspec
import numpy as np

from resnet_export.exporter.models.metadata import named_values
from resnet_export.exporter.spec import Size
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.bundle.schema import CHANNELS, Interpolation

__all__ = [
    "Stated",
    "merged",
    "stated_by",
    "stated_by_preprocessing",
    "stated_by_timm",
    "stated_by_torchvision",
]

_RESAMPLING = dict(
    enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"))
)  # Pillow's numbers
_CONVNEXT_PCT, _CONVNEXT_SQUASHED = 224 / 256, 384


@dataclass(frozen=True)
class Stated:
    """What a source says of its images; None where it says nothing.

    Attributes:
        whose: where it says so, as words of a sentence.
        crop: the size of the input, (height, width) or the side of a square.
        resize: what an image of `crop` is cut from: the shorter side, or (height, width).
        crop_pct: crop / resize, where `resize` is not said.
        squash: whether both sides are resized, whatever the aspect ratio.
        mean, std: one number a channel, as fractions of 255.
        unused: what is said beside it and could not be used, as "name=value".
    """

    whose: str = ""
    crop: Size | None = None
    resize: Size | None = None
    crop_pct: float | None = None
    squash: bool = False
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    unused: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence on what could not be used, if there is anything."""
        some = ", ".join(dict.fromkeys(self.unused))
        return (f"the source also says {some}, which was not used",) if some else ()

    @property
    def says(self) -> tuple[str, ...]:
        """The options that it answers, by their names in a ModelSpec."""
        names = [name for name in ("interpolation", "mean", "std") if getattr(self, name) is not None]
        if self.resize is not None or self.crop_pct is not None:
            names.insert(0, "resize")
        return tuple(names if self.crop is None else ["image_size", *names])

    def for_channels(self, count: int) -> Stated:
        """Return it without a mean or standard deviation of another number of channels, which are named as unused."""
        stated = {"mean": self.mean, "std": self.std}
        fits = {name: one if one is None or len(one) in (1, count) else None for name, one in stated.items()}
        unused = tuple(f"{name}={one}" for name, one in stated.items() if fits[name] is not one)
        return replace(self, mean=fits["mean"], std=fits["std"], unused=(*self.unused, *unused))

    def resize_to(self, crop: Size) -> Size | None:
        """Return what an image is resized to before `crop` is cut, in the proportions that are stated."""
        if self.resize is not None and self.crop is not None and self.crop != crop:
            ratios = [one / of for one, of in zip(_sides(self.resize), _sides(self.crop), strict=True)]
            sides = [round(side * ratio) for side, ratio in zip(_sides(crop), ratios, strict=True)]
        elif self.resize is not None:
            return self.resize
        elif self.crop_pct is not None:
            sides = [math.floor(side / self.crop_pct) for side in _sides(crop)]
        else:
            return None
        whole = isinstance(crop, int) and not self.squash and not isinstance(self.resize, tuple)
        return sides[0] if whole else (sides[0], sides[1])


def stated_by(values: Mapping[str, Any]) -> Stated:
    """Return what the values beside a checkpoint's tensors say; of several that speak, the more special one decides.

    `values` are by the place where they stand; a preprocessor_config.json of the hub stands at "preprocessor_config".
    """
    found = [
        reader(value)
        for names, reader in _READERS
        for value in named_values(values, names)
        if isinstance(value, Mapping)
    ]
    return merged(*found, _from_arguments(values))


def stated_by_timm(config: Mapping[str, Any], whose: str = "timm's pretrained_cfg") -> Stated:
    """Return what a `pretrained_cfg` of timm says."""
    mode = config.get("crop_mode", "center")
    found = _parsed(config, whose, _TIMM)
    if mode not in ("center", "squash", "", None):
        return replace(found, unused=(*found.unused, f"crop_mode={mode!r}"))
    return replace(found, squash=mode == "squash")


def stated_by_torchvision(transforms: Any, whose: str) -> Stated:
    """Return what an `ImageClassification` of torchvision's weights says."""
    parts = {name: getattr(transforms, name, None) for name in ("crop_size", "resize_size", "mean", "std")}
    return _parsed(
        parts | {"interpolation": getattr(transforms.interpolation, "value", None)}, whose, _ARGUMENTS
    )


def stated_by_preprocessing(text: str, whose: str) -> Stated:
    """Return what the metadata of an exported ONNX file say. Anything else that stands there is named as unused."""
    try:
        found = msgspec.json.decode(text, type=Preprocessing)
    except msgspec.MsgspecError:
        return Stated(unused=(f"preprocessing={text[:40]!r}",))
    crop, resize = found.crop, found.resize
    return Stated(
        whose,
        crop if isinstance(crop, int) else (crop[0], crop[1]),
        resize if isinstance(resize, int) else (resize[0], resize[1]),
        interpolation=found.interpolation,
        mean=found.mean,
        std=found.std,
    )


def _from_transformers(config: Mapping[str, Any]) -> Stated:
    whose = "preprocessor_config.json"
    found = _parsed(config, whose, _TRANSFORMERS)
    unused = list(found.unused)
    factor = config.get("rescale_factor")
    if factor is not None and not math.isclose(float(factor), 1 / 255, rel_tol=1e-3):
        unused.append(f"rescale_factor={factor}")
    if config.get("do_normalize") is False:
        found = replace(found, mean=(0.0,), std=(1.0,))
    size, kind = found.crop, str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    edge = config["size"].get("shortest_edge") if isinstance(config.get("size"), Mapping) else None
    cut = _size(config.get("crop_size")) if config.get("do_center_crop", "crop_size" in config) else None
    squash = isinstance(config.get("size"), Mapping) and edge is None
    if config.get("do_resize") is False or size is None:
        found = replace(found, crop=cut, crop_pct=None)
    elif "ConvNext" in kind or "crop_pct" in config:
        side = _sides(size)[0]
        large = side >= _CONVNEXT_SQUASHED
        pct = found.crop_pct or _CONVNEXT_PCT
        resize: Size = (side, side) if large else int(side / pct)
        found = replace(found, crop=side, resize=resize, crop_pct=None)
    elif cut is not None:
        found = replace(found, crop=cut, resize=_sides(size) if squash else _sides(size)[0])
    elif squash:
        found = replace(found, resize=_sides(size))
    else:
        side = _sides(size)[0]
        found = replace(found, crop=side, resize=side)
    return replace(found, unused=tuple(unused))


def _from_arguments(values: Mapping[str, Any]) -> Stated:
    """Read what training scripts keep under many names, anywhere in the file."""
    plain: dict[str, Any] = {}
    for wanted in _ARGUMENTS.values():
        for name in wanted[0]:
            value = next((one for one in named_values(values, (name,)) if one is not None), None)
            if value is not None:
                plain.setdefault(name, value)
    return _parsed(plain, "the arguments of the training in the checkpoint", _ARGUMENTS)


def _parsed(
    config: Mapping[str, Any], whose: str, table: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]]
) -> Stated:
    """Return the fields that the first usable of their names in `config` has; unusable values are named."""
    parts: dict[str, Any] = {}
    unused = []
    for field, (names, parse) in table.items():
        for name in names:
            value = config.get(name)
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            found = parse(value)
            if found is None:
                unused.append(f"{name}={value!r}"[:80])
            else:
                parts.setdefault(field, found)
    mean, std = parts.get("mean"), parts.get("std")
    if max((*(mean or ()), *(std or ()))) > 1 if mean or std else False:
        # In units of 255, as Caffe, Detectron2 and mmpretrain have them.
        parts |= {name: tuple(one / 255 for one in parts[name]) for name in ("mean", "std") if name in parts}
    for name, low in (("mean", 0.0), ("std", 1e-9)):
        if name in parts and not all(low <= one <= 1 for one in parts[name]):
            unused.append(f"{name}={parts.pop(name)}")
    return Stated(whose, **parts, unused=tuple(unused))


def merged(*found: Stated) -> Stated:
    """Return what several state, the first first where they contradict each other."""
    result = Stated()
    for one in found:
        taken = {
            field.name: getattr(one, field.name)
            for field in fields(Stated)
            if field.name not in ("whose", "unused", "squash")
            and getattr(result, field.name) is None
            and getattr(one, field.name) is not None
        }
        if result.says and "resize" in result.says:
            taken.pop("crop_pct", None), taken.pop("resize", None)
        if not taken:
            result = replace(result, unused=(*result.unused, *one.unused))
            continue
        whose = f"{result.whose} and {one.whose}" if result.whose else one.whose
        result = replace(
            result,
            **taken,
            whose=whose,
            squash=result.squash or one.squash,
            unused=(*result.unused, *one.unused),
        )
    return result


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _size(value: Any) -> Size | None:
    """Return a size from a number, [H, W], [C, H, W], or a mapping with height and width or shortest_edge."""
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        return _size([value.get("height"), value.get("width")] if edge is None else edge)
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        value = int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value) if 1 <= value <= 2**15 else None
    if isinstance(value, list | tuple) and len(value) in (1, 2, 3):
        sides = [_size(one) for one in value[-2:]]
        if not all(isinstance(side, int) for side in sides):
            return None
        pair = (sides[0], sides[-1])
        return pair[0] if pair[0] == pair[1] else pair  # type: ignore[return-value]
    return None


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, str):
        value = re.findall(r"[-+.\deE]+", value)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    if not isinstance(value, list | tuple) or len(value) not in CHANNELS:
        return None
    try:
        numbers = tuple(float(one) for one in value)
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _pct(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if 0.1 <= found <= 1 else None


def _filter(value: Any) -> Interpolation | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = _RESAMPLING.get(value, "")
    name = str(value).rpartition(".")[2].strip().lower()
    return name if name in get_args(Interpolation) else None  # type: ignore[return-value]


# Field of Stated → the names that a source has for it, the more special first, and how its value is read.
_TIMM: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "crop": (("input_size",), _size),
    "crop_pct": (("crop_pct",), _pct),
    "interpolation": (("interpolation",), _filter),
    "mean": (("mean",), _numbers),
    "std": (("std",), _numbers),
}
_TRANSFORMERS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "crop": (("size",), _size),
    "crop_pct": (("crop_pct",), _pct),
    "interpolation": (("resample",), _filter),
    "mean": (("image_mean",), _numbers),
    "std": (("image_std",), _numbers),
}
_ARGUMENTS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "crop": (
        ("val_crop_size", "test_crop_size", "crop_size", "img_size", "image_size", "input_size", "imgsz"),
        _size,
    ),
    "resize": (("val_resize_size", "resize_size"), _size),
    "crop_pct": (("crop_pct",), _pct),
    "interpolation": (("val_interpolation", "interpolation"), _filter),
    "mean": (("mean", "img_mean", "image_mean", "pixel_mean"), _numbers),
    "std": (("std", "img_std", "image_std", "pixel_std"), _numbers),
}
_READERS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Stated]], ...] = (
    (("preprocessor_config",), _from_transformers),
    (("pretrained_cfg", "default_cfg"), stated_by_timm),
)
