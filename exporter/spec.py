"""What the user asks for: two frozen values in which every option has exactly one home."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnet_export.calibration.observe.methods import Method
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.bundle.schema import Interpolation
from resnet_export.runtime.precision import Precision

InputKind = Literal["float32", "uint8"]
Size = int | tuple[int, int]
"""The side of a square, or (height, width), in pixels."""
CalibrationMethod = Literal["auto", Method]
EngineChoice = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]


@dataclass(frozen=True)
class ModelSpec:
    """Which network, with which parameters.

    `depth` or `arch` names the architecture (both may be given when they agree; neither when `weights` lets it
    be inferred). `weights` is a checkpoint file, "imagenet", or a torchvision weight name; None means a seeded
    untrained network. `num_classes` and `labels` (a text file, one label a line) default to what the
    checkpoint and ImageNet say. `checkpoint_key` is where the weights stand in a checkpoint that holds several sets
    ("state_dict_ema", or the prefix of one of several networks); `key_map` is a file that says what the network calls
    its tensors.

    `arch` may name a network of a library, "timm:NAME" or "torchvision:NAME"; `model` is a factory of one's own,
    "package.module:function" with each `model_arg` ("key=value"), a program of torch.export, "net.pt2", or an
    ONNX classifier that exists already, "net.onnx".
    A factory is code, and runs as such. `module` is the network itself, an nn.Module at hand, in place of these.

    An image becomes input by decoding it to `input_channels` (1: grayscale, 3: RGB, 4: RGBA), resizing its shorter
    side to `resize` pixels, or both sides to `resize` (height, width), with the filter `interpolation`, cutting the
    center of `image_size` pixels, and (value / 255 - mean) / std per channel. `mean` and `std` have one number for each
    channel, or one for all. What is None is what published weights were evaluated with; for any other network it is
    what ImageNet's usually are (`image_size`: what the network was designed for), see `models.preprocessing`.
    """

    depth: int | None = None
    arch: str | None = None
    model: str | None = None
    model_arg: tuple[str, ...] = field(default=(), metadata={"repeated": True})
    weights: str | None = None
    checkpoint_key: str | None = None
    key_map: Path | None = None
    num_classes: int | None = None
    labels: Path | None = None
    image_size: Size | None = None
    resize: Size | None = None
    interpolation: Interpolation | None = None
    input_channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    multi_label: bool = False
    seed: int = 0
    module: Any = field(default=None, metadata={"option": False}, compare=False)

    @property
    def onnx_file(self) -> Path | None:
        """The ONNX file that is the network, for which torch is not needed."""
        if self.model is None or not self.model.lower().endswith(".onnx"):
            return None
        return Path(self.model)


@dataclass(frozen=True)
class ExportSpec:
    """What to make of it.

    The fp32 ONNX artifact is always made; `fp16`, `bf16` and `int8` each add artifacts. `calib` is a folder, an .npz
    file or a list file of images, of which `calib_count` are drawn; `calib_table` is a calibration that was made
    before. `calib_method` says how INT8 ranges are clipped, "auto" takes what comes closest on images that were held
    out. `val` is a folder, an .npz file or a list file of images that nothing is fitted to: the finished bundle is
    judged on them. `max_drop` is what may be lost, in percentage points of top-1 accuracy, or of agreement where
    there are no labels: INT8 excludes layers until it holds on the calibration images, and `val` decides. `exclude`
    names the layers that INT8 leaves alone, "auto" the few that measurably pay and those that `max_drop` takes.
    `equalize`, `correct_bias` and `round_weights` turn the improvements of INT8 off one by one. `gpu` names compute
    capabilities ("sm86"). `labels_as_given` keeps labels that contradict labeled calibration images. `reuse` is an
    earlier bundle, by default the one that `force` replaces, whose graphs serve again where nothing that they are
    made of has changed.
    `embedding`, `features` and `softmax` each add outputs to every artifact: the vector that the classifier reads, the
    stage maps c2 to c5, and the probabilities.
    """

    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    input: InputKind = "float32"
    batch: BatchRange = field(default_factory=BatchRange)
    calib: Path | None = None
    calib_method: CalibrationMethod = "auto"
    calib_count: int = 256
    calib_table: Path | None = None
    val: Path | None = None
    max_drop: float | None = None
    exclude: Literal["auto", "none"] | tuple[str, ...] = "auto"
    equalize: bool = True
    correct_bias: bool = True
    round_weights: bool = True
    engine: EngineChoice = "auto"
    gpu: tuple[str, ...] = ()
    labels_as_given: bool = False
    embedding: bool = False
    features: bool = False
    softmax: bool = False
    force: bool = False
    reuse: Path | None = None

    @property
    def lowered(self) -> tuple[Precision, ...]:
        """The precisions besides fp32 that artifacts are asked for in, from exact to coarse."""
        return tuple(precision for precision in Precision if getattr(self, precision, False))
