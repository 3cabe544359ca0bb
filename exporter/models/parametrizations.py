"""Weights that a checkpoint stores in parts, put together where that is exact: pruning, weight norm, spectral norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["plain_weights"]


def plain_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with one plain weight for each stored in parts, and a notice of what was put together.

    - `torch.nn.utils.prune`: weight_orig · weight_mask.
    - `torch.nn.utils.weight_norm`, old and parametrized: g · v / ‖v‖ over the axes where g has one number.
    - `torch.nn.utils.spectral_norm`, old and parametrized: weight / (uᵀ W v).
    """
    result = dict(tensors)
    done: dict[str, int] = {}
    for key in tensors:
        for kind, suffix, parts, combine in _FORMS:
            stem = key.removesuffix(suffix)
            names = [f"{stem}{part}" for part in parts]
            if stem == key or not all(name in result for name in names):
                continue
            values = [result.pop(name) for name in names]
            plain = stem.replace("parametrizations.", "")
            result[plain] = combine(*(value.to(torch.float64) for value in values)).to(values[0].dtype)
            for name in [
                name for name in result if name.startswith(f"{stem}_") or name.startswith(f"{stem}.0._")
            ]:
                del result[name]
            done[kind] = done.get(kind, 0) + 1
            break
    notices = tuple(
        f"{count} tensors were put together from the parts that {kind} stores" for kind, count in done.items()
    )
    return result, notices


def _pruned(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    # g has the length 1 along the axes that its norm is taken over; of dim=None it is a scalar.
    axes = (
        tuple(range(v.ndim)) if g.ndim == 0 else tuple(axis for axis in range(v.ndim) if g.shape[axis] == 1)
    )
    norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()
    return g * v / norm


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    plain: Tensor = weight / torch.dot(u, weight.flatten(1) @ v)
    return plain


# What stores it so, the end of the first part's name, every part behind the parameter's name, how they combine.
_FORMS = (
    ("pruning", "_orig", ("_orig", "_mask"), _pruned),
    ("spectral normalization", "_orig", ("_orig", "_u", "_v"), _spectral),
    ("weight normalization", "_g", ("_g", "_v"), _weight_norm),
    ("weight normalization", ".original0", (".original0", ".original1"), _weight_norm),
    ("spectral normalization", ".original", (".original", ".0._u", ".0._v"), _spectral),
)
