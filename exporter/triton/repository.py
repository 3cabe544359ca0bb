"""Write a bundle as a model repository for Triton Inference Server.

    models/
      NAME/              the ensemble: the bytes of an image file → labels
      NAME_preprocess/   decoding and preprocessing, the runtime's own
      NAME_BACKEND_…/    the network, once for each backend and artifact
      NAME_labels/       from logits to labels

A later bundle becomes the next version of each, and the configurations say which bundle a version serves.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_export.exporter.triton import config as configs
from resnet_export.exporter.triton import models
from resnet_export.exporter.triton.backends import ServedNetwork, choose
from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime.bundle.atomic_write import write_file
from resnet_export.runtime.bundle.files import read_regular
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    read_artifact,
    verify_bundle,
)
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.preprocess import to_input

__all__ = ["Repository", "bundle_hash", "write_repository"]

_CONFIG = "config.pbtxt"
_OURS = "resnet_export"
_SOURCES = Path(models.__file__).parent


@dataclass(frozen=True)
class Repository:
    """What was written: the models, the ensemble first, their version, and the bundle's hash."""

    path: Path
    models: tuple[str, ...]
    version: int
    bundle_sha256: str
    added: bool


@dataclass(frozen=True)
class _Model:
    """A model to be: its configuration, the files beside it, and those of its version's folder."""

    config: Any
    shared: Mapping[str, bytes] = field(default_factory=dict)
    version: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        name: str = self.config.name
        return name


