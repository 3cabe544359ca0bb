"""Published weights: from PyTorch's cache, or downloaded into it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import torch

from resnet_export.exporter.models.zoo import PublishedWeights
from resnet_export.runtime.errors import CheckpointError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["fetch"]

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte; torch.hub's own download waits without limit


def fetch(published: PublishedWeights, progress: Progress = silent) -> Path:
    """Return the file of `published` in the cache of torch.hub (`$TORCH_HOME/hub/checkpoints`).

    A file that is not there is downloaded, checked against the hash in its name, and only then put in place.
    Raises CheckpointError with the address, the cache path and the reason when it cannot be had.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if path.exists():
        return path
    try:
        _download(published, path, progress)
    except (OSError, HTTPException, ValueError) as error:
        raise CheckpointError(
            f"{published.file} is not in the cache and downloading it failed ({_reason(error)}); fetch "
            f"{published.url} on another machine and put it at {path}, or give a checkpoint file"
        ) from error
    return path


def _download(published: PublishedWeights, path: Path, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        with urlopen(published.url, timeout=_TIMEOUT) as response, part.open("wb") as file:
            length = response.headers.get("Content-Length")
            chunks = iter(lambda: response.read(_CHUNK), b"")
            total = math.ceil(int(length) / _CHUNK) if length else None
            for chunk in progress(chunks, f"downloading {path.name} (MiB)", total):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(published.sha256_prefix):
            raise OSError(f"what arrived has sha256 {digest.hexdigest()[:8]}…, it was cut short or altered")
        part.replace(path)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
