"""What the eager network computes where a graph has a tensor: found by its values, whatever its modules are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.parity.measure.metrics import relative_error

if TYPE_CHECKING:
    from torch import nn

__all__ = ["eager_tensors"]

_BATCH = 4


def eager_tensors(
    network: nn.Module,
    images: NDArray[np.float32],
    wanted: Mapping[str, NDArray[np.float32]],
    limit: float,
) -> dict[str, NDArray[np.float32]]:
    """Return, for each of `wanted`, the eager network's own tensor of that shape that comes nearest to it.

    Every operator that PyTorch dispatches is looked at, so that it does not matter whether a module, a function or a
    method computes the tensor. A name is left out where nothing comes nearer than the relative error `limit`: the
    graph then has a tensor that the eager network never makes, as between two operators that were fused.

    Args:
        network: in evaluation mode.
        images: normalized, float32 [M, C, H, W].
        wanted: name → what the graph computes, float32 [K, …] of the first K ≤ M images.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
    for start in range(0, max(map(len, wanted.values())), _BATCH):
        batch = images[start : start + _BATCH]
        there = {
            name: values[start : start + len(batch)] for name, values in wanted.items() if start < len(values)
        }
        for name, values in _nearest(network, batch, there).items():
            parts[name].append(values)
    found = {name: np.concatenate(values) for name, values in parts.items() if values}
    return {
        name: values
        for name, values in found.items()
        if values.shape == wanted[name].shape
        and (error := relative_error(wanted[name], values)) is not None
        and error <= limit
    }


def _nearest(
    network: nn.Module, images: NDArray[np.float32], wanted: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    targets = {name: torch.from_numpy(values) for name, values in wanted.items()}
    best: dict[str, tuple[float, torch.Tensor]] = {}

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, tuple | list) else (found,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                    look_at(tensor)
            return found

    def look_at(tensor: torch.Tensor) -> None:
        for name, target in targets.items():
            if tensor.shape[1:] != target.shape[1:] or len(tensor) != len(images):
                continue
            distance = float((tensor[: len(target)] - target).norm())
            if name not in best or distance < best[name][0]:
                best[name] = distance, tensor[: len(target)].clone()  # what is written in place changes later

    batch = torch.from_numpy(np.ascontiguousarray(images)).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call, unused-ignore]
        network(batch)
    return {name: tensor.contiguous().numpy() for name, (_, tensor) in best.items()}
