"""Damaged files are read or refused in words: no crash, no hang, no other exception, no gigabyte."""

from __future__ import annotations

from random import Random

import pytest

from fuzz.mutations import damage_bytes, damage_json, damage_onnx
from fuzz.run import KINDS, fuzz
from tests import tiny_bundle

# 5,000 files in all. `make test` feeds a sample.
COUNTS = {
    "onnx": 1500,
    "manifest": 1200,
    "golden": 600,
    "table": 500,
    "image": 500,
    "engine": 400,
    "checkpoint": 300,
}
SAMPLE = {"onnx": 60, "manifest": 80, "image": 60}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *SAMPLE.items(),
        *(pytest.param(*item, marks=pytest.mark.slow) for item in COUNTS.items()),
    ],
)
def test_damaged_files_do_no_harm(kind: str, count: int) -> None:
    assert fuzz(kind, 0, count) == []


def test_every_kind_of_file_is_fed() -> None:
    assert COUNTS.keys() == set(KINDS)
    assert sum(COUNTS.values()) == 5000


@pytest.mark.parametrize(
    ("damage", "data"),
    [
        (damage_bytes, bytes(range(256))),
        (damage_json, b'{"a": [1, 2, {"b": null}], "c": "text"}'),
        (damage_onnx, tiny_bundle.graph()),
    ],
)
def test_a_seed_means_one_file(damage: object, data: bytes) -> None:
    assert callable(damage)
    made = [damage(Random(seed), data) for seed in range(50)]
    assert made == [damage(Random(seed), data) for seed in range(50)]
    assert len(set(made)) > 40
