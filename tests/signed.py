"""Key pairs and signed copies of the tiny bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from resnet_export.exporter.sign.model_signing import sign
from tests import parity_bundle
from tests.tiny_bundle import FP16, FP32


def key_pair(folder: Path, name: str = "key", curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """Write NAME.pem and NAME.pub, a new elliptic-curve key pair; return (private, public)."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def signed_bundle(folder: Path) -> tuple[Path, Path]:
    """Write a bundle with a subfolder and sign it; return it and the public key."""
    private, public = key_pair(folder)
    bundle = parity_bundle.write(folder / "bundle", [FP32, FP16])
    (bundle / "notes").mkdir()
    (bundle / "notes" / "LICENSE").write_text("Apache-2.0\n")
    sign(bundle, key=private)
    return bundle, public


def copy(bundle: Path, target: Path) -> Path:
    """Return a copy of a bundle that may be damaged."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(bundle, target, symlinks=True))
