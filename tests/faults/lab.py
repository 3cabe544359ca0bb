"""A clean bundle of a trained network, copies of it with one fault each, and what the gate says of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from resnet_export.calibration.data.dataset import open_dataset
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.plan import QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.exporter.models.zoo import Architecture
from resnet_export.runtime import preprocess
from resnet_export.runtime.bundle.golden import Golden, encode_golden, read_golden
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    Manifest,
    Preprocessing,
    TensorSpec,
    encode_manifest,
    read_manifest,
)
from resnet_export.runtime.parity import Batch, ParityReport, run_parity
from resnet_export.runtime.precision import Precision
from tests.trained import CALIBRATION_IMAGES, DIGITS, RESNET18, Task, checkpoint, sources

BATCH = 50
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Case:
    """A bundle with a fault, or a reader or data with one; `changed` is the share of answers that it costs."""

    bundle: Path
    changed: float
    patch: Patch = contextlib.nullcontext
    labels: Labels | None = None


@dataclass
class Lab:
    """One trained network, exported once. `count` labeled images judge every fault."""

    folder: Path
    checkpoints: Path
    count: int = 1000
    task: Task = DIGITS
    threads: int = 2
    _predictions: dict[str, Labels] = field(default_factory=dict)

    @cached_property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """The trained parameters, by torchvision's names."""
        file = self.checkpoint()
        return {name: tensor.numpy() for name, tensor in torch.load(file, weights_only=True).items()}

    def checkpoint(self, architecture: Architecture = RESNET18) -> Path:
        """Return the checkpoint of a network that was trained on the lab's task."""
        return checkpoint(self.checkpoints, architecture, task=self.task)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """The held-out pictures as they lie in a data set."""
        return sources(self.task.splits(0)[1].images[: self.count])

    @cached_property
    def labels(self) -> Labels:
        """Their classes."""
        return self.task.splits(0)[1].labels[: self.count]

    @cached_property
    def clean(self) -> Path:
        """The bundle without a fault: fp32, fp16, and INT8 for both targets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        calib, names = self.folder / "calibration.npz", self.folder / "labels.txt"
        np.savez(calib, images=sources(self.task.splits(0)[0].images[:CALIBRATION_IMAGES]))
        names.write_text("\n".join(NAMES))
        model = ModelSpec(
            weights=str(self.checkpoint()),
            num_classes=10,
            labels=names,
            image_size=40,
        )
        spec = ExportSpec(fp16=True, calib=calib, engine="none")
        bundle = export(model, spec, self.folder / "exported").bundle.path
        manifest, golden = read_manifest(bundle), read_golden(bundle)
        fp32 = onnx.load(bundle / manifest.artifact("fp32").file)
        inputs = preprocess.normalize(golden.images, manifest.preprocessing)
        crops = np.stack(
            [preprocess.load(picture, manifest.preprocessing) for picture in np.load(calib)["images"]]
        )
        seen = preprocess.normalize(crops, manifest.preprocessing)
        plan = QuantPlan(excluded=default_exclusions(fp32))
        ranges = plan.choose_ranges(calibrate(fp32, [seen]))
        spans = scan_ranges(_exported(fp32), [seen])
        graphs = {
            "int8.tensorrt": to_fp16(_exported(quantize(fp32, ranges, plan, "tensorrt")), spans).graph.model,
            "int8.cpu": quantize(fp32, ranges, plan, "cpu"),
        }
        artifacts = tuple(
            Artifact(
                name=name,
                file=f"model.{name}.onnx",
                kind="onnx",
                precision=Precision.INT8,
                target="cpu" if name == "int8.cpu" else "tensorrt",
                bytes=1,
                sha256="0" * 64,
            )
            for name in graphs
        )
        whole = msgspec.structs.replace(manifest, artifacts=(*manifest.artifacts, *artifacts))
        recorded = {name: logits(model, inputs) for name, model in graphs.items()}
        return self._write(self.folder / "clean", bundle, whole, golden, graphs, recorded)

    @cached_property
    def manifest(self) -> Manifest:
        """The clean bundle's manifest."""
        return read_manifest(self.clean)

    @cached_property
    def golden(self) -> Golden:
        """The clean bundle's golden outputs."""
        return read_golden(self.clean)

    def model(self, name: str) -> onnx.ModelProto:
        """Return a clean artifact's graph."""
        return onnx.load(self.clean / self.manifest.artifact(name).file)

    @cached_property
    def inputs(self) -> NDArray[np.float32]:
        """The held-out images as the network takes them."""
        return self.read(self.manifest.preprocessing)

    def read(self, preprocessing: Preprocessing) -> NDArray[Any]:
        """Return the held-out images as a reader with this preprocessing feeds them."""
        crops = np.stack([preprocess.load(picture, preprocessing) for picture in self.images])
        return preprocess.to_input(crops, preprocessing)

    def predicted(self, name: str) -> Labels:
        """Return what a clean artifact predicts of the held-out images."""
        if name not in self._predictions:
            self._predictions[name] = logits(self.model(name), self.inputs).argmax(axis=1)
        return self._predictions[name]

    def changed(self, model: onnx.ModelProto, name: str, inputs: NDArray[Any] | None = None) -> float:
        """Return the share of held-out images that `model` predicts otherwise than the clean artifact `name`."""
        found = logits(model, self.inputs if inputs is None else inputs)
        return float((found.argmax(axis=1) != self.predicted(name)).mean())

    def golden_inputs(self) -> NDArray[np.float32]:
        """Return the golden images as the network takes them."""
        return preprocess.normalize(self.golden.images, self.manifest.preprocessing)

    def write(
        self,
        name: str,
        graphs: Mapping[str, onnx.ModelProto] | None = None,
        recorded: Mapping[str, Logits] | None = None,
        *,
        keep: tuple[str, ...],
        images: NDArray[np.uint8] | None = None,
        **changes: Any,
    ) -> Path:
        """Write a copy of the clean bundle with the artifacts `keep`, some of its parts exchanged, hashes redone."""
        artifacts = tuple(item for item in self.manifest.artifacts if item.name in keep)
        manifest = msgspec.structs.replace(self.manifest, artifacts=artifacts, **changes)
        golden = self.golden if images is None else Golden(images, self.golden.logits, self.golden.sample)
        return self._write(self.folder / name, self.clean, manifest, golden, graphs or {}, recorded or {})

    def _write(
        self,
        folder: Path,
        base: Path,
        manifest: Manifest,
        golden: Golden,
        graphs: Mapping[str, onnx.ModelProto],
        recorded: Mapping[str, Logits],
    ) -> Path:
        folder.mkdir()
        artifacts = []
        for artifact in manifest.artifacts:
            if artifact.name in graphs:
                data = serialize(graphs[artifact.name])
                (folder / artifact.file).write_bytes(data)
                artifact = msgspec.structs.replace(artifact, bytes=len(data), sha256=_sha256(data))
            else:
                os.link(base / artifact.file, folder / artifact.file)
            artifacts.append(msgspec.structs.replace(artifact, parity=()))
        stages = {**golden.logits, **recorded}
        data = encode_golden(Golden(golden.images, stages, golden.sample))
        (folder / manifest.golden.file).write_bytes(data)
        info = msgspec.structs.replace(
            manifest.golden, bytes=len(data), sha256=_sha256(data), stages=tuple(sorted(stages))
        )
        changed = msgspec.structs.replace(manifest, artifacts=tuple(artifacts), golden=info, files=())
        (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))
        return folder

    def narrowed(self, fp32: onnx.ModelProto) -> onnx.ModelProto:
        """Return the fp16 graph that the export would make of `fp32`."""
        graph = _exported(fp32)
        return to_fp16(graph, scan_ranges(graph, [self.golden_inputs()])).graph.model

    def baked(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Return the fp32 graph that takes raw pixels, and what the manifest says of it."""
        preprocessing = msgspec.structs.replace(self.manifest.preprocessing, in_graph=True)
        side = preprocessing.crop
        raw = TensorSpec(name="input", dtype="uint8", layout="NHWC", shape=("N", side, side, 3))
        graph = bake_preprocessing(_exported(self.model("fp32")), preprocessing)
        return graph.model, {"input": raw, "preprocessing": preprocessing}

    def check(self, case: Case, images: int | None = None) -> ParityReport:
        """Run the gate on a case, with `images` of the labeled images (all of them by default, none at 0)."""
        count = self.count if images is None else images
        with case.patch():
            return run_parity(
                case.bundle,
                batches=self._data(case, count) if count else None,
                data=f"held-out {self.task.title}" if count else None,
                backends=["onnxruntime"],
                threads=self.threads,
            )

    def _data(self, case: Case, count: int) -> Iterator[Batch]:
        file = self.folder / f"{case.bundle.name}.npz"
        labels = self.labels if case.labels is None else case.labels
        np.savez(file, images=self.images[:count], labels=labels[:count])
        manifest = read_manifest(case.bundle)
        dataset = open_dataset(file, preprocessing=manifest.preprocessing, num_classes=len(manifest.labels))
        return iter(dataset.batches(BATCH))


def logits(model: onnx.ModelProto, inputs: NDArray[Any]) -> Logits:
    """Return the graph's logits, float32 [N, classes], on ONNX Runtime's CPU provider."""
    session = CpuSession(serialize(model))
    parts = [session.run(inputs[start : start + BATCH])[0] for start in range(0, len(inputs), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def _exported(model: onnx.ModelProto) -> ExportedGraph:
    return ExportedGraph(model, {node.name: node.name for node in model.graph.node}, "dynamo")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
