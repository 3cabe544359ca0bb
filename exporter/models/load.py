"""From a ModelSpec to the network that everything later is compared with: one row for each kind of source."""

from __future__ import annotations

import os
from dataclasses import replace

from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.hub import find_hub_folder
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.progress import Progress, silent

__all__ = ["load_classifier"]


def load_classifier(spec: ModelSpec, progress: Progress = silent) -> Classifier:
    """Return the network that `spec` describes, with its weights loaded or, without weights, seeded and untrained.

    torch is imported for every source but an ONNX file. A folder or a repository in the hub's form stands for its file
    of weights, its configuration for what stands beside them.

    Raises RequestError when the request is inconsistent, there is no such network, or its labels do not fit;
    CheckpointError when the weights cannot be used; DependencyError when a package is missing.
    """
    if spec.onnx_file is not None:
        from resnet_export.exporter.models.onnx_file import load_onnx_file

        return load_onnx_file(spec)
    folder = find_hub_folder(spec.weights, progress)
    if folder is not None:
        spec = replace(spec, weights=os.fspath(folder.weights))
        if spec.arch is None and spec.depth is None:
            spec = replace(spec, arch=folder.arch)
    if spec.module is not None or spec.model is not None or (spec.arch is not None and ":" in spec.arch):
        from resnet_export.exporter.models.sources import load_other

        return load_other(spec, folder)
    from resnet_export.exporter.models.zoo_network import load_zoo_network

    return load_zoo_network(spec, progress, folder)
