"""The structs that `manifest.json` is made of; `docs/bundle.md` explains each key.

They are the schema: `docs/bundle.schema.json` is generated from them. Unknown keys are refused, so a typing
error never becomes an option that is silently ignored. Import them from `manifest`, which reads and writes
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from resnet_export.runtime.bundle.files import MAX_FILE_BYTES
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.precision import Precision, Tolerance

SCHEMA_VERSION: Final = 1

# `$` alone would let a final newline pass in Python, and `\Z` is unknown to JSON Schema's dialect (ECMA 262).
_END = r"$(?!\n)"
_SEGMENT = r"[A-Za-z0-9_]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"

Sha256 = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{64}}{_END}")]
# Portable on every file system, and unable to leave the bundle: no "..", no "/" in front, no drive letter,
# no backslash, no hidden names.
FilePath = Annotated[str, msgspec.Meta(pattern=f"^{_SEGMENT}(/{_SEGMENT})*{_END}", max_length=200)]
Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE_BYTES)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
# Text that ends up on a terminal: no control characters, so a bundle cannot send escape sequences to it.
Line = Annotated[str, msgspec.Meta(pattern=rf"^[^\x00-\x08\x0a-\x1f\x7f-\x9f]*{_END}", max_length=1000)]
Prose = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$", max_length=20_000)]
Channels = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=4)]
# Not tuple[Count, Count]: msgspec 0.22 leaves a broken tuple to the garbage collector when it refuses one in a union.
Sides = Annotated[tuple[Count, ...], msgspec.Meta(min_length=2, max_length=2)]
CHANNELS: Final = (1, 3, 4)
"""Numbers of input channels: grayscale, RGB, RGBA."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


TargetName = Literal["tensorrt", "cpu"]
"""For whom an INT8 graph is laid out; its facts are a row of `calibration.quantize.placement.TARGETS`."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frozen, keyword-only, and strict about unknown keys."""


LOGITS: Final = "logits"
"""The output that every network has, and always the first."""

PROBABILITIES: Final = "probabilities"
"""The output that the graph makes of the logits, where there is one."""

OUTPUT_LAYOUTS: Final[Mapping[int, Literal["NC", "NLC", "NCHW"]]] = {2: "NC", 3: "NLC", 4: "NCHW"}
"""Number of axes → layout of an output: a vector, a sequence of tokens, or a map."""


