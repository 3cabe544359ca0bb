"""The configuration of each model, through the protobuf definitions that tritonclient brings; never as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from resnet_export.exporter.triton.backends import ServedNetwork
from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime.bundle.manifest import Manifest, TensorSpec
from resnet_export.runtime.errors import DependencyError
from resnet_export.runtime.precision import Precision

__all__ = [
    "BUNDLE_SHA256",
    "GOLDEN_INPUT",
    "LABELS_FILE",
    "ensemble",
    "labeling",
    "network",
    "preprocessing",
    "render",
    "require_tritonclient",
]

BUNDLE_SHA256 = "bundle_sha256"
"""The parameter that names the served bundle by the SHA-256 of its manifest; `bundle_sha256.N` that of version N."""

LABELS_FILE = "labels.txt"
GOLDEN_INPUT = "golden_input"
"""The file, in a model's `warmup` folder, with one golden image as the network takes it."""


def require_tritonclient() -> Any:
    """Return tritonclient's module of configurations. Raises DependencyError."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise DependencyError(
            f"tritonclient is not installed ({error.name} is missing); run: pip install 'resnet-export[triton]'"
        ) from error
    return model_config_pb2


def render(config: Any) -> bytes:
    """Return a configuration as the text of config.pbtxt."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text.encode()


def network(served: ServedNetwork, manifest: Manifest, spec: TritonSpec, facts: Mapping[str, str]) -> Any:
    """Return the configuration of a network on its backend: `input` → the bundle's outputs.

    The python backend has a further output, `ran`: the session's choice as JSON, for each image.
    """
    pb = require_tritonclient()
    config = _base(served.name, served.batch.max, facts)
    config.backend = served.backend.name
    config.platform = served.backend.platform
    config.default_model_filename = served.backend.file
    _tensor(config.input.add(), manifest.input)
    for output in manifest.outputs:
        _tensor(config.output.add(), output)
    config.output[0].label_filename = LABELS_FILE
    _batching(config, served.batch.opt, served.batch.max, spec)
    _instances(config, served.device, spec.instances)
    _warmup(config, manifest.input, sorted({1, served.batch.opt}))
    for artifact in served.artifacts[:1]:
        config.parameters["artifact"].string_value = artifact.name
    if served.backend.name == "python":
        ran = config.output.add()
        ran.name, ran.data_type = "ran", pb.TYPE_STRING
        ran.dims.append(1)
    elif served.backend.name == "tensorrt":
        for artifact in served.artifacts:
            assert_engine = artifact.engine
            for capability in () if assert_engine is None else assert_engine.compute_capabilities:
                config.cc_model_filenames[capability] = plan_file(artifact.name)
        config.default_model_filename = plan_file(served.artifacts[0].name)
    elif served.backend.name == "onnxruntime" and served.device != "cpu":
        _tensorrt_accelerator(config, served.artifacts[0].precision)
    return config


def plan_file(artifact: str) -> str:
    """Return what the plan of an engine is called in a version's folder."""
    return f"{artifact}.plan"


def preprocessing(name: str, manifest: Manifest, spec: TritonSpec, facts: Mapping[str, str]) -> Any:
    """Return the configuration of the model that decodes: `image` (the bytes of a file) → `input`."""
    config = _python(name, manifest, spec, facts)
    _bytes(config.input.add(), "image")
    _tensor(config.output.add(), manifest.input)
    return config


def labeling(name: str, manifest: Manifest, spec: TritonSpec, facts: Mapping[str, str]) -> Any:
    """Return the configuration of the model that names classes: `logits` → `label`, `probability`, `index`."""
    config = _python(name, manifest, spec, facts)
    _tensor(config.input.add(), manifest.outputs[0])
    _predictions(config, manifest, spec)
    return config


