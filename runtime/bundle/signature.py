"""Signatures in the format of OpenSSF Model Signing, checked for key pairs with `cryptography` alone.

`model.sig` is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists every file with its hash. The
public command (`model_signing sign key`), its library and `resnet-export sign` write it. Signatures without a key pair
(Sigstore identities, certificates) need that library: `resnet-export verify`.

The check is stricter than the public one: a file that is not in the statement is refused even where the signer left it
out on purpose (Git's own files excepted), and so is a link.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from resnet_export.runtime.bundle.files import read_confined, read_regular
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, Manifest, decode_manifest
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.errors import (
    BundleError,
    DependencyError,
    IntegrityError,
    RequestError,
    SignatureError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = [
    "GIT_PATHS",
    "SIGNATURE_NAME",
    "load_public_key",
    "read_signature",
    "require_signed",
    "verify_signature",
]

SIGNATURE_NAME: Final = "model.sig"
GIT_PATHS: Final = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""What the public tool leaves unsigned unless it is told otherwise; nothing here reads it."""

_MAX_SIGNATURE_BYTES = 16 * 2**20
_MAX_KEY_BYTES = 2**16
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
# Curve → the hash that the format signs with.
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}

T = TypeVar("T")


class _Outline(msgspec.Struct, frozen=True, rename="camel"):
    verification_material: dict[str, Any]


