"""torchvision and timm, imported on use: beside a CPU build of torch their wheels need help."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_export.runtime.errors import DependencyError

__all__ = ["import_library"]

_DEFINED: list[Any] = []  # a torch.library.Library unregisters its operators when it is collected


def import_library(name: str) -> ModuleType:
    """Import "torchvision" or "timm". Raises DependencyError when it is not installed or does not load.

    torchvision's wheel for CUDA looks up operators at import that its own library cannot register beside a CPU build
    of torch. They are defined then by name alone: classifiers and transforms work, detection operators do not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"{error.name} is not installed, and the network was asked for from {name}; "
                "run: pip install 'resnet-export[zoo]'"
            ) from error
        except RuntimeError as error:
            if "torchvision::" not in str(error) or _DEFINED:
                raise DependencyError(f"{name} cannot be imported ({str(error).splitlines()[0]})") from error
            for module in [
                module for module in sys.modules if module.partition(".")[0] in ("torchvision", name)
            ]:
                del sys.modules[module]
            _define_operators()
            return import_library(name)


def _define_operators() -> None:
    import torch

    spec = importlib.util.find_spec("torchvision")
    source = (Path(str(spec and spec.origin)).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    names = set(re.findall(r"torchvision::(\w+)", source)) | set(
        re.findall(r'register_meta\("(\w+)"\)', source)
    )
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call, unused-ignore]
    for name in sorted(names):
        with contextlib.suppress(RuntimeError):  # its library did register this one
            library.define(f"{name}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call, unused-ignore]
    _DEFINED.append(library)
