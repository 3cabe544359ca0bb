"""Arguments of the wrong kind are refused in one sentence, before a file is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity import Batch, ParitySpec, run_parity
from resnet_export.runtime.parity.criteria.tolerances import Override
from resnet_export.runtime.parity.spec import as_spec
from resnet_export.runtime.precision import Precision
from tests.parity_bundle import crops, write
from tests.tiny_bundle import FP16, FP32, SIDE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": "0.5", "data": "d"}, "max_drop is '0.5', expected percentage points"),
        ({"max_drop": True, "data": "d"}, "max_drop is True, expected percentage points"),
        ({"min_agreement": "99"}, "min_agreement is '99', expected percent"),
        ({"min_accuracy": 101, "data": "d"}, "min_accuracy is 101, expected percent"),
        ({"min_accuracy": 90}, "min_accuracy was given without data"),
        ({"limit": "3", "data": "d"}, "limit is '3', expected at least one image"),
        ({"limit": 2.5, "data": "d"}, "limit is 2.5, expected at least one image"),
        ({"limit": 3}, "limit was given without data"),
        ({"threads": "2"}, "threads is '2', expected at least one thread"),
        ({"data": 5}, "data is 5, expected the path of images; batches are given beside"),
        ({"artifacts": "fp32"}, "artifacts is 'fp32', expected names in a list"),
        ({"backends": [1]}, "backends hold 1, expected names in a list"),
        ({"precisions": ["fp8"]}, "there is no precision 'fp8'; expected fp32, fp16, bf16, int8"),
        ({"precisions": "fp32"}, "precisions is 'fp32', expected names in a list"),
        ({"precisions": []}, "precisions is empty"),
        ({"tolerances": 5}, "tolerances is not understood"),
        ({"tolerances": {"fp16": {"cosine": 1}}}, "tolerances is not understood"),
        ({"strict": 1, "data": "d"}, "strict is 1, expected True or False"),
        ({"strict": True, "data": "d"}, "strict was given without max_drop"),
        ({"seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"seed": 3}, "seed was given without data"),
        ({"reference": "torch"}, "the reference is 'torch', expected 'onnx' or 'eager'"),
        ({"reference": "eager"}, "the eager reference is for validation images"),
        ({"weights": "w.pth"}, "weights were given without the eager reference"),
        ({"layers": "every"}, "layers is 'every', expected 'failed', 'none', 'all' or names"),
        ({"layers": 5}, "layers is 5, expected names in a list"),
    ],
    ids=str,
)
def test_a_spec_refuses_a_wrong_value_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as found:
        ParitySpec(**options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 5}, "batches is 5, expected batches of crops"),
        ({"batches": "val"}, r"batches is 'val', expected batches of crops; .*check_parity takes paths"),
        ({"batches": Path("val")}, "batches is .*'val'"),
        ({"data": "val"}, r"data is 'val', and no batches were given; .*check_parity opens paths"),
        ({"eager": 5}, "eager is 5, expected a function"),
        ({"data": "d", "reference": "eager", "batches": []}, "no eager network was given; .*check_parity"),
        ({"layers": "all"}, "nothing was given that compares them; .*check_parity does"),
        ({"spec": "spec"}, "the spec is 'spec', expected a ParitySpec"),
        ({"max_dorp": 1}, "there is no option 'max_dorp' of a parity check; expected artifacts, backends, "),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_spec_is_refused_before_a_file_is_opened(
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
        (["a.jpg"], r"the batches hold 'a\.jpg', expected batches with images, labels and names"),
        ([crops(2)], "the batches hold a ndarray, expected batches"),
        ([Batch([1, 2])], "images of a batch are .*, expected uint8"),
        ([Batch(crops(2).astype(np.float32))], "images of a batch are float32"),
        ([Batch(crops(2)[:, :-1])], rf"expected crops, uint8 \[n, {SIDE}, {SIDE}, 3\]"),
    ],
    ids=["names", "arrays", "lists", "floats", "another size"],
)
def test_data_that_are_no_batches_of_crops_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    bundle = write(tmp_path / "b", (FP32, FP16))
    with pytest.raises(RequestError, match=message):
        run_parity(bundle, batches=data, backends=["onnxruntime"], threads=1)


def test_numbers_of_numpy_paths_and_names_in_any_collection_are_taken() -> None:
    found = ParitySpec(
        data=Path("photos"),  # type: ignore[arg-type]
        limit=np.int64(3),  # type: ignore[arg-type]
        max_drop=np.float32(0.5),  # type: ignore[arg-type]
        min_agreement=99,
        artifacts={"fp16"},  # type: ignore[arg-type]
        precisions=("bf16", Precision.BF16),  # type: ignore[arg-type]
        tolerances={"fp16": {"relative_error": 0.1}},  # type: ignore[dict-item]
    )
    assert (found.data, found.limit, found.max_drop, found.min_agreement) == ("photos", 3, 0.5, 99.0)
    assert {type(found.limit), type(found.max_drop), type(found.min_agreement)} == {int, float}
    assert (found.artifacts, found.precisions) == (("fp16",), (Precision.BF16,))
    assert found.tolerances == {Precision.FP16: Override(relative_error=0.1)}


ASKED = {
    "artifacts": ("fp16", "int8.cpu"),
    "backends": ("onnxruntime",),
    "precisions": (Precision.FP16,),
    "data": "my photos",
    "reference": "eager",
    "weights": "w.pth",
    "limit": 7,
    "seed": 3,
    "max_drop": 0.5,
    "strict": True,
    "min_agreement": 99.0,
    "min_accuracy": 80.0,
    "tolerances": {Precision.FP16: Override(relative_error=None)},
    "layers": ("fp16",),
    "threads": 2,
    "triton": "grpc://localhost:8001",
}


def test_a_spec_reads_back_from_json_whole() -> None:
    assert set(ASKED) == set(ParitySpec.__struct_fields__), "a further option belongs in this table"
    spec = ParitySpec(**ASKED)  # type: ignore[arg-type]
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ParitySpec) == spec
    assert msgspec.json.decode(msgspec.json.encode(ParitySpec()), type=ParitySpec) == ParitySpec()


def test_options_replace_fields_of_a_spec_and_are_checked_with_it() -> None:
    spec = ParitySpec(data="photos", max_drop=0.5)
    assert as_spec(spec, {"limit": 3}) == ParitySpec(data="photos", max_drop=0.5, limit=3)
    with pytest.raises(RequestError, match="max_drop was given without data"):
        as_spec(spec, {"data": None})


def test_texts_of_a_spec_are_fit_for_reports() -> None:
    spec = ParitySpec(data="a\nb\udcff", tolerances="\x1b[2J.json")
    assert (spec.printable().data, spec.printable().tolerances) == ("a\\nb\\udcff", "\\x1b[2J.json")
    assert spec.data == "a\nb\udcff"
