"""A request as a TOML file: one table for each spec, with the names of the options."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError

__all__ = ["CONFIG", "read_config", "render_config"]

CONFIG = "export.toml"
"""The file of a bundle that holds the request it was made from."""

_TABLES: Mapping[str, type[ModelSpec] | type[ExportSpec]] = {"model": ModelSpec, "export": ExportSpec}
_REPEATED = frozenset(
    one.name
    for spec in _TABLES.values()
    for one in dataclasses.fields(spec)
    if one.metadata.get("repeated", False)
)
# What is said of a run, not of what comes out.
_NOT_KEPT = frozenset({"force", "reuse"})


def read_config(path: Path) -> dict[str, Any]:
    """Return the options that a file gives, by name, with the values that flags take: lists become `A,B`, those of a
    repeated flag tuples.

    Raises RequestError for what cannot be read, and for a table or a name that is not known, with the nearest that is.
    """
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); give a TOML file") from error
    except ValueError as error:  # tomllib's own, and broken UTF-8
        raise RequestError(
            f"{path} is not a TOML file ({error}); write `[export]` and lines of `fp16 = true`"
        ) from error
    options: dict[str, Any] = {}
    for table, values in found.items():
        if table not in _TABLES or not isinstance(values, dict):
            raise RequestError(
                _unknown(path, "a table or an option", table, [f"[{name}]" for name in _TABLES])
            )
        names = _names(_TABLES[table])
        for name, value in values.items():
            if name.replace("-", "_") not in names:
                raise RequestError(_unknown(path, f"an option of [{table}]", name, names))
            option = name.replace("-", "_")
            options[option] = _as_given(path, name, value, repeated=option in _REPEATED)
    return options


def render_config(model: ModelSpec, spec: ExportSpec) -> bytes:
    """Return the file that asks for the same; what has its default is left out, and a module in memory cannot be in it.

    `resnet-export --config FILE` reads it. Paths stand as they were given.
    """
    import tomli_w

    tables = {
        table: {
            name: _plain(value)
            for name in _names(type(asked))
            if name not in _NOT_KEPT and (value := getattr(asked, name)) != getattr(type(asked)(), name)
        }
        for table, asked in (("model", model), ("export", spec))
    }
    head = "# What this bundle was made from: resnet-export --config export.toml\n"
    if model.module is not None:
        head = "# A module in memory was exported with this: no command can name it.\n"
    return (head + tomli_w.dumps(tables)).encode()


def _names(spec: type[ModelSpec] | type[ExportSpec]) -> list[str]:
    return [field.name for field in dataclasses.fields(spec) if field.metadata.get("option", True)]


def _unknown(path: Path, what: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{path} has {name!r}, which is not {what}; {advice}"


def _as_given(path: Path, name: str, value: object, *, repeated: bool) -> object:
    if repeated:
        return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(str, value))
    if isinstance(value, str | int | float | bool):
        return value
    raise RequestError(
        f"{path} gives {name!r} a {type(value).__name__}, expected a text, a number, true, false or a list"
    )


def _plain(value: object) -> object:
    if isinstance(value, BatchRange):
        return [value.min, value.opt, value.max]
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
