"""Read and write `manifest.json`, and the files that it names, without trusting them.

The structs are in `schema.py` and can be imported from here; what no schema can say is in `consistency.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from resnet_export.runtime.bundle.consistency import contradictions
from resnet_export.runtime.bundle.files import read_confined, read_regular
from resnet_export.runtime.bundle.graph_check import check_graph
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.bundle.schema import (
    LOGITS,
    SCHEMA_VERSION,
    Artifact,
    BatchRange,
    EngineInfo,
    ExcludedLayer,
    FileInfo,
    FilePath,
    GoldenInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocessing,
    Provenance,
    Sha256,
    Struct,
    TensorSpec,
    Verdict,
    WeightsInfo,
)
from resnet_export.runtime.errors import BundleError, IntegrityError, SchemaError

__all__ = [
    "LOGITS",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "REPORT_NAME",
    "SCHEMA_VERSION",
    "TABLE_NAME",
    "Artifact",
    "BatchRange",
    "EngineInfo",
    "ExcludedLayer",
    "FileInfo",
    "GoldenInfo",
    "GraphInfo",
    "Manifest",
    "ModelInfo",
    "Preprocessing",
    "Provenance",
    "Sha256",
    "Struct",
    "TensorSpec",
    "Verdict",
    "WeightsInfo",
    "check_file_path",
    "decode_manifest",
    "encode_manifest",
    "json_schema",
    "read_artifact",
    "read_file",
    "read_manifest",
    "read_stable",
    "verify_bundle",
]

MANIFEST_NAME: Final = "manifest.json"
REPORT_NAME: Final = "report.json"
TABLE_NAME: Final = "calibration.json"
# The labels of the largest public label sets (about 21,000 classes) take 1 MB.
MAX_MANIFEST_BYTES: Final = 16 * 2**20

# How often a reader tries again while somebody else replaces the bundle under its hands.
_ATTEMPTS: Final = 8

T = TypeVar("T")


class _SchemaProbe(msgspec.Struct):
    """Reads the version alone, so that a newer manifest is refused by its version and not by its keys."""

    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: indented JSON with a final newline.

    Raises SchemaError for everything that `decode_manifest` would refuse, so what is written can be read.
    """
    try:
        for where, value in _floats("$", msgspec.to_builtins(manifest)):
            if not math.isfinite(value):  # JSON has no such number, and msgspec would write null
                raise SchemaError(f"{where} of the manifest is {value}, expected a finite number")
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"the manifest cannot be written as JSON: {error}") from error
    decode_manifest(data)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Parse and validate `manifest.json`. Raises SchemaError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise SchemaError(
            f"{MANIFEST_NAME} has {len(data):,} bytes, expected at most {MAX_MANIFEST_BYTES:,}; "
            "export the bundle again"
        )
    try:
        version = msgspec.json.decode(data, type=_SchemaProbe).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"{MANIFEST_NAME} is not a manifest ({error}); export the bundle again") from error
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{MANIFEST_NAME} has schema {version}, this version reads schema {SCHEMA_VERSION}; "
            f"{'upgrade resnet-export' if version > SCHEMA_VERSION else 'export the bundle again'}"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(
            f"{MANIFEST_NAME} breaks schema {SCHEMA_VERSION} ({error}); export the bundle again"
        ) from error
    for contradiction in contradictions(manifest):
        raise SchemaError(f"{MANIFEST_NAME} contradicts itself ({contradiction}); export the bundle again")
    return manifest


def check_file_path(file: str) -> None:
    """Raise SchemaError unless `file` can name a file of a bundle."""
    try:
        msgspec.convert(file, FilePath)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{error}; expected letters, digits and ._+- between forward slashes") from error


def read_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of the bundle at `bundle` (a folder). Raises BundleError or SchemaError."""
    for attempt in range(_ATTEMPTS):
        try:
            return decode_manifest(read_regular(locate(bundle) / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES))
        except FileNotFoundError as error:
            # Between the two steps of a replacement (recovery.py) the folder is gone for an instant.
            if attempt + 1 == _ATTEMPTS:
                raise _no_bundle(bundle, error.strerror) from error
        except OSError as error:
            raise _no_bundle(bundle, error.strerror) from error
        except ValueError as error:
            raise _no_bundle(bundle, str(error)) from error
    raise AssertionError("unreachable")


def read_file(bundle: str | os.PathLike[str], file: str, sha256: str, size: int | None = None) -> bytes:
    """Return the bytes of a bundle's file, checked before anyone parses them.

    The bytes that were hashed are the bytes returned, so a file that changes in between cannot slip through.
    `size`, when given, is compared before anything is read. Raises IntegrityError when `file` leaves the
    bundle (through "..", an absolute path or a link), is no regular file, cannot be read, or differs in size
    or hash.
    """
    return read_confined(locate(bundle), file, sha256, size)


def read_artifact(
    bundle: str | os.PathLike[str],
    artifact: Artifact | GoldenInfo | FileInfo,
    image: Sequence[int | str] = (),
) -> bytes:
    """Return the bytes of `artifact`, of the size and hash that the manifest says.

    An ONNX artifact has to be a plain, self-contained graph besides (`graph_check`); `image` is the manifest's shape of
    the input. Raises IntegrityError.
    """
    data = read_file(bundle, artifact.file, artifact.sha256, artifact.bytes)
    if isinstance(artifact, Artifact) and artifact.kind == "onnx":
        check_graph(data, artifact.file, image)
    return data


def read_stable(bundle: str | os.PathLike[str], load: Callable[[Manifest], T]) -> T:
    """Return `load(manifest)`, where all that `load` reads belongs to the export that wrote `manifest`.

    An export may replace the bundle while it is being read. Then a file of the old manifest is missing or has
    another hash; `load` is called again with the new manifest. Raises what `load` raises when nobody replaced
    the bundle: a damaged file stays an IntegrityError.
    """
    manifest = read_manifest(bundle)
    for _ in range(_ATTEMPTS):
        try:
            return load(manifest)
        except IntegrityError:
            current = read_manifest(bundle)
            if current == manifest:
                raise
            manifest = current
    return load(manifest)


def verify_bundle(bundle: str | os.PathLike[str]) -> Manifest:
    """Read every file of the bundle and return its manifest. Raises BundleError or one of its kinds."""

    def whole(manifest: Manifest) -> Manifest:
        files: tuple[Artifact | GoldenInfo | FileInfo, ...] = (
            *manifest.artifacts,
            manifest.golden,
            *manifest.files,
        )
        for file in files:
            read_artifact(bundle, file, manifest.input.shape)
        return manifest

    return read_stable(bundle, whole)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of `manifest.json`, generated from the structs.

    `docs/bundle.schema.json` holds it; what no schema can say is listed in `docs/bundle.md`.
    """
    from inspect import cleandoc  # not needed to read a bundle, and slow to import

    schema: dict[str, Any] = msgspec.json.schema(Manifest)
    for definition in schema["$defs"].values():
        if "description" in definition:
            definition["description"] = cleandoc(definition["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"resnet-export bundle manifest, schema {SCHEMA_VERSION}",
        **schema,
    }


def _floats(where: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _floats(f"{where}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _floats(f"{where}[{index}]", item)


def _no_bundle(bundle: str | os.PathLike[str], reason: str | None) -> BundleError:
    return BundleError(
        f"{os.fspath(bundle)} is not a bundle ({MANIFEST_NAME} cannot be read: {reason}); "
        "give the folder that resnet-export wrote"
    )
