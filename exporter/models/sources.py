"""Networks that are not in the zoo: of timm and torchvision, of a factory of one's own, or an exported program."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn

from resnet_export.exporter.models.checkpoint import read_weights, weights_info
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.hub import HubFolder
from resnet_export.exporter.models.libraries import import_library
from resnet_export.exporter.models.metadata import named_values
from resnet_export.exporter.models.module import load_module
from resnet_export.exporter.models.normalizations import initialize_normalizations
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.preprocessing import NOTHING, usual_preprocessing
from resnet_export.exporter.models.stated import (
    Stated,
    merged,
    stated_by,
    stated_by_timm,
    stated_by_torchvision,
)
from resnet_export.exporter.models.weight_source import held_still, sha256_of
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import WeightsInfo
from resnet_export.runtime.errors import CheckpointError, RequestError
from resnet_export.runtime.preprocess import normalize

__all__ = ["Resolved", "load_other", "resolve"]

_LIBRARIES = ("timm", "torchvision")


class _Program(nn.Module):
    """An exported program, which refuses to change a mode that it does not have."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Program:
        self.training = mode
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)


@dataclass(frozen=True, eq=False)
class Resolved:
    """A network, and what its source says beside it.

    Attributes:
        module: the network.
        stated: what is known of its images.
        values: what stands beside its weights, by place.
        weights: where the weights are from; None where the module brought them, or has none.
        notices: sentences on how the weights were read.
    """

    module: nn.Module
    stated: Stated = NOTHING
    values: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsInfo | None = None
    notices: tuple[str, ...] = ()


def load_other(spec: ModelSpec, folder: HubFolder | None = None) -> Classifier:
    """Return the classifier of a network that is not in the zoo. Raises what `resolve` and `load_module` do.

    A library's network without weights is untrained: it has the library's own initialization, from the seed, but for
    its batch normalizations (`initialize_normalizations`).
    """
    found = resolve(spec, folder)
    net = load_module(replace(spec, module=found.module), found.stated, found.values)
    net = replace(net, notices=(*found.notices, *net.notices))
    if spec.arch is None:
        return net
    info = msgspec.structs.replace(net.info, arch=spec.arch)
    if found.weights is not None:
        return replace(net, info=msgspec.structs.replace(info, weights=found.weights))
    steps = net.preprocessing
    # Not as requested: whatever the mean and standard deviation, a seed means the same network.
    images = normalize(photographs(steps.size, steps.channels), usual_preprocessing(steps.channels))
    initialize_normalizations(cast(nn.Module, net.module), torch.from_numpy(images))
    return replace(
        net,
        info=msgspec.structs.replace(
            info, weights=WeightsInfo(source="untrained", name="untrained", seed=spec.seed)
        ),
        notices=(
            f"no weights were given: {spec.arch} is untrained (seed {spec.seed}), its predictions mean nothing; "
            "give --weights with a checkpoint",
            *net.notices,
        ),
    )


def resolve(spec: ModelSpec, folder: HubFolder | None = None) -> Resolved:
    """Return the network that `module`, `arch` ("timm:NAME", "torchvision:NAME") or `model` of `spec` asks for.

    `model` is a factory, "package.module:function", called with the keyword arguments of `model_arg` ("key=value"; a
    value is a Python literal, or text), or a program of torch.export, "net.pt2". A factory is code, and runs with
    all the rights of this process. `weights` of a library's network are a checkpoint with its own names, which may
    stand in a `folder` of the hub's form.

    Raises RequestError when there is no such network, factory or program, or it does not make an nn.Module;
    CheckpointError when the weights do not fit; DependencyError when the library is not installed.
    """
    if spec.model is not None:
        return _program(Path(spec.model), spec) if spec.model.endswith(".pt2") else Resolved(_factory(spec))
    if spec.arch is not None and ":" in spec.arch:
        return _library(spec, folder)
    return Resolved(spec.module)


