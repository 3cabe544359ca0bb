"""Signing and verifying through OpenSSF's `model-signing`: key pairs, and Sigstore identities without one."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_export.runtime.bundle.atomic_write import write_file
from resnet_export.runtime.bundle.manifest import verify_bundle
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.bundle.signature import SIGNATURE_NAME
from resnet_export.runtime.errors import DependencyError, RequestError, SignatureError

__all__ = ["Identity", "sign", "verify_identity"]


@dataclass(frozen=True)
class Identity:
    """Who signed without a key pair: the identity in the certificate, and who vouches for it.

    `name` is an e-mail address or the URI of a workload, `provider` the URL of its OpenID Connect issuer.
    """

    name: str
    provider: str


def sign(
    bundle: str | os.PathLike[str],
    *,
    key: Path | None = None,
    password: str | None = None,
    signature: Path | None = None,
    **sigstore: Any,
) -> Path:
    """Sign every file of a bundle, found intact before, and return the file of the signature.

    Args:
        bundle: the folder.
        key: the PEM file of an elliptic-curve private key; without one, Sigstore signs for an OpenID Connect identity.
        password: of the key.
        signature: the file to write; by default `model.sig` in the bundle.
        sigstore: arguments of `model_signing.signing.Config.use_sigstore_signer`.

    Raises:
        RequestError: the key cannot be read, or Sigstore refuses or is out of reach.
        BundleError: the bundle is damaged, and is not signed.
        DependencyError: model-signing is not installed.
    """
    signing = _library("signing")
    verify_bundle(bundle)
    folder = locate(bundle)
    place, hashed = _place(folder, signature)
    config = signing.Config().set_hashing_config(hashed)
    staged = folder.with_name(f".{secrets.token_hex(8)}.sig")
    try:
        if key is None:
            config.use_sigstore_signer(**sigstore)
        else:
            config.use_elliptic_key_signer(
                private_key=key, password=password.encode() if password is not None else None
            )
        config.sign(folder, staged)
        write_file(place, staged.read_bytes())
    except OSError as error:
        raise RequestError(f"{error.filename or folder} cannot be used to sign ({error.strerror})") from error
    except Exception as error:  # of cryptography, sigstore and urllib3, which have no common root
        what = "Sigstore" if key is None else f"the private key {key}"
        raise RequestError(
            f"{bundle} cannot be signed with {what} ({_line(error)}); "
            + ("give --key, or an identity" if key is None else "give an elliptic-curve key in PEM")
        ) from error
    finally:
        with suppress(OSError):
            staged.unlink()
    return place


def verify_identity(
    bundle: str | os.PathLike[str],
    identity: Identity,
    *,
    signature: Path | None = None,
    trust_config: Path | None = None,
    staging: bool = False,
) -> None:
    """Hold a bundle to a signature that Sigstore made for `identity`. Raises SignatureError or DependencyError."""
    verifying = _library("verifying")
    folder = locate(bundle)
    place, hashed = _place(folder, signature)
    if not place.is_file():
        raise SignatureError(
            f"{folder} has no signature {place.name}; sign it with: resnet-export sign {folder}"
        )
    try:
        verifying.Config().use_sigstore_verifier(
            identity=identity.name,
            oidc_issuer=identity.provider,
            use_staging=staging,
            trust_config=trust_config,
        ).set_hashing_config(hashed).verify(folder, place)
    except Exception as error:  # of sigstore, tuf and urllib3, which have no common root
        raise SignatureError(
            f"{folder} is not verified as signed by {identity.name} ({_line(error)}); do not open it"
        ) from error


def _place(folder: Path, signature: Path | None) -> tuple[Path, Any]:
    """Return the file of the signature, and what is hashed: all else, or a folder of Git would not be vouched for."""
    place = folder / SIGNATURE_NAME if signature is None else Path(os.path.realpath(signature))
    left_out = [place.relative_to(folder)] if place.is_relative_to(folder) else []
    return place, _library("hashing").Config().set_ignored_paths(paths=left_out, ignore_git_paths=False)


def _library(module: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise DependencyError(
            f"model-signing is not installed ({error.name} is missing); run: pip install 'resnet-export[sign]'"
        ) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300].rstrip(".") or type(error).__name__
