"""Does an opened artifact take and return what the manifest says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.bundle.manifest import TensorSpec
from resnet_export.runtime.errors import BackendError


@dataclass(frozen=True)
class Tensor:
    """A tensor as an engine describes it. An axis of free size is None in `shape`.

    Optimizers merge tensors, and one that stands for several answers to all their names: `aliases`.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    aliases: tuple[str, ...] = ()


def check_signature(request: OpenRequest, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Raise BackendError unless the artifact has exactly the manifest's input and outputs, those in any order.

    An axis that the manifest leaves open ("N") has to be free; one that it fixes may be free.
    """
    for role, found, expected in (
        ("input", inputs, (request.input,)),
        ("output", outputs, request.outputs),
    ):
        if len(found) != len(expected) or not all(
            any(_agree(one, spec) for one in found) for spec in expected
        ):
            have = ", ".join(map(_describe, found)) or "nothing"
            raise BackendError(
                f"artifact {request.artifact.name!r} has as {role} {have}, the manifest says "
                f"{', '.join(map(_describe_spec, expected))}; export the bundle again"
            )


def _agree(found: Tensor, expected: TensorSpec) -> bool:
    return (
        expected.name in (found.name, *found.aliases)
        and found.dtype == expected.dtype
        and len(found.shape) == len(expected.shape)
        and all(
            have is None or (want != "N" and have == want)
            for have, want in zip(found.shape, expected.shape, strict=True)
        )
    )


def _describe(tensor: Tensor) -> str:
    shape = ", ".join("N" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name!r} {tensor.dtype} [{shape}]"


def _describe_spec(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.dtype} [{', '.join(map(str, spec.shape))}]"
