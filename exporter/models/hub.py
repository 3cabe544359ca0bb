"""Weights in the hub's form: a folder of timm's or transformers' with config.json, or a repository to fetch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.errors import CheckpointError, DependencyError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["HubFolder", "find_hub_folder", "hub_name", "read_hub_folder"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
_TASK = "ForImageClassification"


@dataclass(frozen=True)
class HubFolder:
    """Weights and what their folder says of them.

    Attributes:
        weights: the file of weights.
        name: of the repository, "owner/name", or of the folder.
        revision: the commit that was fetched; None of a folder.
        arch: the architecture for a ModelSpec that has none: one of a library, or None where the zoo may know it.
        values: the configuration files, by the place where each value stands.
    """

    weights: Path
    name: str
    revision: str | None
    arch: str | None
    values: Mapping[str, Any]


def hub_name(weights: str) -> re.Match[str] | None:
    """Return the parts `name` and `revision` of "hf:owner/name[@revision]"; None of anything else."""
    return _NAME.fullmatch(weights)


def find_hub_folder(weights: str | None, progress: Progress = silent) -> HubFolder | None:
    """Return what `weights` names if it is a folder or "hf:owner/name[@revision]", fetched where it has to be."""
    if weights is None:
        return None
    if weights.startswith("hf:"):
        return _fetched(weights, progress)
    path = Path(weights)
    return read_hub_folder(path, path.resolve().name) if path.is_dir() else None


def read_hub_folder(folder: Path, name: str, revision: str | None = None) -> HubFolder:
    """Read a folder with weights and, where they are there, config.json and preprocessor_config.json.

    Raises CheckpointError when it has no weights, weights in several files, or a configuration of another task.
    """
    try:
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(
            f"the folder {folder} cannot be read ({error.strerror}); check its permissions"
        ) from error
    config = _read_json(folder / _CONFIG) if _CONFIG in files else {}
    preprocessor = _read_json(folder / _PREPROCESSOR) if _PREPROCESSOR in files else {}
    arch, named = _architecture(config, folder)
    weights = next((one for one in _WEIGHTS if one in files), None)
    if weights is None:
        shards = [one for one in files if one.endswith(".index.json") or "-of-" in one]
        if shards:
            raise CheckpointError(
                f"the weights in {folder} are in several files ({shards[0]}, …), expected one; load them and save them "
                "again with save_pretrained(…, max_shard_size='20GB')"
            )
        there = ", ".join(files[:4]) + (", …" if len(files) > 4 else "")
        raise CheckpointError(
            f"the folder {folder} has no {' and no '.join(_WEIGHTS)} ({there or 'it is empty'}); give a folder in the "
            "hub's form, or a checkpoint file"
        )
    values = dict(_flat("config", config)) | {"preprocessor_config": preprocessor}
    if named is not None:
        values = {"architecture": named} | values
    return HubFolder(folder / weights, name, revision, arch, values)


def _architecture(config: Mapping[str, Any], folder: Path) -> tuple[str | None, str | None]:
    """Return the architecture of a library that has to be built, and the name that the zoo may know."""
    found = config.get("architecture")
    if isinstance(found, str):  # timm's form
        settings = config.get("pretrained_cfg", config)
        classes = config.get(
            "num_classes", settings.get("num_classes") if isinstance(settings, Mapping) else None
        )
        if classes == 0:
            raise CheckpointError(
                f"{folder / _CONFIG} is of a feature extractor without a classifier (num_classes 0); give the folder "
                "of a classifier"
            )
        own = found in ZOO and not config.get("model_args")
        return None if own else f"timm:{found}", found
    classes = config.get("architectures")
    if isinstance(classes, list) and classes:
        if not any(isinstance(one, str) and one.endswith(_TASK) for one in classes):
            raise CheckpointError(
                f"{folder / _CONFIG} is of {classes[0]}, expected an image classifier ({_TASK[3:]}); give the folder "
                "of a classifier"
            )
        return None, _transformers_name(config, folder)
    return None, None


def _transformers_name(config: Mapping[str, Any], folder: Path) -> str | None:
    """Return the zoo's name of a ResNet of transformers, whose weights do not tell where its stride is."""
    kind = config.get("model_type")
    if kind != "resnet":
        raise CheckpointError(
            f"{folder / _CONFIG} is of a {kind} of transformers, which is not built here (a resnet is); build it with "
            "--model MODULE:FACTORY"
        )
    odd = {"hidden_act": "relu", "downsample_in_first_stage": False}
    wrong = [f"{name}={config[name]!r}" for name, usual in odd.items() if config.get(name, usual) != usual]
    if wrong:
        raise CheckpointError(
            f"{folder / _CONFIG} has {', '.join(wrong)}, with which its weights are of no network here; build it with "
            "--model MODULE:FACTORY"
        )
    layers = tuple(config.get("depths", (3, 4, 6, 3)))
    block = config.get("layer_type", "bottleneck")
    first = bool(config.get("downsample_in_bottleneck", False)) and block == "bottleneck"
    rows = [
        row.name
        for row in ZOO.values()
        if (row.layers, row.block, row.stride_in_1x1) == (layers, block, first)
        and (row.preact, row.se, row.stem, row.groups, row.shortcut)
        == (False, False, "imagenet", 1, "projection")
        and row.group_width == 64
    ]
    return rows[0] if rows else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object; copy it again")
    return found


def _flat(place: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        yield f"{place}.{key}", value
        if isinstance(value, dict):
            yield from _flat(f"{place}.{key}", value)


def _fetched(weights: str, progress: Progress) -> HubFolder:
    """Fetch the files of a repository into the hub's own cache, at one commit."""
    parts = hub_name(weights)
    if parts is None:
        raise CheckpointError(f"{weights!r} is not hf:OWNER/NAME or hf:OWNER/NAME@REVISION; correct the name")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise DependencyError(
            f"huggingface_hub is not installed, and {weights} is fetched with it; "
            "run: pip install 'resnet-export[hub]'"
        ) from error
    name, revision = parts["name"], parts["revision"]
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        there = {one.rfilename for one in info.siblings or ()}
        commit = str(info.sha)
        shards = [one for one in there if one.endswith(".index.json")]
        wanted = [*(one for one in _WEIGHTS if one in there)][:1] or sorted(shards)
        wanted += [one for one in (_CONFIG, _PREPROCESSOR) if one in there]
        paths = [
            Path(hub.hf_hub_download(name, file, revision=commit))
            for file in progress(wanted, f"downloading {name}", len(wanted))
        ]
    except Exception as error:  # the library raises its own errors, those of its HTTP client, and OSError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"{weights} cannot be fetched ({type(error).__name__}: {reason}); check the name and the revision, or "
            f"fetch it on another machine with 'hf download {name}' and give the folder"
        ) from error
    if not paths:
        raise CheckpointError(
            f"{weights} has no {' and no '.join(_WEIGHTS)}; give a repository of an image classifier"
        )
    return read_hub_folder(paths[0].parent, name, commit)