def ensemble(
    name: str,
    steps: tuple[str, str, str],
    served: ServedNetwork,
    manifest: Manifest,
    spec: TritonSpec,
    facts: Mapping[str, str],
) -> Any:
    """Return the configuration of the ensemble: `image` → `label`, `probability` and `index`.

    `steps` are the models that decode, compute and name. What is between them is no output: a server that is asked for
    the other outputs alone would not make it, and not go on.
    """
    config = _base(name, served.batch.max, facts)
    config.platform = "ensemble"
    _bytes(config.input.add(), "image")
    _predictions(config, manifest, spec)
    maps: Iterable[tuple[str, dict[str, str], dict[str, str]]] = zip(
        steps,
        ({"image": "image"}, {"input": "crop"}, {"logits": "logits"}),
        ({"input": "crop"}, {"logits": "logits"}, {key: key for key in ("label", "probability", "index")}),
        strict=True,
    )
    for model, inputs, outputs in maps:
        step = config.ensemble_scheduling.step.add()
        step.model_name, step.model_version = model, -1
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    return config


def _base(name: str, max_batch: int, facts: Mapping[str, str]) -> Any:
    config = require_tritonclient().ModelConfig(name=name, max_batch_size=max_batch)
    config.version_policy.latest.num_versions = 1
    for key, value in facts.items():
        config.parameters[key].string_value = value
    return config


def _python(name: str, manifest: Manifest, spec: TritonSpec, facts: Mapping[str, str]) -> Any:
    config = _base(name, manifest.batch.max, facts)
    config.backend, config.default_model_filename = "python", "model.py"
    config.parameters["top"].string_value = str(spec.top)
    _batching(config, manifest.batch.opt, manifest.batch.max, spec, delay=0)
    _instances(config, "cpu", spec.instances)
    return config


def _tensor(entry: Any, tensor: TensorSpec) -> None:
    pb = require_tritonclient()
    entry.name = tensor.name
    entry.data_type = {"float32": pb.TYPE_FP32, "uint8": pb.TYPE_UINT8}[tensor.dtype]
    entry.dims.extend(tensor.shape[1:])


def _bytes(entry: Any, name: str) -> None:
    entry.name, entry.data_type = name, require_tritonclient().TYPE_STRING
    entry.dims.append(1)


def _predictions(config: Any, manifest: Manifest, spec: TritonSpec) -> None:
    pb = require_tritonclient()
    count = min(spec.top, len(manifest.labels))
    for name, kind in (("label", pb.TYPE_STRING), ("probability", pb.TYPE_FP32), ("index", pb.TYPE_INT64)):
        output = config.output.add()
        output.name, output.data_type = name, kind
        output.dims.append(count)


def _batching(config: Any, best: int, most: int, spec: TritonSpec, delay: int | None = None) -> None:
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(sorted({best, most}))
    batching.max_queue_delay_microseconds = spec.max_queue_delay if delay is None else delay


def _instances(config: Any, device: str, count: int) -> None:
    pb = require_tritonclient()
    group = config.instance_group.add()
    kinds = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
    group.kind = getattr(pb.ModelInstanceGroup, kinds[device])
    group.count = count


def _warmup(config: Any, tensor: TensorSpec, sizes: Iterable[int]) -> None:
    pb = require_tritonclient()
    for size in sizes:
        sample = config.model_warmup.add()
        sample.name, sample.batch_size = f"golden image, batch of {size}", size
        value = sample.inputs[tensor.name]
        value.data_type = {"float32": pb.TYPE_FP32, "uint8": pb.TYPE_UINT8}[tensor.dtype]
        value.dims.extend(tensor.shape[1:])
        value.input_data_file = GOLDEN_INPUT


def _tensorrt_accelerator(config: Any, precision: Precision) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add()
    accelerator.name = "tensorrt"
    accelerator.parameters["precision_mode"] = {
        Precision.FP32: "FP32",
        Precision.FP16: "FP16",
        Precision.INT8: "INT8",
    }[precision]
