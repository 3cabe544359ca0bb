"""What a file is that is no checkpoint of torch.save or safetensors, called by its name, and what to do with it."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

__all__ = ["name_kind"]

# First bytes, where they stand, and the end of a sentence that begins with the path.
_MAGIC = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the checkpoint itself; run 'git lfs pull'"),
    (0, b"\x1f\x8b", "is compressed with gzip; unpack it with gunzip and give the file inside"),
    (0, b"BZh", "is compressed with bzip2; unpack it with bunzip2 and give the file inside"),
    (0, b"\xfd7zXZ\x00", "is compressed with xz; unpack it with unxz and give the file inside"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd; unpack it with unzstd and give the file inside"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; extract it and give the checkpoint inside"),
    (0, b"Rar!", "is a RAR archive; extract it and give the checkpoint inside"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "is an HDF5 file, as Keras writes weights; convert it to a .pth or .safetensors file",
    ),
    (
        0,
        b"\x93NUMPY",
        "is a NumPy array (.npy); give a .pth, .pt or .safetensors file with all tensors by name",
    ),
    (
        0,
        b"GGUF",
        "is a GGUF file, which holds no classifier's weights; give a .pth, .pt or .safetensors file",
    ),
    (4, b"TFL3", "is a TensorFlow Lite model; give the PyTorch checkpoint that it was made from"),
    (0, b"vtrt", "is a TensorRT for RTX engine; give the PyTorch checkpoint that it was made from"),
    (0, b"ftrt", "is a TensorRT engine; give the PyTorch checkpoint that it was made from"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def name_kind(path: Path, head: bytes) -> str | None:
    """Return the end of a sentence that says what `path` is, or None for what may be a checkpoint.

    Args:
        path: a file that can be read.
        head: its first 512 bytes.
    """
    for at, magic, words in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return words
    if head[257:262] == b"ustar":
        return _tar(path)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:64].lstrip().lower().startswith(_PAGES):
        return "is a web page, as a failed download leaves it; download the checkpoint itself"
    if head[:1] == b"\x08" and path.suffix == ".onnx":
        return "is an ONNX model, not a checkpoint; give it with --model"
    return None


def _tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except (tarfile.TarError, OSError):
        return "is a damaged tar archive; copy or save it again"
    if {"pickle", "storages", "tensors"} <= set(names):
        return (
            "is in the tar format of PyTorch 0.1, which cannot be read without running code; load it once with "
            "torch.load(path, weights_only=False), if you trust it, and save its state dict again"
        )
    return f"is a tar archive; extract it and give the checkpoint inside ({_some(names)})"


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "is a TorchScript archive, expected a state dict; save model.state_dict() instead"
    if "archive_format" in inner or "serialized_exported_program.json" in {*names, *inner}:
        return "is an exported program of torch.export (.pt2), not a checkpoint; give it with --model"
    if "data.pkl" in inner or "data.pkl" in names:
        return None
    if any(name.endswith(".npy") for name in names):
        return "is a NumPy archive (.npz); load it and save its arrays by name as .safetensors"
    if any("saved_model.pb" in name or name == "model.weights.h5" for name in names):
        return "is a Keras model; convert its weights to a .pth or .safetensors file"
    return (
        "is a zip archive, not a checkpoint of torch.save; unzip it and give the checkpoint inside "
        f"({_some(names)})"
    )


def _some(names: list[str]) -> str:
    return (", ".join(names[:3]) + (", …" if len(names) > 3 else "")) or "it is empty"
