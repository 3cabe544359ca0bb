"""The tiny bundle with engines in it, whose bytes no TensorRT would load: what a model repository is written from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    EngineInfo,
    encode_manifest,
    read_manifest,
)
from tests import parity_bundle
from tests.tiny_bundle import ALL


def write(folder: Path, *, variant: str = "tensorrt", least: int = 1) -> Path:
    """Write a bundle in every precision with fp16 engines for two GPUs."""
    parity_bundle.write(folder, ALL)
    manifest = read_manifest(folder)
    source = manifest.artifact("fp16")
    engines = []
    for capability, best in (("8.6", 4), ("8.9", 8)):
        name = f"fp16.sm{capability.replace('.', '')}"
        data = f"an engine for {capability}".encode()
        (folder / f"{name}.engine").write_bytes(data)
        engines.append(
            Artifact(
                name=name,
                file=f"{name}.engine",
                kind="engine",
                precision=source.precision,
                target="tensorrt",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                engine=EngineInfo(
                    variant=variant,
                    version="10.3.0",
                    compute_capabilities=(capability,),
                    profiles=(BatchRange(min=least, opt=best, max=2 * best),),
                    source=source.name,
                    source_sha256=source.sha256,
                ),
            )
        )
    changed = msgspec.structs.replace(manifest, artifacts=(*manifest.artifacts, *engines))
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return folder
