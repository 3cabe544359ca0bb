"""Triton's python backend: from logits to labels, as the runtime does it.

Copied beside the manifest of the bundle that it serves; needs resnet_export.runtime in the server's Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from resnet_export.runtime import ResnetExportError, read_manifest
from resnet_export.runtime.prediction import best


class TritonPythonModel:
    """`logits` FP32 [n, classes] → `label` BYTES, `probability` FP32, `index` INT64, all [n, top], best first."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the labels."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._top = int(parameters["top"]["string_value"])
        self._manifest = read_manifest(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: logits that are not finite never cost the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = triton.get_input_tensor_by_name(request, "logits").as_numpy()
        try:
            labels, activation = self._manifest.labels, self._manifest.model.activation
            found = [best(row, labels, self._top, activation) for row in logits]
        except ResnetExportError as error:
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        texts = np.array([[one.label.encode() for one in row] for row in found], np.object_)
        probabilities = np.array([[one.probability for one in row] for row in found], np.float32)
        indices = np.array([[one.index for one in row] for row in found], np.int64)
        tensors = {"label": texts, "probability": probabilities, "index": indices}
        return triton.InferenceResponse(
            output_tensors=[triton.Tensor(name, value) for name, value in tensors.items()]
        )
