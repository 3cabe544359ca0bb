"""Reading checkpoint files: formats, containers, prefixes, and files that are not what they seem."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from resnet_export.exporter.models.state_dict import choose_set, read_checkpoint, require_dense
from resnet_export.runtime.errors import CheckpointError

STATE = {"conv1.weight": torch.arange(12.0).reshape(3, 4), "bn1.num_batches_tracked": torch.tensor(7)}


def _zip(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _legacy(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _safetensors(value: dict[str, Tensor]) -> bytes:
    data: bytes = save_safetensors(value)
    return data


def _read(folder: Path, data: bytes, name: str = "weights.pth") -> dict[str, Tensor]:
    path = folder / name
    path.write_bytes(data)
    return require_dense(choose_set(read_checkpoint(path), path, None)[0].tensors, path)


def _same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("encode", [_zip, _legacy, _safetensors])
@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors", "weights.ckpt"])
def test_the_format_is_told_by_content_and_not_by_name(
    tmp_path: Path, encode: Callable[[Any], bytes], name: str
) -> None:
    assert _same(_read(tmp_path, encode(STATE), name))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 3, "best_acc1": torch.tensor(70.0)},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model_state_dict": state, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}},
        lambda state: {"model_ema": state},
        lambda state: {"model": {"name": "resnet18"}, "state_dict": {"model": state}},
    ],
)
@pytest.mark.parametrize("encode", [_zip, _legacy])
def test_the_state_dict_is_found_in_its_container(
    tmp_path: Path, encode: Callable[[Any], bytes], wrap: Callable[[Any], Any]
) -> None:
    assert _same(_read(tmp_path, encode(wrap(STATE))))


def test_a_second_set_of_weights_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(_zip({"model": STATE, "model_ema": {"conv1.weight": torch.zeros(3, 4)}}))
    chosen, (notice,), _ = choose_set(read_checkpoint(path), path, None)
    assert _same(dict(chosen.tensors))
    assert "'model_ema'" in notice
    assert "'model'" in notice


class _Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("encode", [_zip, _legacy])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(
    tmp_path: Path, encode: Callable[[Any], bytes]
) -> None:
    target = tmp_path / "attacked"
    data = encode({"state_dict": STATE, "extra": _Attack(target)})
    with pytest.raises(CheckpointError, match=r"refused: it refers to posix\.mkdir") as caught:
        _read(tmp_path, data)
    assert not target.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "words"), [(2, r"refers to posix\.mkdir"), (4, "its pickle has instructions")]
)
def test_a_bare_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int, words: str) -> None:
    target = tmp_path / "attacked"
    with pytest.raises(CheckpointError, match=f"was refused: .*{words}"):
        _read(tmp_path, pickle.dumps(_Attack(target), protocol=protocol))
    assert not target.exists()


def test_a_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        _read(tmp_path, _zip(nn.Linear(2, 2)))


def _other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photos/readme.txt", "not weights")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_zip(STATE)[:-200], "truncated or damaged"),
        (_zip(STATE)[:300], "truncated or damaged"),
        (_legacy(STATE)[:-20], "truncated or damaged"),
        (_legacy(STATE)[:30], "truncated or damaged"),
        (_safetensors(STATE)[:-8], "no whole safetensors file"),
        (_safetensors(STATE)[:20], "no whole safetensors file"),
        (b"x", "is not a checkpoint"),
        (b"conv1: [1, 2, 3]\nbn1: [4]\n", "neither torch.save's format nor safetensors"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x05" + b"2.13" * 20, "neither torch.save's format nor safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (_other_zip(), "unzip it and give the checkpoint inside (photos/readme.txt)"),
        (_zip(torch.ones(3)), "holds a Tensor"),
        (_zip([1, 2]), "holds a list"),
        (_zip({}), "holds an empty dict"),
        (_zip({"state_dict": {}, "epoch": 3}), "a dict with 'state_dict', 'epoch'"),
        (_zip({"fc.weight": torch.ones(2, 2).to_sparse()}), "sparse"),
        (_zip({"fc.weight": torch.ones(2, device="meta")}), "without data"),
    ],
)
def test_files_that_hold_no_state_dict_are_refused_in_one_sentence(
    tmp_path: Path, data: bytes, words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        _read(tmp_path, data)
    message = str(caught.value)
    assert words in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_torchscript_archive_is_refused_by_its_kind(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        # What torch.jit.save writes beside data.pkl, and torch.load tells it by.
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        archive.writestr("net/constants.pkl", b"\x80\x02).")
        archive.writestr("net/version", b"3\n")
    with pytest.raises(CheckpointError, match="TorchScript archive"):
        _read(tmp_path, buffer.getvalue())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(tmp_path / "none.pth")


@settings(max_examples=150, deadline=None)
@given(
    original=st.sampled_from([_zip(STATE), _legacy(STATE), _safetensors(STATE)]),
    place=st.floats(0, 1, exclude_max=True),
    patch=st.binary(max_size=6),
    removed=st.integers(0, 6),
    keep=st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_refused_but_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    original: bytes,
    place: float,
    patch: bytes,
    removed: int,
    keep: float,
) -> None:
    at = int(place * len(original))
    damaged = original[:at] + patch + original[at + removed :]
    damaged = damaged[: int(keep * len(damaged))] if keep < 0.5 else damaged
    path = tmp_path_factory.mktemp("damaged") / "weights.pth"
    path.write_bytes(damaged)
    with suppress(CheckpointError):
        sets = read_checkpoint(path).sets
        assert all(isinstance(tensor, Tensor) for one in sets for tensor in one.tensors.values())
