"""A failed check names one stage: the earliest that is to blame, and nothing when all is well."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from resnet_export.runtime.parity import run_parity
from resnet_export.runtime.parity.attribution.diagnosis import failing_stage
from resnet_export.runtime.parity.criteria.criterion import at_most
from resnet_export.runtime.parity.measure.comparison import Batch
from resnet_export.runtime.parity.measure.outputs import output_figures
from resnet_export.runtime.parity.report.schema import Entry, OutputCheck, ParityReport
from tests.parity_bundle import crops, logits, write
from tests.tiny_bundle import FP16, FP32, INT8_CPU

GOOD, BAD = at_most("crop", 0, 0), at_most("crop", 1, 0)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    return check(write(tmp_path_factory.mktemp("clean") / "b", (FP32, FP16, INT8_CPU), trained=True))


def check(bundle: Path, data: list[Batch] | None = None) -> ParityReport:
    return run_parity(bundle, batches=data, backends=["onnxruntime"], threads=1)


def wrong(stage: str) -> np.ndarray:
    return logits(crops())[:, ::-1] * len(stage)


def test_a_clean_bundle_blames_nothing(clean: ParityReport) -> None:
    assert clean.verdict.stage is None
    assert failing_stage(clean.entries, (GOOD,)) is None


def test_preprocessing_comes_before_everything_else(clean: ParityReport) -> None:
    failed = msgspec.structs.replace(clean.entries[0], error="broken")
    assert failing_stage(clean.entries, (GOOD, BAD)) == "preprocessing"
    assert failing_stage((failed, *clean.entries), (BAD,)) == "preprocessing"


def test_a_run_that_broke_down_points_to_the_backend(clean: ParityReport) -> None:
    failed = msgspec.structs.replace(clean.entries[0], error="could not be opened", attribution=None)
    assert failing_stage((failed, *clean.entries), ()) == "backend"


def test_the_earliest_stage_that_diverges_is_named_whichever_artifact_comes_first(tmp_path: Path) -> None:
    recorded = {"simplified": wrong("simplified"), "fp16": wrong("fp16")}
    folder = write(tmp_path / "b", (FP32, FP16), recorded=recorded, trained=True)
    report = check(folder)
    failing = tuple(msgspec.structs.replace(entry, refusal="refused") for entry in report.entries)
    assert failing_stage(failing[::-1], ()) == "simplified"
    assert report.verdict.stage is None  # the artifacts themselves are right


def test_an_artifact_whose_further_output_alone_is_wrong_is_to_blame_and_neither_labels_nor_data(
    clean: ParityReport,
) -> None:
    figures = output_figures(np.ones((2, 3)), np.ones((2, 3)))
    embedding = OutputCheck(name="embedding", figures=figures, criteria=(at_most("relative_error", 1, 0.1),))
    int8 = next(entry for entry in clean.entries if entry.artifact == "int8.cpu")
    failed = msgspec.structs.replace(int8, outputs=(embedding,))
    assert not failed.passed
    assert failing_stage((failed,), ()) == failing_stage(
        (msgspec.structs.replace(int8, refusal="refused"),), ()
    )


def test_labels_are_blamed_when_nothing_else_is_wrong(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", (FP32, FP16), trained=True)
    images = crops(200, seed=5)
    truth = logits(images).argmax(axis=1)
    right = check(folder, [Batch(images, truth)])
    shifted = check(folder, [Batch(images, (truth + 1) % 5)])
    assert (right.verdict.status, right.verdict.stage) == ("passed", None)
    assert (shifted.verdict.status, shifted.verdict.stage) == ("failed", "labels")
    assert shifted.verdict.sentence.endswith("First stage to look at: labels.")


def test_where_no_step_diverges_the_largest_share_is_named(clean: ParityReport) -> None:
    def refused(entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, refusal="outside its budget")

    int8 = next(entry for entry in clean.entries if entry.artifact == "int8.cpu")
    assert int8.attribution is not None
    assert int8.attribution.diverges is None
    assert failing_stage((refused(int8),), ()) == int8.attribution.largest == "int8.cpu"
