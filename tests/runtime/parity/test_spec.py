"""Arguments of the wrong kind are refused in one sentence, before a file is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity import Batch, run_parity
from resnet_export.runtime.parity.spec import ask
from resnet_export.runtime.precision import Precision
from tests.parity_bundle import crops, write
from tests.tiny_bundle import FP16, FP32, SIDE

NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "data",
        "artifacts",
        "backends",
        "precisions",
        "eager",
        "max_drop",
        "min_agreement",
        "min_accuracy",
        "tolerances",
        "limit",
        "threads",
    )
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": "0.5", "data": []}, "max_drop is '0.5', expected percentage points"),
        ({"max_drop": True, "data": []}, "max_drop is True, expected percentage points"),
        ({"min_agreement": "99"}, "min_agreement is '99', expected percent"),
        ({"min_accuracy": 101, "data": []}, "min_accuracy is 101, expected percent"),
        ({"min_accuracy": 90}, "min_accuracy was given without data"),
        ({"limit": "3", "data": []}, "limit is '3', expected at least one image"),
        ({"limit": 2.5, "data": []}, "limit is 2.5, expected at least one image"),
        ({"limit": 3}, "limit was given without data"),
        ({"threads": "2"}, "threads is '2', expected at least one thread"),
        ({"data": 5}, "data is 5, expected batches of crops"),
        (
            {"data": "val"},
            r"data is the path 'val', expected batches of crops; .*check\.check_parity takes paths",
        ),
        ({"data": Path("val")}, "data is the path 'val'"),
        ({"artifacts": "fp32"}, "artifacts is 'fp32', expected names in a list"),
        ({"backends": [1]}, "backends hold 1, expected names in a list"),
        ({"precisions": ["fp8"]}, "there is no precision 'fp8'; expected fp32, fp16, bf16, int8"),
        ({"precisions": "fp32"}, "precisions is 'fp32', expected names in a list"),
        ({"precisions": []}, "precisions is empty"),
        ({"eager": 5}, "eager is 5, expected a function"),
        ({"data_name": 5}, "data_name is 5, expected a text"),
        ({"tolerances": 5}, "tolerances is not understood"),
    ],
    ids=str,
)
def test_an_argument_of_the_wrong_kind_is_refused_in_one_sentence(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as found:
        run_parity(tmp_path / "nowhere", **options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("bundle", [None, 5, b"bundle"])
def test_a_bundle_is_a_path(bundle: Any) -> None:
    with pytest.raises(RequestError, match="expected the path of a bundle's folder"):
        run_parity(bundle)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a.jpg"], r"data hold 'a\.jpg', expected batches with images, labels and names"),
        ([crops(2)], "data hold a ndarray, expected batches"),
        ([Batch([1, 2])], "images of a batch are .*, expected uint8"),
        ([Batch(crops(2).astype(np.float32))], "images of a batch are float32"),
        ([Batch(crops(2)[:, :-1])], rf"expected crops, uint8 \[n, {SIDE}, {SIDE}, 3\]"),
    ],
    ids=["names", "arrays", "lists", "floats", "another size"],
)
def test_data_that_are_no_batches_of_crops_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    bundle = write(tmp_path / "b", (FP32, FP16))
    with pytest.raises(RequestError, match=message):
        run_parity(bundle, data=data, backends=["onnxruntime"], threads=1)


def test_numbers_of_numpy_and_names_in_any_collection_are_taken() -> None:
    options = NOTHING | {"data": [], "limit": np.int64(3), "max_drop": np.float32(0.5), "min_agreement": 99}
    found = ask(
        data_name="photos", **(options | {"artifacts": {"fp16"}, "precisions": ("bf16", Precision.BF16)})
    )
    assert (found.limit, found.max_drop, found.min_agreement) == (3, 0.5, 99.0)
    assert {type(found.limit), type(found.max_drop), type(found.min_agreement)} == {int, float}
    assert (found.artifacts, found.precisions) == (("fp16",), (Precision.BF16,))
