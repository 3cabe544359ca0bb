"""Every report answers first: may it be shipped, what does it cost, and what runs where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.parity import run_parity
from resnet_export.runtime.parity.measure.comparison import Batch
from resnet_export.runtime.parity.measure.image_errors import ImageErrors
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.answer import answers, caveats, headers, recommendations, table
from resnet_export.runtime.parity.report.schema import ArtifactIdentity, ParityReport
from resnet_export.runtime.parity.report.search_report import (
    PlanSummary,
    SearchReport,
    TargetVerdict,
    Validation,
)
from resnet_export.runtime.precision import Precision
from tests import parity_bundle, tiny_bundle

ENGINE = ArtifactIdentity(
    name="rtx-fp16", kind="engine", precision=Precision.FP16, target="tensorrt", bytes=10**6
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundle"), trained=True)


@pytest.fixture(scope="module")
def unlabeled(bundle: Path) -> ParityReport:
    return run_parity(bundle, threads=1)


@pytest.fixture(scope="module")
def labeled(bundle: Path) -> ParityReport:
    images = parity_bundle.crops(40, seed=3)
    labels = parity_bundle.logits(images).argmax(axis=1)
    return run_parity(bundle, batches=[Batch(images, labels)], max_drop=5, threads=1)


def test_there_is_one_row_for_each_artifact_with_the_worst_of_its_runs(unlabeled: ParityReport) -> None:
    found = answers(unlabeled)
    assert [one.artifact.name for one in found] == ["fp32", "fp16", "int8", "int8.cpu"]
    for one in found:
        entries = [entry for entry in unlabeled.entries if entry.artifact == one.artifact.name]
        checks = [check for entry in entries for check in entry.checks]
        assert one.agreement == min(check.comparison.figures.top1_agreement for check in checks)
        assert (one.status == "passed") is all(entry.passed for entry in entries)
        assert one.artifact.bytes > 0


def test_with_labels_the_row_has_accuracy_and_drop_against_the_budget(labeled: ParityReport) -> None:
    assert any("5 allowed" in header for header in headers(labeled))
    for one, cells in zip(answers(labeled), table(labeled), strict=True):
        assert one.accuracy is not None
        assert one.accuracy[0] == 1.0  # the labels are the reference's own predictions
        assert one.drop is not None
        assert one.drop[0] == pytest.approx(100 * (one.accuracy[0] - one.accuracy[1]))
        assert one.drop[1] <= one.drop[0] <= one.drop[2]
        assert f"100.00 → {100 * one.accuracy[1]:.2f}" in cells


def test_what_is_recommended_for_the_cpu_passed_there_and_is_the_fastest(unlabeled: ParityReport) -> None:
    (cpu,) = (said for said in recommendations(unlabeled) if said.startswith("CPU: "))
    speeds = {
        entry.title: unlabeled.times["running"][entry.key]
        / sum(check.comparison.figures.images + sum(check.batches) for check in entry.checks)
        for entry in unlabeled.entries
        if entry.passed and entry.simulated is None
    }
    assert cpu.startswith(f"CPU: {min(speeds, key=speeds.__getitem__)} (")


def test_an_artifact_that_failed_is_never_recommended(unlabeled: ParityReport) -> None:
    failing = msgspec.structs.replace(
        unlabeled, entries=tuple(msgspec.structs.replace(one, error="broken") for one in unlabeled.entries)
    )
    assert list(recommendations(failing)) == []
    assert {one.status for one in answers(failing)} == {"failed"}
    assert all(cells[-1] == "" for cells in table(failing))


def test_an_engine_that_nothing_here_runs_makes_a_pass_amber_and_is_named(unlabeled: ParityReport) -> None:
    identity = msgspec.structs.replace(unlabeled.bundle, artifacts=(*unlabeled.bundle.artifacts, ENGINE))
    assert not unlabeled.amber
    report = msgspec.structs.replace(unlabeled, bundle=identity, unverified=("rtx-fp16",))
    assert report.amber
    assert answers(report)[-1].status == "unverified"
    assert any("1 engine not verified on this host" in said for said in recommendations(report))
    assert markdown.render(report).startswith("### ⚠️")


def test_the_answer_is_the_last_of_the_terminal_and_the_first_of_the_comment(labeled: ParityReport) -> None:
    shown = text.render(labeled)
    assert shown.endswith(text.answer(labeled) + "\n")
    comment = markdown.render(labeled)
    assert comment.index("runs on") < comment.index("Against ")


def test_a_drop_on_images_that_int8_was_fitted_to_says_so_unless_others_judged(
    unlabeled: ParityReport, labeled: ParityReport
) -> None:
    fitted = Validation(
        images=256,
        non_finite=0,
        snr_db=30.0,
        centered_cosine=0.99,
        agreement=99.0,
        accuracy_drop=0.4,
        by_image=ImageErrors(
            median_error=0.01, p90_error=0.1, p90_divergence=0.0, far=0, spread=1.0, typical_error=0.01
        ),
        outside=(),
    )
    search = SearchReport(
        images=256,
        held_out=64,
        steps=(),
        methods=(),
        method="mse",
        layers=(),
        rankings=(),
        mixed_precision=(),
        verdicts=(TargetVerdict(target="cpu", limit="", validation=fitted, most_sensitive=()),),
        plan=PlanSummary(
            method="mse", methods={}, excluded={}, equalization=(), weights={}, bias_corrections={}
        ),
        notices=(),
    )
    (caveat,) = caveats(msgspec.structs.replace(unlabeled, int8=search))
    assert caveat.startswith("int8.cpu loses 0.40 points on 256 calibration images")
    assert list(caveats(msgspec.structs.replace(labeled, int8=search))) == []


def test_a_failure_begins_with_where_it_begins_and_names_the_classes_that_changed(tmp_path: Path) -> None:
    graphs = {"fp16": tiny_bundle.graph(tiny_bundle.FP16)}  # without the bias
    report = run_parity(parity_bundle.write(tmp_path / "bundle", graphs=graphs), threads=1)
    assert report.verdict.headline.startswith("probable cause stage ")
    assert report.verdict.headline in junit.render(report).decode()
    labels = read_manifest(tmp_path / "bundle").labels
    for entry in report.entries:
        for check in entry.checks:
            for flip in check.comparison.flips:
                assert report.class_names[str(flip.reference)] == labels[flip.reference]


def test_too_few_images_are_no_fault_of_an_artifact(bundle: Path) -> None:
    images = parity_bundle.crops(40, seed=3)
    labels = parity_bundle.logits(images).argmax(axis=1)
    report = run_parity(
        bundle, batches=[Batch(images, labels)], max_drop=3, strict=True, artifacts=["fp16"], threads=1
    )
    assert (report.exit_code, report.verdict.stage) == (1, "data")
    assert report.verdict.headline.startswith("probable cause too few images; ")