class _Exact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Holds all that the file says, so that every byte of it counts."""


class _Signed(_Exact, frozen=True, rename=None):
    sig: bytes
    keyid: str


class _Envelope(_Exact, frozen=True):
    payload: bytes
    payload_type: str
    signatures: tuple[_Signed, ...]


class _KeyHint(_Exact, frozen=True):
    hint: str


class _Material(_Exact, frozen=True):
    public_key: _KeyHint
    tlog_entries: tuple[()]


class _SigstoreBundle(_Exact, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: str


class _Serialization(msgspec.Struct, frozen=True):
    method: str
    hash_type: str
    ignore_paths: tuple[str, ...] = ()


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(msgspec.Struct, frozen=True, rename={"kind": "_type", "predicate_type": "predicateType"}):
    kind: str
    predicate_type: str
    subject: tuple[_Subject, ...]
    predicate: _Predicate


@dataclass(frozen=True)
class SignedFiles:
    """What a signature vouches for: file → SHA-256 in hexadecimal, and the paths that the signer left out."""

    digests: dict[str, str]
    ignored: frozenset[str]


def verify_signature(
    bundle: str | os.PathLike[str],
    public_key: str | os.PathLike[str],
    *,
    signature: str | os.PathLike[str] | None = None,
) -> Manifest:
    """Return the manifest of a bundle all of whose files are those that the owner of `public_key` signed.

    Args:
        bundle: the folder.
        public_key: the PEM file of an elliptic-curve key (NIST P-256, P-384 or P-521).
        signature: the file of the signature; by default `model.sig` in the bundle.

    Raises:
        SignatureError: the signature is missing, damaged or of another key, or a file was changed, added, removed or
            renamed since.
        RequestError: `public_key` cannot be read, or is none.
        BundleError, SchemaError, IntegrityError: the bundle cannot be read, or contradicts itself.
        DependencyError: `cryptography` is not installed.
    """
    folder = locate(bundle)
    place = folder / SIGNATURE_NAME if signature is None else Path(os.path.realpath(signature))
    key = load_public_key(public_key)
    if not folder.is_dir():
        raise BundleError(f"{os.fspath(bundle)} is not a bundle (it is no folder); give the folder of one")
    signed = read_signature(place, key)
    _check_files(folder, signed, place)
    manifest = decode_manifest(_read_signed(folder, MANIFEST_NAME, signed))
    for file in manifest.contents():
        if signed.digests.get(file.file) != file.sha256:
            raise SignatureError(
                f"the manifest gives {file.file!r} another sha256 than the signature {place}; export and sign again"
            )
    return manifest


def require_signed(
    bundle: str | os.PathLike[str], public_key: str | os.PathLike[str], manifest: Manifest
) -> None:
    """Raise IntegrityError unless the bundle is signed, and `manifest` is the one that was."""
    if verify_signature(bundle, public_key) != manifest:
        raise IntegrityError(
            f"the bundle {os.fspath(bundle)} was replaced while its signature was checked; open it again"
        )


def load_public_key(path: str | os.PathLike[str]) -> EllipticCurvePublicKey:
    """Return the elliptic-curve public key in the PEM file `path`. Raises RequestError or DependencyError."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise DependencyError(
            "cryptography is not installed, and checks signatures; run: pip install 'resnet-export[verify]'"
        ) from error
    try:
        data = read_regular(Path(path), limit=_MAX_KEY_BYTES)
        key = load_pem_public_key(data)
    except OSError as error:
        raise RequestError(f"the public key {os.fspath(path)} cannot be read ({error.strerror})") from error
    except Exception as error:  # UnsupportedAlgorithm is no ValueError
        raise RequestError(
            f"{os.fspath(path)} is no public key in PEM; make one with: openssl ec -in key.pem -pubout -out key.pub"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        found = getattr(getattr(key, "curve", None), "name", type(key).__name__)
        raise RequestError(
            f"{os.fspath(path)} is a key of kind {found}, expected an elliptic-curve one ({', '.join(_HASHES)}); make "
            "one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        )
    return key


def read_signature(path: Path, key: EllipticCurvePublicKey) -> SignedFiles:
    """Return what the signature in the file `path` vouches for, found to be one of `key`. Raises SignatureError."""
    try:
        data = read_regular(path, limit=_MAX_SIGNATURE_BYTES)
    except FileNotFoundError as error:
        raise SignatureError(
            f"{path.parent} has no signature {path.name}; sign it with: resnet-export sign {path.parent} --key KEY"
        ) from error
    except (OSError, ValueError) as error:
        raise SignatureError(
            f"the signature {path} cannot be read ({error}); sign the bundle again"
        ) from error
    if "publicKey" not in _decoded(data, _Outline, path).verification_material:
        raise SignatureError(
            f"the signature {path} was made without a key pair; check it with: resnet-export verify --identity …"
        )
    bundle = _decoded(data, _SigstoreBundle, path)
    if msgspec.json.decode(data) != msgspec.json.decode(msgspec.json.encode(bundle)) or data != data.strip():
        raise SignatureError(f"the signature {path} was changed after it was made; sign the bundle again")
    envelope, material = bundle.dsse_envelope, bundle.verification_material
    if bundle.media_type != _MEDIA_TYPE or envelope.payload_type != _PAYLOAD_TYPE:
        raise SignatureError(
            f"the signature {path} is of type {bundle.media_type} with {envelope.payload_type}, expected {_MEDIA_TYPE} "
            f"with {_PAYLOAD_TYPE}; sign with model-signing 1.0 or later"
        )
    _check_key(path, key, material.public_key.hint, envelope)
    statement = _decoded(envelope.payload, _Statement, path)
    return _signed_files(statement, path)


def _check_key(path: Path, key: EllipticCurvePublicKey, hint: str, envelope: _Envelope) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(pem).hexdigest()
    if hint != fingerprint:
        raise SignatureError(
            f"the signature {path} is of the key {hint[:12]}…, and not of the one that was given, {fingerprint[:12]}…; "
            "give the signer's public key, and do not open the bundle otherwise"
        )
    if len(envelope.signatures) != 1:
        raise SignatureError(
            f"the signature {path} holds {len(envelope.signatures)} signatures, expected one"
        )
    algorithm = ec.ECDSA(getattr(hashes, _HASHES[key.curve.name])())
    # DSSE 1.0, "pre-authentication encoding".
    signed = b"DSSEv1 %d %s %d %s" % (
        len(_PAYLOAD_TYPE),
        _PAYLOAD_TYPE.encode(),
        len(envelope.payload),
        envelope.payload,
    )
    try:
        key.verify(envelope.signatures[0].sig, signed, algorithm)
    except InvalidSignature as error:
        raise SignatureError(
            f"the signature {path} does not hold for this public key: it was changed, or another key made it; do not "
            "open the bundle"
        ) from error


def _signed_files(statement: _Statement, path: Path) -> SignedFiles:
    if (statement.kind, statement.predicate_type) != (_STATEMENT, _PREDICATE):
        raise SignatureError(
            f"the signature {path} is over {statement.predicate_type!r}, expected {_PREDICATE!r}; sign with "
            "model-signing 1.0 or later"
        )
    form, resources = statement.predicate.serialization, statement.predicate.resources
    kinds = {form.hash_type, *(resource.algorithm for resource in resources)}
    if form.method != "files" or kinds != {"sha256"}:
        raise SignatureError(
            f"the signature {path} is over {form.method} with {', '.join(sorted(kinds))}, expected files with sha256; "
            "sign with the defaults of model-signing"
        )
    digests = {resource.name: resource.digest for resource in resources}
    try:
        root = hashlib.sha256(b"".join(bytes.fromhex(resource.digest) for resource in resources)).hexdigest()
    except ValueError as error:
        raise SignatureError(f"the signature {path} holds a hash that is none ({error})") from error
    if len(digests) != len(resources) or [s.digest.get("sha256") for s in statement.subject] != [root]:
        raise SignatureError(f"the signature {path} contradicts itself; sign the bundle again")
    return SignedFiles(digests, frozenset(form.ignore_paths))


def _check_files(folder: Path, signed: SignedFiles, signature: Path) -> None:
    """Hold every file of the folder to its signed hash. Raises SignatureError."""
    ours = {signature.relative_to(folder).as_posix()} if signature.is_relative_to(folder) else set()
    found = set(_walk(folder, GIT_PATHS & signed.ignored)) - ours
    for what, names in (
        ("was added to", found - signed.digests.keys()),
        ("is missing from", signed.digests.keys() - found),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise SignatureError(
                f"{min(names)!r}{more} {what} the bundle {folder} since it was signed; do not open it, or sign it again"
            )
    for name in sorted(found):
        _read_signed(folder, name, signed)


def _read_signed(folder: Path, name: str, signed: SignedFiles) -> bytes:
    expected = signed.digests.get(name)
    if expected is None:
        raise SignatureError(f"{name!r} of the bundle {folder} is not signed; sign the bundle again")
    try:
        return read_confined(folder, name, expected)
    except IntegrityError as error:
        raise SignatureError(
            f"{name!r} of the bundle {folder} is not what was signed; do not open it, or sign it again ({error})"
        ) from error


def _walk(folder: Path, ignored: frozenset[str]) -> Iterator[str]:
    """Yield every file of the folder, relative, in forward slashes. Raises SignatureError for what is no file."""
    for root, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        here = Path(root)
        if here == folder:
            folders[:] = [name for name in folders if name not in ignored]
            files = [name for name in files if name not in ignored]
        for name in (*folders, *files):
            if (here / name).is_symlink():
                raise SignatureError(
                    f"{here / name} is a link, which no signature covers; copy what it points to"
                )
        yield from ((here / name).relative_to(folder).as_posix() for name in files)


def _refuse_unreadable(error: OSError) -> None:
    raise SignatureError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error


def _decoded(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(
            f"{path} is no signature in the format of OpenSSF Model Signing ({error}); sign the bundle again"
        ) from error
