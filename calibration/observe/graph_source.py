"""The fp32 graph that ranges are measured on: out of a bundle, or a file that was exported before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from resnet_export.runtime.bundle.manifest import Preprocessing, read_artifact, read_manifest
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import Precision

__all__ = ["Source", "read_source"]

_PREPROCESSING = "preprocessing"


@dataclass(frozen=True)
class Source:
    """A float32 graph and what turns an image into its input."""

    model: onnx.ModelProto
    preprocessing: Preprocessing


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read the fp32 artifact of a bundle (a folder), or an ONNX file that carries its preprocessing.

    Raises RequestError for a file that is no fp32 graph of resnet-export's, BundleError or IntegrityError for
    a bundle that cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        manifest = read_manifest(place)
        artifact = next(
            one for one in manifest.artifacts if one.kind == "onnx" and one.precision is Precision.FP32
        )
        return Source(onnx.load_from_string(read_artifact(place, artifact)), manifest.preprocessing)
    try:
        model = onnx.load_from_string(place.read_bytes())
    except OSError as error:
        raise RequestError(
            f"{place} cannot be read ({error.strerror}); give a bundle or an ONNX file"
        ) from error
    except DecodeError as error:
        raise RequestError(f"{place} is not an ONNX file ({error}); give a bundle or an ONNX file") from error
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if facts.get("precision") != Precision.FP32 or _PREPROCESSING not in facts:
        found = facts.get("precision", "no metadata of resnet-export")
        raise RequestError(f"{place} has {found}, expected the fp32 graph of a bundle; give its model.onnx")
    try:
        return Source(model, msgspec.json.decode(facts[_PREPROCESSING], type=Preprocessing))
    except msgspec.DecodeError as error:
        raise RequestError(
            f"the preprocessing in {place} is not understood ({error}); export it again"
        ) from error
