"""A file is written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from resnet_export.runtime.bundle.atomic_write import write_file


def test_a_new_file_holds_what_was_written_and_nothing_stands_beside_it(tmp_path: Path) -> None:
    write_file(tmp_path / "table", b"new")
    assert (tmp_path / "table").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_an_old_file_is_replaced_and_leaves_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_file(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_whole_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "table"
    path.write_bytes(b"old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