class TensorSpec(Struct, frozen=True):
    """One network input or output. `shape` holds integers and, for the batch axis, the string "N"."""

    name: Line
    dtype: Literal["float32", "uint8"]
    layout: Literal["NCHW", "NHWC", "NLC", "NC"]
    shape: tuple[Count | Literal["N"], ...]

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape without its batch axis."""
        return tuple(extent for extent in self.shape if isinstance(extent, int))


class BatchRange(Struct, frozen=True):
    """The batch sizes that the artifacts are checked and built for: min ≤ opt ≤ max."""

    min: Count = 1
    opt: Count = 8
    max: Count = 32


class Preprocessing(Struct, frozen=True):
    """How an image becomes the input tensor.

    Decode to as many channels as `mean` has numbers (1: grayscale, 3: RGB, 4: RGBA), resize with Pillow's filter
    `interpolation` (antialiased but for "nearest"), cut the center of the size `crop`, and normalize
    (value / 255 - mean) / std per channel. `resize` is the length of the shorter side, or [height, width], to which the
    image is squashed whatever its aspect ratio; `crop` is the side of a square, or [height, width]. When `in_graph`,
    normalization is part of the artifacts and the input is the raw crop, uint8 [N, H, W, C].
    """

    resize: Count | Sides = 256
    crop: Count | Sides = 224
    interpolation: Interpolation = "bilinear"
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    in_graph: bool = False

    @property
    def channels(self) -> int:
        """The number of input channels: 1, 3 or 4."""
        return len(self.mean)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels."""
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return height, width

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of a crop, uint8."""
        return (*self.size, self.channels)

    @property
    def input_spec(self) -> TensorSpec:
        """The input tensor of every artifact."""
        if self.in_graph:
            shape: tuple[int | Literal["N"], ...] = ("N", *self.crop_shape)
            return TensorSpec(name="input", dtype="uint8", layout="NHWC", shape=shape)
        height, width, channels = self.crop_shape
        return TensorSpec(name="input", dtype="float32", layout="NCHW", shape=("N", channels, height, width))

    @property
    def words(self) -> str:
        """The steps in words: "shorter side to 256 (bilinear), central 224 × 224, mean 0.485,0.456,0.406, std …"."""
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        if isinstance(self.resize, int):
            resized = f"shorter side to {self.resize}"
        else:
            resized = f"squashed to {self.resize[0]} × {self.resize[1]}"
        color = {1: "grayscale, ", 4: "RGBA, "}.get(self.channels, "")
        return (
            f"{color}{resized} ({self.interpolation}), central {self.size[0]} × {self.size[1]}, "
            f"mean {mean}, std {std}"
        )


class WeightsInfo(Struct, frozen=True):
    """Where the parameters came from.

    An untrained network has a `seed` and no `sha256`; any other has the `sha256` of the checkpoint or ONNX file,
    or, of a module in memory, that of its parameters. Of a repository in the hub, `name` is "owner/name" and
    `revision` the commit that was fetched.
    """

    source: Literal["untrained", "file", "torchvision", "module", "onnx", "hub"]
    name: Line
    sha256: Sha256 | None = None
    seed: int | None = None
    revision: Line | None = None


Activation = Literal["softmax", "sigmoid"]
"""What makes probabilities of logits: softmax over the classes, of which one is right, or the sigmoid of each logit."""


def label_count(num_classes: int) -> int:
    """Return how many labels a network has: one for each class, two for the one logit of a binary classifier."""
    return 2 if num_classes == 1 else num_classes


class ModelInfo(Struct, frozen=True):
    """The eager network that the bundle was made from.

    `num_classes` is the number of its logits: 1 for a binary classifier, which has two labels, the second for a logit
    above 0. `activation` makes probabilities of the logits.
    """

    arch: Line
    num_classes: Count
    parameters: Count
    weights: WeightsInfo
    activation: Activation = "softmax"


class GraphInfo(Struct, frozen=True):
    """Facts that were counted from the fp32 graph.

    `layers_in_series` is the greatest number of layers with weights (convolutions and matrix products) on a path from
    the input to the logits; `multiply_adds` is what these layers take for one image.
    """

    layers_in_series: Annotated[int, msgspec.Meta(ge=0)]
    multiply_adds: Annotated[int, msgspec.Meta(ge=0)]


class ExcludedLayer(Struct, frozen=True):
    """A layer that was left in a higher precision than the artifact's, and why."""

    node: Line
    module: Line
    precision: Precision
    reason: Prose


class EngineInfo(Struct, frozen=True):
    """What an engine was built for and from. A runtime of another variant or version refuses it.

    `compute_capabilities` are "8.6"-style strings; `profiles` are the batch ranges; `source` names the ONNX
    artifact and `source_sha256` its bytes; `options` are the builder options as given; `build_seconds` is
    wall time; `layers` is the file (in the bundle) that holds the layer report.
    """

    variant: Literal["tensorrt", "tensorrt_rtx"]
    version: Line
    compute_capabilities: tuple[Annotated[str, msgspec.Meta(pattern=f"^[0-9]+[.][0-9]{_END}")], ...]
    profiles: tuple[BatchRange, ...]
    source: Line
    source_sha256: Sha256
    options: dict[str, str | int | float | bool] = {}
    build_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    layers: FilePath | None = None


class FileInfo(Struct, frozen=True):
    """One file of the bundle. `file` is relative to the bundle, in forward slashes."""

    file: FilePath
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: Sha256


class Verdict(Struct, frozen=True):
    """What the parity check recorded of an artifact on one backend.

    `backend` and `provider` are a session choice's ("onnxruntime", "CPUExecutionProvider"); `precision` is
    the arithmetic that really ran; `detail` is one line such as "centered cosine 0.93, expected ≥ 0.995".
    """

    backend: Line
    provider: Line
    precision: Precision
    passed: bool
    detail: Line = ""


