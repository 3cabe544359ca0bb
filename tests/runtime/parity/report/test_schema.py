"""The report as a value, as JSON, as text, as Markdown and as JUnit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_export.runtime.bundle.manifest import Verdict, WeightsInfo
from resnet_export.runtime.errors import SchemaError
from resnet_export.runtime.parity.attribution.stages import Stage, attribute
from resnet_export.runtime.parity.criteria.criterion import Criterion, at_least, at_most, number
from resnet_export.runtime.parity.criteria.table import CRITERIA, Evidence, describe, evaluate, unresolved
from resnet_export.runtime.parity.criteria.tolerances import TABLE, Tolerances
from resnet_export.runtime.parity.measure.comparison import Flip, compare
from resnet_export.runtime.parity.measure.labels import Labeled
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import (
    BundleIdentity,
    Check,
    Entry,
    ParityReport,
    Skipped,
    decode_report,
    encode_report,
    summarize,
)
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision, Tolerance

# What XML 1.0, Markdown, HTML and terminals each trip over, as it may stand in a file name or a native error.
HOSTILE = 'a|b`c`<script>*_[x](y)&amp;\x00\x1b[31m\ud800\ufffe@team ]]> "quoted"\nnext'


def max_drop(labeled: Labeled | None, points: float) -> Criterion:
    found = CRITERIA["max_drop"](Evidence(labeled=labeled, spec=ParitySpec(data="photos/", max_drop=points)))
    assert found is not None
    return found


def entry(artifact: str = "fp16", backend: str = "onnxruntime", noise: float = 1e-4, **changes: Any) -> Entry:
    """An entry with a golden check and, with labels, a check on data."""
    draw = np.random.default_rng(0)
    b = draw.normal(size=(32, 10))
    a = b + noise * draw.normal(size=b.shape)
    tolerance = TABLE[Precision.FP16]
    golden = compare(b, a)
    data = compare(b, a, labels=b.argmax(axis=1))
    assert data.labeled is not None
    checks = (
        Check(
            images="golden",
            reference="eager",
            reference_error=None,
            comparison=golden,
            criteria=evaluate(Evidence(figures=golden.figures, tolerance=tolerance)),
        ),
        Check(
            images="data",
            reference="onnx",
            reference_error=1.5e-6,
            comparison=data,
            criteria=(
                *evaluate(Evidence(figures=data.figures, tolerance=tolerance)),
                max_drop(data.labeled, 0.5),
            ),
        ),
    )
    stage = Stage(name="fp16", precision=Precision.FP16)
    made = Entry(
        artifact=artifact,
        sha256="0" * 64,
        backend=backend,
        provider="CPUExecutionProvider",
        version="1.31.1",
        device="cpu",
        declared=Precision.FP16,
        ran=Precision.FP16,
        held_to=Precision.FP16,
        simulated="simulated (computed in fp32)",
        tolerance=tolerance,
        notes=("something is off",),
        checks=checks,
        attribution=attribute(b, [(stage, a)], Tolerances.shipped(), f"{artifact} on {backend}"),
        error=None,
    )
    return msgspec.structs.replace(made, **changes)


def report(*entries: Entry, unverified: tuple[str, ...] = (), **changes: Any) -> ParityReport:
    made = ParityReport(
        schema=1,
        bundle=BundleIdentity(
            arch="resnet18",
            num_classes=10,
            weights=WeightsInfo(source="untrained", name="untrained", seed=7),
            exporter="dynamo",
            opset=19,
            golden="32 golden images, the bundled photographs",
            notices=("it is untrained",),
        ),
        asked=ParitySpec(data="photos/", max_drop=0.5),
        entries=entries,
        skipped=(
            Skipped(
                artifact="fp16",
                declared=Precision.FP16,
                backend="onnxruntime",
                provider="CUDAExecutionProvider",
                precision=Precision.FP16,
                reason="needs an NVIDIA GPU: there is no NVIDIA driver",
            ),
        ),
        unverified=unverified,
        notes=("it is untrained",),
        verdict=summarize(entries, unverified),
        versions={"numpy": "2.4.6"},
        times={"started": "2026-01-01T00:00:00+00:00", "seconds": 1.25, "running": {}},
    )
    return msgspec.structs.replace(made, **changes)


GOOD = entry()
BAD = entry("int8", noise=0.5)
BROKEN = entry("rtx", checks=(), attribution=None, error="could not be opened: out of memory")
ALL = report(GOOD, BAD, BROKEN)


# --- the value -------------------------------------------------------------------------------------------


def test_an_entry_passes_when_it_ran_was_compared_and_kept_every_limit() -> None:
    assert GOOD.passed
    assert not BAD.passed
    assert not BROKEN.passed
    assert not entry(checks=()).passed
    assert not entry(error="failed on validation images: out of memory").passed


def test_one_failure_among_many_fails_the_report_and_is_spelled_out() -> None:
    found = ALL.verdict
    assert (found.status, found.exit_code, ALL.exit_code) == ("failed", 1, 1)
    assert found.sentence.startswith("FAILED: 2 of 3 artifact runs outside tolerance: int8 on onnxruntime (")
    assert "centered cosine similarity 0.8" in found.sentence
    assert "rtx on onnxruntime (could not be opened: out of memory)" in found.sentence


def test_the_sentence_names_three_failures_and_counts_the_rest() -> None:
    found = summarize((BAD,) * 5, ())
    assert found.sentence.count("int8 on onnxruntime") == 3
    assert found.sentence.endswith("; and 2 more.")


def test_artifacts_that_nothing_ran_do_not_pass_with_the_rest() -> None:
    found = summarize((entry(checks=GOOD.checks[:1]),), ("engine",))
    assert (found.status, found.exit_code) == ("passed", 0)
    assert found.sentence == (
        "PASSED: 1 artifact run checked, all within tolerance. "
        "Not verified here, since nothing could run them: engine."
    )


@pytest.mark.parametrize(("entries", "unmet"), [((), ()), ((GOOD,), ("backend 'tensorrt'",))])
def test_nothing_run_or_a_request_unmet_is_not_verified(
    entries: tuple[Entry, ...], unmet: tuple[str, ...]
) -> None:
    found = summarize(entries, (), unmet)
    assert (found.status, found.exit_code) == ("unverified", 2)
    assert all(name in found.sentence for name in unmet)


def test_a_failure_weighs_more_than_what_did_not_run() -> None:
    assert summarize((BAD,), ("engine",), ("backend 'tensorrt'",)).exit_code == 1


def test_verdicts_for_the_manifest_are_valid_there_whatever_a_backend_wrote() -> None:
    made = report(GOOD, entry("fp16", error="failed: " + "x" * 5000))
    found = made.verdicts("fp16")
    assert [verdict.passed for verdict in found] == [True, False]
    assert found[0].detail.startswith("relative error 9.")
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[Verdict, ...]) == found


@pytest.mark.parametrize(
    ("value", "limit", "text_of_it"),
    [
        (0.98999, 0.99, "0.98999"),
        (0.9312, 0.99, "0.9312"),
        (0.999999, 0.99, "0.999999"),
        (1.0, 0.99, "1"),
        (0.9999999, 0.999999, "0.9999999"),
        (0.0001, 0.0001, "0.0001"),
        (0.0, 1e-4, "0"),
        (2.5591e-07, 1e-4, "2.559e-07"),
        (12020.0, 0.0, "12020"),
    ],
)
def test_a_number_has_the_digits_that_tell_it_from_its_limit(
    value: float, limit: float, text_of_it: str
) -> None:
    assert number(value, limit) == text_of_it


@settings(max_examples=200, deadline=None)
@given(limit=st.floats(1e-9, 1e3), step=st.floats(1e-9, 1e-2))
def test_what_breaks_a_limit_never_reads_like_the_limit(limit: float, step: float) -> None:
    value = limit * (1 + step)
    found = at_most("x", value, limit)
    assert not found.passed
    left, right = describe(found).split(", expected ≤ ")
    assert float(left.removeprefix("x ")) > float(right) == pytest.approx(limit, rel=1e-11)


def test_an_undefined_value_reads_as_undefined() -> None:
    assert (
        describe(at_least("centered_cosine", None, 0.99))
        == "centered cosine similarity undefined, expected ≥ 0.99"
    )


# --- JSON ------------------------------------------------------------------------------------------------


def test_json_reads_back_as_the_same_report_to_nine_digits() -> None:
    again = decode_report(encode_report(ALL))
    assert encode_report(again) == encode_report(ALL)
    assert [found.key for found in again.entries] == [found.key for found in ALL.entries]
    found, expected = again.entries[0].checks[0], GOOD.checks[0]
    assert found.criteria[1].value == pytest.approx(expected.criteria[1].value, rel=1e-8)
    assert found.passed


def test_json_is_strict_sorted_and_ends_with_a_newline() -> None:
    data = encode_report(ALL)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(data, parse_constant=refuse)
    assert list(parsed) == sorted(parsed)
    assert list(parsed["entries"][0]) == sorted(parsed["entries"][0])
    assert data.endswith(b"}\n")


def test_rounding_noise_in_the_last_digits_does_not_reach_the_json() -> None:
    nudged = msgspec.structs.replace(GOOD.tolerance, relative_error=0.01 * (1 + 1e-13))
    plain = msgspec.structs.replace(GOOD.tolerance, relative_error=0.01)
    assert encode_report(report(entry(tolerance=nudged))) == encode_report(report(entry(tolerance=plain)))


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff"])
def test_json_that_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError, match="not understood"):
        decode_report(data)


def test_a_report_of_an_older_version_reads_as_one_that_did_not_ask_for_more() -> None:
    newer = {
        *("seed", "tolerances", "layers", "weights", "batches", "words", "reference_spread", "is_reference"),
    }

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: without(item)
                for key, item in value.items()
                if key not in newer or (key == "weights" and isinstance(item, dict))
            }
        return [without(item) for item in value] if isinstance(value, list) else value

    old = decode_report(json.dumps(without(json.loads(encode_report(ALL)))).encode())
    assert (old.asked.seed, old.asked.layers, old.entries[0].checks[0].batches) == (0, "failed", ())
    assert text.render(old)


def test_json_with_a_key_that_nobody_knows_is_refused() -> None:
    changed = encode_report(ALL).replace(b'"schema": 1', b'"schema": 1, "new": 2')
    with pytest.raises(SchemaError, match="unknown field"):
        decode_report(changed)


# --- text ------------------------------------------------------------------------------------------------


def test_the_text_ends_with_the_verdict_and_shows_each_run_in_a_row() -> None:
    shown = text.render(ALL)
    assert shown.endswith(ALL.verdict.sentence + "\n")
    lines = shown.splitlines()
    golden = [line for line in lines if line.startswith(("fp16 ", "int8 "))]
    assert len(golden) == 4  # two artifacts on two sets of images
    assert golden[0].split()[-1] == "pass"
    assert golden[1].split()[-1] == "FAIL"
    assert "onnxruntime, simulated" in golden[0]


def test_the_text_says_what_was_compared_with_what_and_how_far_the_reference_itself_is_off() -> None:
    shown = text.render(ALL)
    assert "Parity of resnet18 (10 classes, untrained, seed 7)" in shown
    assert "Against eager on 32 golden images, the bundled photographs; it predicts" in shown
    assert "Against onnx on photos/ (32 images); it predicts" in shown
    assert "differs from eager by 1.5e-06 itself" in shown


def test_the_text_explains_failures_errors_notes_and_what_did_not_run() -> None:
    shown = text.render(ALL)
    assert "int8 on onnxruntime, golden images: centered cosine similarity 0." in shown
    assert "rtx on onnxruntime could not be opened: out of memory" in shown
    assert "fp16 on onnxruntime: 100 % of the error is attributed to stage fp16" in shown
    assert "1 runs on backends that this host has not" in shown
    assert "fp16: onnxruntime (CUDAExecutionProvider) needs an NVIDIA GPU" in markdown.render(ALL)
    assert "it is untrained" in shown


def test_data_that_cannot_decide_are_pointed_out_once_beside_the_verdict() -> None:
    made = report(GOOD, entry(backend="openvino"))
    doubt = unresolved(labelled_of(GOOD), 0.5)
    assert doubt is not None
    needed, _ = doubt
    assert made.verdict.sentence == (
        "PASSED: 2 artifact runs checked, all within tolerance, but 32 images are too few to resolve 0.5 points "
        f"(about {needed} would do)."
    )
    assert text.render(made).count("too few") == 1
    checks = (
        GOOD.checks[0],
        msgspec.structs.replace(GOOD.checks[1], criteria=(max_drop(labelled_of(GOOD), 0),)),
    )
    assert (
        "32 images cannot show that nothing at all is lost" in summarize((entry(checks=checks),), ()).sentence
    )


def labelled_of(found: Entry) -> Labeled:
    labeled = found.checks[1].comparison.labeled
    assert labeled is not None
    return labeled


def test_a_note_that_concerns_several_runs_stands_once() -> None:
    shown = text.render(report(GOOD, entry(backend="openvino")))
    assert shown.count("simulated (computed in fp32)") == 1
    assert "fp16 on onnxruntime, fp16 on openvino: simulated (computed in fp32)" in shown


def test_without_labels_the_accuracy_columns_are_left_out() -> None:
    golden = text.render(report(entry(checks=GOOD.checks[:1])))
    assert "accuracy" not in golden
    assert "accuracy" in text.render(report(GOOD))


def test_the_references_own_row_is_called_the_reference() -> None:
    own = msgspec.structs.replace(GOOD.checks[1], criteria=(), is_reference=True)
    shown = text.render(report(entry(checks=(GOOD.checks[0], own))))
    assert any(line.rstrip().endswith("reference") for line in shown.splitlines())


def test_a_report_in_which_nothing_ran_still_makes_sense() -> None:
    empty = report(unverified=("fp16",))
    for shown in (text.render(empty), markdown.render(empty), junit.render(empty).decode()):
        assert "NOT VERIFIED: nothing checked." in shown
        assert "needs an NVIDIA GPU" in shown


# --- Markdown --------------------------------------------------------------------------------------------


def test_the_markdown_starts_with_the_verdict_and_holds_every_criterion() -> None:
    shown = markdown.render(ALL)
    assert shown.startswith("### ❌ Parity of resnet18\n\nFAILED: 2 of 3")
    criteria = sum(len(check.criteria) for found in ALL.entries for check in found.checks)
    assert shown.count("| ✅ |") + shown.count("| ❌ |") == criteria + 1  # and the run that broke
    assert markdown.render(report(GOOD)).startswith("### ✅ Parity of resnet18")


def test_every_table_row_of_the_markdown_has_as_many_cells_as_its_header() -> None:
    width = None
    for line in markdown.render(hostile()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(line.replace("\\|", "").split("|"))
        assert width in (None, cells), line
        width = cells
    assert width is None


def test_the_markdown_never_outgrows_a_comment_and_says_when_it_left_something_out() -> None:
    many = report(*(entry(f"a{i}", noise=0.5) for i in range(60)))
    shown = markdown.render(many)
    assert len(shown) <= 60_000
    for limit in (300, 1000, 5000):
        short = markdown.render(many, limit)
        assert len(short) <= limit
        assert short.endswith("the JSON report has them all.\n")
        assert short.startswith("### ❌ Parity of resnet18")


def test_hostile_names_stay_text_in_markdown() -> None:
    shown = markdown.render(hostile())
    assert "<script>" not in shown
    assert "@team" not in shown
    assert "&lt;script&gt;" in shown


# --- JUnit -----------------------------------------------------------------------------------------------


def cases(made: ParityReport) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(junit.render(made)).iter("testcase"))


def test_junit_has_one_case_for_each_artifact_backend_and_criterion() -> None:
    names = [(case.get("classname"), case.get("name")) for case in cases(ALL)]
    assert len(names) == len(set(names))
    expected = {
        (f"{found.artifact}.onnxruntime.CPUExecutionProvider.fp16", f"{check.images}.{criterion.name}")
        for found in ALL.entries
        for check in found.checks
        for criterion in check.criteria
    }
    assert expected <= set(names)
    assert set(names) - expected == {
        ("rtx.onnxruntime.CPUExecutionProvider.fp16", "runs"),
        ("fp16.onnxruntime.CUDAExecutionProvider", "runs in fp16"),
    }


def test_junit_failures_carry_the_figures_in_the_message_and_the_rest_in_the_body() -> None:
    failure = next(
        case
        for case in cases(ALL)
        if case.get("name") == "golden.centered_cosine" and len(case.findall("failure"))
    )
    found = failure.find("failure")
    assert found is not None
    assert "int8 on onnxruntime: centered cosine similarity 0." in str(found.get("message"))
    assert "expected ≥ 0.9999" in str(found.get("message"))
    assert "of the error is attributed to stage fp16" in str(found.text)
    assert "flipped: image " in str(found.text)


def test_junit_tells_failures_from_errors_and_from_what_was_skipped() -> None:
    root = ElementTree.fromstring(junit.render(ALL))
    found = cases(ALL)
    counts = {
        tag: sum(case.find(tag) is not None for case in found) for tag in ("failure", "error", "skipped")
    }
    assert (
        counts["failure"] == sum(not c.passed for e in ALL.entries for k in e.checks for c in k.criteria) > 0
    )
    assert (counts["error"], counts["skipped"]) == (1, 1)
    suite = root[0]
    for element in (root, suite):
        assert element.get("tests") == str(len(found))
        assert element.get("failures") == str(counts["failure"])
        assert element.get("errors") == "1"
    assert suite.get("skipped") == "1"


def test_junit_reports_a_check_that_verified_nothing_as_an_error() -> None:
    empty = report(unverified=("fp16",))
    assert [case.find("error") is not None for case in cases(empty)] == [False, True]


def test_junit_is_built_of_what_the_common_schema_allows() -> None:
    # The elements and attributes of Jenkins's junit-10.xsd, as far as they are used.
    allowed = {
        "testsuites": {"name", "time", "tests", "failures", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
        "testcase": {"name", "classname"},
        "failure": {"message", "type"},
        "error": {"message", "type"},
        "skipped": {"message", "type"},
        "system-out": set(),
    }
    root = ElementTree.fromstring(junit.render(hostile()))
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= allowed[element.tag], element.tag
    for suite in root:
        assert {"name", "tests", "failures", "errors"} <= set(suite.attrib)


def hostile() -> ParityReport:
    flip = Flip(index=0, name=HOSTILE, reference=1, candidate=2, label=None, margin=1.0, near_tie=False)
    golden = BAD.checks[0]
    comparison = msgspec.structs.replace(golden.comparison, flips=(flip,), flip_count=1)
    bad = entry(HOSTILE, checks=(msgspec.structs.replace(golden, comparison=comparison),), notes=(HOSTILE,))
    return report(bad, entry(HOSTILE, error=HOSTILE), asked=ParitySpec(data=HOSTILE))


def test_hostile_text_makes_well_formed_junit_markdown_and_text() -> None:
    made = hostile()
    root = ElementTree.fromstring(junit.render(made))
    assert any("<script>" in str(case.get("classname")) for case in root.iter("testcase"))
    assert markdown.render(made)
    assert text.render(made)


def test_tolerances_of_a_report_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(encode_report(report(GOOD)))
    again = decode_report((tmp_path / "report.json").read_bytes())
    assert again.entries[0].tolerance == TABLE[Precision.FP16]
    assert isinstance(again.entries[0].tolerance, Tolerance)
