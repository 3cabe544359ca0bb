"""The tiny network's bundle, complete enough to be extended with engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from tests import tiny_bundle


def write(folder: Path) -> Path:
    """Write a bundle in every precision, with a golden file that exists."""
    tiny_bundle.write(folder, tiny_bundle.ALL)
    manifest = read_manifest(folder)
    golden = folder / manifest.golden.file
    np.savez(golden, images=tiny_bundle.images(1))
    data = golden.read_bytes()
    info = msgspec.structs.replace(manifest.golden, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, golden=info)))
    return folder