class Artifact(Struct, frozen=True):
    """One runnable file. `file` is relative to the bundle, in forward slashes.

    `target` says for whom the graph was laid out: "any", "cpu" or "tensorrt". `engine` is set for engines,
    and only for them. `parity` holds the verdicts of the parity check, one per backend that ran the artifact;
    a session that was not told otherwise runs nothing in reduced precision that lacks a passing one. `refusal` says
    why the artifact may not be shipped whatever golden images say, as where INT8 stays outside its accuracy budget
    on the calibration images; every parity check then fails it.
    """

    name: Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_][A-Za-z0-9._+-]*{_END}", max_length=100)]
    file: FilePath
    kind: Literal["onnx", "engine"]
    precision: Precision
    target: Literal["any", TargetName]
    bytes: Size
    sha256: Sha256
    excluded: tuple[ExcludedLayer, ...] = ()
    engine: EngineInfo | None = None
    parity: tuple[Verdict, ...] = ()
    refusal: Prose | None = None


class GoldenInfo(Struct, frozen=True):
    """`golden.npz`: `images` uint8 [N, H, W, C]; `logits.<stage>` float32 [N, classes] for each stage, the
    eager model's under `logits.eager`; `<output>.eager` float32 [M, …] for each further output of the eager model, on
    the first M of the images: `outputs` says how many those are. `source` says whether the images are the bundled
    photographs or the user's calibration set. `sample_bytes` is the length of the image file in `sample.file`, None
    when the archive holds no sample of the preprocessing.
    """

    file: FilePath
    bytes: Size
    sha256: Sha256
    count: Count
    source: Literal["bundled", "calibration"]
    stages: tuple[Annotated[str, msgspec.Meta(pattern=f"^[A-Za-z0-9_][A-Za-z0-9._+-]*{_END}")], ...]
    outputs: dict[Line, Count] = {}
    sample_bytes: Size | None = None


class Provenance(Struct, frozen=True):
    """What made the bundle. `versions` maps package name to version; `created` is UTC, ISO 8601.

    `stages` maps a precision to the hash of everything that its graphs were made from: fp32 graph, images, options.
    """

    created: Annotated[
        str,
        msgspec.Meta(
            pattern=rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}([.][0-9]+)?(Z|[+]00:00){_END}"
        ),
    ]
    versions: dict[str, Line]
    exporter: Literal["dynamo", "torchscript", "onnx"]
    opset: Count
    notices: tuple[Prose, ...] = ()
    stages: dict[str, Sha256] = {}


class Manifest(Struct, frozen=True):
    """The whole of `manifest.json`."""

    schema: Literal[1]
    model: ModelInfo
    graph: GraphInfo
    input: TensorSpec
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    batch: BatchRange
    preprocessing: Preprocessing
    labels: tuple[Line, ...]
    tolerances: dict[str, Tolerance]
    artifacts: tuple[Artifact, ...]
    golden: GoldenInfo
    modules: dict[str, Line]
    provenance: Provenance
    files: tuple[FileInfo, ...] = ()

    def output(self, name: str) -> TensorSpec:
        """Return the output called `name`; raise RequestError, listing what there is, when there is none."""
        for output in self.outputs:
            if output.name == name:
                return output
        names = ", ".join(output.name for output in self.outputs)
        raise RequestError(f"the bundle has no output {name!r}; it has {names}")

    def artifact(self, name: str) -> Artifact:
        """Return the artifact called `name`; raise BundleError, listing what there is, when there is none."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(artifact.name for artifact in self.artifacts)
        raise BundleError(f"the bundle has no artifact {name!r}; it has {names}")

    def file(self, name: str) -> FileInfo | None:
        """Return the further file `name` (neither an artifact nor the golden outputs), None where there is none."""
        return next((file for file in self.files if file.file == name), None)

    def contents(self) -> tuple[FileInfo, ...]:
        """Return every file of the bundle but the manifest itself: artifacts, golden outputs and the rest."""
        named: tuple[Artifact | GoldenInfo, ...] = (*self.artifacts, self.golden)
        return (*(FileInfo(file=f.file, bytes=f.bytes, sha256=f.sha256) for f in named), *self.files)
