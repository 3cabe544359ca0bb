"""A user's own file of names: what the tensors of a checkpoint are called, and what the network calls them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnet_export.runtime.errors import CheckpointError, RequestError

__all__ = ["KeyMap", "read_key_map"]


@dataclass(frozen=True)
class KeyMap:
    """The file's name → the network's; a name that ends in a dot is the beginning of names, "" leaves a tensor out."""

    path: Path
    names: Mapping[str, str]

    def rename(self, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Return the tensors by their new names; those that the map does not mention keep theirs.

        Raises CheckpointError when an entry names nothing in `path`, or two tensors get one name.
        """
        unused = set(self.names)
        result: dict[str, Tensor] = {}
        for key, value in tensors.items():
            name = key
            matches = [old for old in self.names if old == key or (old.endswith(".") and key.startswith(old))]
            if matches:
                old = max(matches, key=len)
                unused.discard(old)
                new = self.names[old]
                if not new:
                    continue
                name = new + key.removeprefix(old)
            if name in result:
                raise CheckpointError(
                    f"{self.path} gives two tensors of {path} the name {name}; name each once"
                )
            result[name] = value
        if unused:
            raise CheckpointError(
                f"{self.path} names {', '.join(sorted(unused)[:4])}, which {path} does not hold; correct the names"
            )
        return result


def read_key_map(path: Path) -> KeyMap:
    """Read a JSON object, or lines of "name in the file = name in the network" with # comments.

    Raises RequestError when the file cannot be read or is neither.
    """
    wanted = "a JSON object or lines of 'name in the file = name in the network'"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the key map {path} cannot be read ({error}); give {wanted}") from error
    names: dict[str, str] = {}
    if text.lstrip().startswith("{"):
        try:
            names = json.loads(text)
        except ValueError as error:
            raise RequestError(f"the key map {path} is not JSON ({error}); give {wanted}") from error
        if not all(isinstance(new, str) for new in names.values()):
            raise RequestError(f"the key map {path} has values that are not text; give {wanted}")
        return KeyMap(path, names)
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        old, sign, new = line.partition("=")
        if not sign or not old.strip():
            raise RequestError(f"line {number} of the key map {path} is {line!r}; give {wanted}")
        names[old.strip()] = new.strip()
    return KeyMap(path, names)
