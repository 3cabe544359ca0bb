"""Triton's python backend: the bytes of image files, decoded and cropped as the runtime does it.

Copied beside the manifest of the bundle that it serves; needs resnet_export.runtime and Pillow in the server's Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from resnet_export.runtime import ResnetExportError, read_manifest
from resnet_export.runtime.preprocess import load, to_input


class TritonPythonModel:
    """`image` BYTES [n, 1] → `input`, as the network takes it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read how the bundle wants its images."""
        self._preprocessing = read_manifest(
            Path(args["model_repository"], args["model_version"])
        ).preprocessing

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: an image that cannot be decoded never costs the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        files = triton.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        try:
            crops = [
                load(file, self._preprocessing, name=f"image {number}") for number, file in enumerate(files)
            ]
        except ResnetExportError as error:
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        inputs = to_input(np.stack(crops), self._preprocessing)
        return triton.InferenceResponse(output_tensors=[triton.Tensor("input", inputs)])
