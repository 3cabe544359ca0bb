"""Triton's python backend: a bundle's network, on whatever engine the server's host has for it.

Copied beside the bundle that it serves; needs resnet_export.runtime and one engine in the server's Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import triton_python_backend_utils as triton

from resnet_export.runtime import ResnetExportError, open_session


class TritonPythonModel:
    """`input` → the bundle's outputs, FP32 [n, …] each, and `ran` BYTES [n, 1], the session's choice as JSON."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle. What is raised here stands in the server's log, and the model is not loaded."""
        parameters = json.loads(args["model_config"])["parameters"]
        artifact = parameters.get("artifact", {}).get("string_value")
        self._session = open_session(
            Path(args["model_repository"], args["model_version"], "bundle"), artifact=artifact
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch, which is what the dynamic batcher collected them for."""
        inputs = [triton.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        try:
            outputs = self._session.run_outputs(np.concatenate(inputs))
        except ResnetExportError as error:
            failed = triton.TritonError(str(error))
            return [triton.InferenceResponse(output_tensors=[], error=failed) for _ in requests]
        ran = msgspec.json.encode(self._session.choice)
        ends = np.cumsum([len(batch) for batch in inputs])[:-1]
        return [
            triton.InferenceResponse(
                output_tensors=[
                    *(
                        triton.Tensor(name, np.ascontiguousarray(part))
                        for name, part in zip(outputs, parts, strict=True)
                    ),
                    triton.Tensor("ran", np.full((len(batch), 1), ran, np.object_)),
                ]
            )
            for batch, *parts in zip(inputs, *(np.split(one, ends) for one in outputs.values()), strict=True)
        ]

    def finalize(self) -> None:
        """Free the engine."""
        self._session.close()