def bundle_hash(bundle: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a bundle's manifest, which holds the hash of every other file. Raises BundleError."""
    return hashlib.sha256(_manifest_bytes(bundle)).hexdigest()


def write_repository(bundle: str | os.PathLike[str], out: Path, spec: TritonSpec | None = None) -> Repository:
    """Write the models of `bundle` into the model repository `out`, made where it is missing.

    Every file is verified and copied. Models that were written before get another version, unless their newest is this
    very bundle; whatever else stands in `out` is left alone.

    Raises:
        RequestError: an option is wrong, nothing of the bundle runs on a backend, a folder in the way is not ours, or
            the models in `out` have other inputs or outputs than this bundle; nothing is written then.
        BundleError: the bundle cannot be read.
        DependencyError: tritonclient is not installed.
    """
    spec = spec or TritonSpec()
    configs.require_tritonclient()
    data = _manifest_bytes(bundle)
    manifest = decode_manifest(data)
    if verify_bundle(bundle) != manifest:
        raise BundleError(f"the bundle {bundle} was replaced while it was read; run again")
    name = _checked_name(locate(bundle).name if spec.name is None else spec.name)
    served = choose(manifest, spec, name)
    digest = hashlib.sha256(data).hexdigest()
    names = (f"{name}_preprocess", *(one.name for one in served), f"{name}_labels", name)
    known = {one: found for one in names if (found := _known_config(out, one)) is not None}
    versions = {one: _versions(out / one) for one in names}
    newest = max((max(found, default=0) for found in versions.values()), default=0)
    current = len(known) == len(names) and all(
        found.parameters[f"{configs.BUNDLE_SHA256}.{newest}"].string_value == digest
        for found in known.values()
    )
    version = newest if current else newest + 1
    made = tuple(_models(bundle, data, manifest, served, spec, name, digest, version))
    for model in made:
        if model.name in known:
            _check_same_tensors(known[model.name], model.config, out)
            _keep_hashes(known[model.name], model.config)
    try:
        _place(made, out, version)
    except OSError as error:
        raise RequestError(
            f"{error.filename or out} cannot be written ({error.strerror}); make room, or give another --out"
        ) from error
    return Repository(out, (name, *(one for one in names if one != name)), version, digest, not current)


def _models(
    bundle: str | os.PathLike[str],
    data: bytes,
    manifest: Manifest,
    served: tuple[ServedNetwork, ...],
    spec: TritonSpec,
    name: str,
    digest: str,
    version: int,
) -> Iterator[_Model]:
    """Yield the models, those that others are made of first."""
    facts = {_OURS: "1", configs.BUNDLE_SHA256: digest, f"{configs.BUNDLE_SHA256}.{version}": digest}
    alone = {MANIFEST_NAME: data}
    yield _Model(
        configs.preprocessing(f"{name}_preprocess", manifest, spec, facts),
        version=alone | _source("preprocess"),
    )
    yield _Model(configs.labeling(f"{name}_labels", manifest, spec, facts), version=alone | _source("labels"))
    first = read_golden(bundle).images[:1]
    shared = {
        f"warmup/{configs.GOLDEN_INPUT}": to_input(first, manifest.preprocessing).tobytes(),
        configs.LABELS_FILE: "".join(f"{' '.join(label.split())}\n" for label in manifest.labels).encode(),
    }
    for one in served:
        if one.backend.name == "python":
            files = {f"bundle/{file.file}": read_artifact(bundle, file) for file in manifest.contents()}
            files |= {f"bundle/{MANIFEST_NAME}": data} | _source("session")
        elif one.backend.name == "tensorrt":
            files = {configs.plan_file(a.name): read_artifact(bundle, a) for a in one.artifacts}
        else:
            files = {one.backend.file: read_artifact(bundle, one.artifacts[0])}
        yield _Model(configs.network(one, manifest, spec, facts), shared, files)
    steps = (f"{name}_preprocess", served[0].name, f"{name}_labels")
    yield _Model(configs.ensemble(name, steps, served[0], manifest, spec, facts), version=alone)


def _source(model: str) -> dict[str, bytes]:
    return {"model.py": (_SOURCES / f"{model}.py").read_bytes()}


def _place(made: tuple[_Model, ...], out: Path, version: int) -> None:
    """Put each version in place in one step, and its configuration after it; the ensemble comes last."""
    out.mkdir(parents=True, exist_ok=True)
    # Beside the repository: a server that polls would take a folder inside it for a model.
    staging = out.resolve().with_name(f".{out.resolve().name}.{secrets.token_hex(8)}")
    staging.mkdir()
    try:
        for model in made:
            for file, data in _files(model, version):
                path = staging / model.name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        for model in made:
            home, new = out / model.name, staging / model.name
            if not home.exists():
                new.rename(home)
                continue
            if not (home / str(version)).exists():
                (new / str(version)).rename(home / str(version))
            for file in model.shared:
                (home / file).parent.mkdir(exist_ok=True)
                write_file(home / file, model.shared[file])
            write_file(home / _CONFIG, configs.render(model.config))
    finally:
        shutil.rmtree(staging)


def _files(model: _Model, version: int) -> Iterator[tuple[str, bytes]]:
    yield _CONFIG, configs.render(model.config)
    yield from model.shared.items()
    yield from ((f"{version}/{file}", data) for file, data in model.version.items())


def _known_config(out: Path, name: str) -> Any:
    """Return the configuration that stands for a model in `out`, None where there is none. Raises RequestError."""
    from google.protobuf import text_format

    home = out / name
    if not os.path.lexists(home):
        return None
    try:
        found = text_format.Parse(
            (home / _CONFIG).read_text("utf-8"), configs.require_tritonclient().ModelConfig()
        )
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        found = None
    if found is None or _OURS not in found.parameters:
        raise RequestError(
            f"{home} is in the way: it is no model that resnet-export wrote; give another --name or --out"
        )
    return found


def _versions(home: Path) -> list[int]:
    return (
        [int(entry.name) for entry in home.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name)]
        if home.is_dir()
        else []
    )


def _check_same_tensors(known: Any, new: Any, out: Path) -> None:
    """Versions share one configuration: refuse a bundle whose tensors are others. Raises RequestError."""

    def tensors(config: Any) -> list[tuple[str, int, tuple[int, ...]]]:
        return [(one.name, one.data_type, tuple(one.dims)) for one in (*config.input, *config.output)]

    if tensors(known) != tensors(new) or known.backend != new.backend:
        raise RequestError(
            f"{out / new.name} serves a network with other inputs or outputs than this bundle, and versions of a model "
            "share theirs; give another --name"
        )


def _keep_hashes(known: Any, new: Any) -> None:
    for key, value in known.parameters.items():
        if key.startswith(f"{configs.BUNDLE_SHA256}.") and key not in new.parameters:
            new.parameters[key].string_value = value.string_value


def _checked_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise RequestError(f"{name!r} is no name of a model (letters, digits, _ and -); give one with --name")
    return name


def _manifest_bytes(bundle: str | os.PathLike[str]) -> bytes:
    try:
        return read_regular(locate(bundle) / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{os.fspath(bundle)} is not a bundle ({MANIFEST_NAME} cannot be read: {error})"
        ) from error
