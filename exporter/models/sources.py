"""Networks that are not in the zoo: of timm and torchvision, of a factory of one's own, or an exported program."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import nn

from resnet_export.exporter.models.batch_statistics import measure_batch_statistics
from resnet_export.exporter.models.checkpoint import read_weights
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.libraries import import_library
from resnet_export.exporter.models.module import load_module
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.preprocessing import usual_preprocessing
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import WeightsInfo
from resnet_export.runtime.errors import CheckpointError, RequestError
from resnet_export.runtime.preprocess import normalize

__all__ = ["load_other", "resolve_module"]

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


def load_other(spec: ModelSpec) -> Classifier:
    """Return the classifier of a network that is not in the zoo. Raises what `resolve_module` and `load_module` do.

    A library's network without weights is untrained: it has the library's own initialization, from the seed, and batch
    statistics of the bundled photographs.
    """
    net = load_module(resolve_module(spec))
    if spec.arch is None:
        return net
    info = msgspec.structs.replace(net.info, arch=spec.arch)
    if spec.weights is not None:
        return replace(net, info=info)
    steps = net.preprocessing
    # Not as requested: whatever the mean and standard deviation, a seed means the same network.
    images = normalize(photographs(steps.size, steps.channels), usual_preprocessing(steps.channels))
    measure_batch_statistics(cast(nn.Module, net.module), torch.from_numpy(images))
    return replace(
        net,
        info=msgspec.structs.replace(
            info, weights=WeightsInfo(source="untrained", name="untrained", seed=spec.seed)
        ),
        notices=(
            f"no weights were given: {spec.arch} is untrained (seed {spec.seed}), its predictions mean nothing",
            *net.notices,
        ),
    )


def resolve_module(spec: ModelSpec) -> ModelSpec:
    """Return `spec` with the module that `arch` ("timm:NAME", "torchvision:NAME") or `model` asks for.

    `model` is a factory, "package.module:function", called with the keyword arguments of `model_args` ("key=value"; a
    value is a Python literal, or text), or a program of torch.export, "net.pt2". A factory is code, and runs with
    all the rights of this process. `weights` of a library's network are a checkpoint with its own names.

    Raises RequestError when there is no such network, factory or program, or it does not make an nn.Module;
    CheckpointError when the weights do not fit; DependencyError when the library is not installed.
    """
    if spec.model is not None:
        module = _program(Path(spec.model)) if spec.model.endswith(".pt2") else _factory(spec)
    elif spec.arch is not None and ":" in spec.arch:
        module = _library(spec)
    else:
        return spec
    return replace(spec, module=module, depth=None, arch=None, weights=None, model=None, model_args=())


def _library(spec: ModelSpec) -> Any:
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
    tensors = None
    if spec.weights is not None:
        tensors, _, _, _ = read_weights(Path(spec.weights), spec)
        head = [tensor for key, tensor in tensors.items() if key.endswith("weight") and tensor.ndim == 2]
        if head and spec.num_classes is None:
            options["num_classes"] = len(head[-1])
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
    return module


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


def _program(path: Path) -> Any:
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
    return _Program(program.module())


def _factory(spec: ModelSpec) -> Any:
    name, _, function = str(spec.model).partition(":")
    if not function:
        raise RequestError(
            f"the model {spec.model!r} is neither MODULE:FACTORY nor a .pt2 file; give one of them"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(name)
    except Exception as error:
        raise RequestError(
            f"the module {name!r} of the factory cannot be imported ({type(error).__name__}: {error}); give a name "
            "that Python finds from the current folder"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    make = getattr(found, function, None)
    if not callable(make):
        raise RequestError(f"{name} has no function {function!r}; give MODULE:FACTORY")
    options = dict(map(_argument, spec.model_args))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            module = make(**options)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(f"the factory {spec.model} failed ({type(error).__name__}: {reason})") from error
    if not isinstance(module, torch.nn.Module):
        raise RequestError(
            f"the factory {spec.model} returned a {type(module).__name__}, expected an nn.Module"
        )
    return module


def _argument(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise RequestError(f"the model argument {text!r} is not key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