def _library(spec: ModelSpec, folder: HubFolder | None) -> Resolved:
    library, _, name = str(spec.arch).partition(":")
    if library not in _LIBRARIES:
        raise RequestError(f"there is no library {library!r}; give timm:NAME or torchvision:NAME")
    package = import_library(library)
    known = package.list_models() if library == "timm" else package.models.list_models(module=package.models)
    if name.partition(".")[0] not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; the nearest are {', '.join(close)}" if close else ""
        raise RequestError(f"{library} has no classifier {name!r}{hint}")
    options: dict[str, Any] = {} if spec.num_classes is None else {"num_classes": spec.num_classes}
    if library == "timm" and spec.input_channels is not None:
        options["in_chans"] = spec.input_channels
    tensors: Mapping[str, Any] | None = None
    values: Mapping[str, Any] = {}
    weights: WeightsInfo | None = None
    notices: tuple[str, ...] = ()
    if spec.weights is not None:
        path = Path(spec.weights)
        if not path.exists():
            raise CheckpointError(
                f"there is no checkpoint {spec.weights}; give a file, or a repository of the hub, which has timm's "
                f"own weights: --weights hf:timm/{name}"
            )
        with held_still(path):
            weights = weights_info(path, sha256_of(path), folder)
            tensors, beside, notices, _ = read_weights(path, spec)
        values = {**(folder.values if folder is not None else {}), **beside}
        head = [tensor for key, tensor in tensors.items() if key.endswith("weight") and tensor.ndim == 2]
        if head and spec.num_classes is None:
            options["num_classes"] = len(head[-1])
        arguments = next(named_values(values, ("model_args",)), None)
        if folder is not None and isinstance(arguments, Mapping):
            options |= {str(key): value for key, value in arguments.items()}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(spec.seed)
        try:
            make = package.create_model if library == "timm" else package.models.get_model
            module = make(name.partition(".")[0], **options)
        except Exception as error:
            raise RequestError(
                f"{library} cannot build {name!r} ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            ) from error
    if tensors is not None:
        _load(module, tensors, spec)
    usual = _usual(package, library, name)
    stated = usual if weights is None else merged(stated_by(values), usual)
    return Resolved(module, stated, values, weights, notices)


def _usual(package: Any, library: str, name: str) -> Stated:
    """Return what the library's own weights of a network were evaluated with, where it has any."""
    plain = name.partition(".")[0]
    if library == "timm":
        config = package.get_pretrained_cfg(name, allow_unregistered=True)
        return (
            NOTHING if config is None else stated_by_timm(config.to_dict(), f"timm's configuration of {name}")
        )
    weights = package.models.get_model_weights(plain).DEFAULT
    return stated_by_torchvision(weights.transforms(), f"torchvision's {weights}")


def _load(module: Any, tensors: Mapping[str, Any], spec: ModelSpec) -> None:
    """Load tensors whose names may have a prefix before the module's own."""
    wanted = module.state_dict()
    prefixes = {key[: -len(name)] for name in list(wanted)[:1] for key in tensors if key.endswith(name)}
    best = max(
        (
            {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
            for prefix in prefixes
        ),
        key=len,
        default={},
    )
    missing = [name for name in wanted if name not in best and not name.endswith("num_batches_tracked")]
    shapes = [name for name, tensor in best.items() if tensor.shape != wanted[name].shape]
    if missing or shapes:
        some = ", ".join([*missing, *shapes][:4])
        raise CheckpointError(
            f"{spec.weights} does not fit {spec.arch}: {len(missing)} missing, {len(shapes)} mis-shaped ({some}); give "
            "a checkpoint of that network"
        )
    module.load_state_dict(best, strict=False)


def _program(path: Path, spec: ModelSpec) -> Resolved:
    if not path.is_file():
        raise RequestError(f"there is no exported program {path}; give a .pt2 file of torch.export.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:
        raise RequestError(
            f"{path} is not a program of torch.export.save ({type(error).__name__}); save it again with this version "
            "of torch"
        ) from error
    inputs = set(program.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.name in inputs and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        found = ", ".join(str(list(shape)) for shape in shapes) or "none"
        raise RequestError(
            f"{path} has the inputs {found}, expected one of images [N, C, H, W]; export the classifier alone"
        )
    batch, _, *size = shapes[0]
    if isinstance(batch, int):
        raise RequestError(
            f"{path} has a fixed batch of {batch}, expected a dynamic one; export it again with "
            "dynamic_shapes=({0: torch.export.Dim('N', min=1)},)"
        )
    module = _Program(program.module())
    if not all(isinstance(side, int) for side in size):
        return Resolved(module)
    if spec.image_size not in (None, tuple(size)) and (spec.image_size, spec.image_size) != tuple(size):
        raise RequestError(
            f"{path} takes images of {size[0]} × {size[1]}, but another size was asked for; leave the image size out"
        )
    return Resolved(module, Stated(f"the program {path.name}", crop=(size[0], size[1])))


def _factory(spec: ModelSpec) -> nn.Module:
    name, _, function = str(spec.model).partition(":")
    if not function:
        raise RequestError(
            f"the model {spec.model!r} is neither MODULE:FACTORY nor a .pt2 or .onnx file; give one of them"
        )
    options = dict(map(_argument, spec.model_arg))
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise RequestError(
            f"the module {name!r} of the factory cannot be imported ({_reason(error)}); give a name that Python finds "
            "from the current folder"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    for part in function.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise RequestError(f"{name} has no function {function!r}; give MODULE:FACTORY")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            module = found(**options)
    except (Exception, SystemExit) as error:
        raise RequestError(
            f"the factory {spec.model} failed ({_reason(error)}); correct it, or give its arguments with --model-arg"
        ) from error
    if not isinstance(module, nn.Module):
        raise RequestError(
            f"the factory {spec.model} returned a {type(module).__name__}, expected an nn.Module"
        )
    return module


def _reason(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _argument(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise RequestError(f"the model argument {text!r} is not key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
