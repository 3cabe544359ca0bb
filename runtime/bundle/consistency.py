"""What a manifest must fulfil beyond the types and ranges of its schema: rules that span several keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from resnet_export.runtime.bundle.schema import CHANNELS, LOGITS, OUTPUT_LAYOUTS, label_count

if TYPE_CHECKING:
    from resnet_export.runtime.bundle.schema import BatchRange, Manifest

# Two names that a file system without case would take for one are one.
_MANIFEST = "manifest.json"


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield one phrase per broken rule: what was found and what was expected."""
    for rule in _RULES:
        yield from rule(manifest)


def _classes(manifest: Manifest) -> Iterator[str]:
    classes = manifest.model.num_classes
    if len(manifest.labels) != label_count(classes):
        yield f"there are {len(manifest.labels)} labels for {classes} classes"
    if classes == 1 and manifest.model.activation != "sigmoid":
        yield f"model.activation is {manifest.model.activation!r}, expected 'sigmoid' for the one logit"


def _outputs(manifest: Manifest) -> Iterator[str]:
    first, expected = manifest.outputs[0], ("N", manifest.model.num_classes)
    if (first.name, first.shape) != (LOGITS, expected):
        yield f"outputs[0] is {first.name!r} {_shape(first.shape)}, expected {LOGITS!r} {_shape(expected)}"
    for output in manifest.outputs:
        layout = OUTPUT_LAYOUTS.get(len(output.shape))
        if (output.dtype, output.layout) != ("float32", layout):
            yield (
                f"output {output.name!r} is {output.dtype} {output.layout} {_shape(output.shape)}, expected float32 "
                f"{layout or 'of 2 to 4 axes'}"
            )
        if output.shape[:1] != ("N",) or len(output.rest) != len(output.shape) - 1:
            yield f"output {output.name!r} has shape {_shape(output.shape)}, expected N first and numbers behind it"
    for name in _repeated(output.name for output in (manifest.input, *manifest.outputs)):
        yield f"two tensors are called {name!r}"


def _tensors(manifest: Manifest) -> Iterator[str]:
    found, expected = manifest.input, manifest.preprocessing.input_spec
    if found != expected:
        yield (
            f"input is {found.name!r} {found.dtype} {found.layout} {_shape(found.shape)}, expected {expected.name!r} "
            f"{expected.dtype} {expected.layout} {_shape(expected.shape)}, "
            "as preprocessing.crop, .mean and .in_graph say"
        )


def _batches(manifest: Manifest) -> Iterator[str]:
    yield from _ordered("batch", manifest.batch)
    for artifact in manifest.artifacts:
        if artifact.engine is not None:
            for index, profile in enumerate(artifact.engine.profiles):
                yield from _ordered(f"profile {index} of artifact {artifact.name!r}", profile)


def _ordered(where: str, batch: BatchRange) -> Iterator[str]:
    if not batch.min <= batch.opt <= batch.max:
        yield f"{where} is {batch.min}, {batch.opt}, {batch.max}, expected min ≤ opt ≤ max"


def _preprocessing(manifest: Manifest) -> Iterator[str]:
    steps = manifest.preprocessing
    resized = (steps.resize, steps.resize) if isinstance(steps.resize, int) else steps.resize
    if any(crop > side for crop, side in zip(steps.size, resized, strict=True)):
        yield f"preprocessing.crop is {steps.crop}, larger than preprocessing.resize, {steps.resize}"
    if steps.channels not in CHANNELS or len(steps.std) != steps.channels:
        yield (
            f"preprocessing.mean has {len(steps.mean)} numbers and preprocessing.std {len(steps.std)}, expected one "
            "for each of 1, 3 or 4 channels"
        )
    if not all(math.isfinite(value) for value in steps.mean):
        yield f"preprocessing.mean is {steps.mean}, expected finite numbers"
    if not all(math.isfinite(value) and value > 0 for value in steps.std):
        yield f"preprocessing.std is {steps.std}, expected positive numbers"


def _weights(manifest: Manifest) -> Iterator[str]:
    weights = manifest.model.weights
    if weights.source == "untrained":
        if weights.seed is None or weights.sha256 is not None:
            yield "model.weights are untrained, expected a seed and no sha256"
    elif weights.sha256 is None or weights.seed is not None:
        yield f"model.weights are of source {weights.source!r}, expected a sha256 and no seed"


def _artifacts(manifest: Manifest) -> Iterator[str]:
    for name in _repeated(artifact.name for artifact in manifest.artifacts):
        yield f"two artifacts are called {name!r}"
    if not any(a.kind == "onnx" and a.precision == "fp32" for a in manifest.artifacts):
        yield "no artifact is an fp32 ONNX graph, the reference of every bundle"


def _engines(manifest: Manifest) -> Iterator[str]:
    graphs = {artifact.name: artifact for artifact in manifest.artifacts if artifact.kind == "onnx"}
    reports = {file.file for file in manifest.files}
    for artifact in manifest.artifacts:
        engine = artifact.engine
        if (engine is not None) != (artifact.kind == "engine"):
            found = "has" if engine is not None else "lacks"
            yield f"artifact {artifact.name!r} of kind {artifact.kind!r} {found} the key engine"
        if engine is None:
            continue
        source = graphs.get(engine.source)
        if source is None:
            yield f"engine {artifact.name!r} was built from {engine.source!r}, which is no ONNX artifact here"
        elif source.sha256 != engine.source_sha256:
            yield f"engine {artifact.name!r} was built from another {engine.source!r} than the bundle holds"
        if engine.layers is not None and engine.layers not in reports:
            yield f"the layer report {engine.layers!r} of engine {artifact.name!r} is not among the files"


def _files(manifest: Manifest) -> Iterator[str]:
    names = [file.file for file in manifest.contents()]
    for name in _repeated(name.casefold() for name in names):
        yield f"the file {name!r} is named twice"
    folded = {name.casefold() for name in names}
    for name in names:
        if name.casefold() == _MANIFEST:
            yield f"{name!r} is named as a file of the bundle"
        parts = name.casefold().split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in folded:
                yield f"{'/'.join(parts[:depth])!r} is a file and the folder of {name!r}"


def _golden(manifest: Manifest) -> Iterator[str]:
    stages = manifest.golden.stages
    if "eager" not in stages:
        yield f"golden.stages are {', '.join(stages) or 'empty'}, expected 'eager' among them"
    for stage in _repeated(stages):
        yield f"golden.stages name {stage!r} twice"
    further = {output.name for output in manifest.outputs[1:]}
    if further != manifest.golden.outputs.keys():
        yield (
            f"golden.outputs are {', '.join(manifest.golden.outputs) or 'empty'}, expected the outputs but the first: "
            f"{', '.join(sorted(further)) or 'none'}"
        )
    for name, count in manifest.golden.outputs.items():
        if count > manifest.golden.count:
            yield f"golden.outputs has {count} images of {name!r}, more than the {manifest.golden.count} there are"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _shape(shape: tuple[object, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


_RULES = (
    _classes,
    _outputs,
    _tensors,
    _batches,
    _preprocessing,
    _weights,
    _artifacts,
    _engines,
    _files,
    _golden,
)
