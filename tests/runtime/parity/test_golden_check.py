"""The golden images go through every run at every size of batch that the bundle promises."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    BatchRange,
    encode_manifest,
    read_manifest,
)
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.parity import run_parity
from resnet_export.runtime.parity.criteria.tolerances import parse_overrides, reproduction_limit
from resnet_export.runtime.parity.golden_check import batch_slices, full_batches, reproduction
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import Check, ParityReport
from tests.parity_bundle import COUNT, crops, graph, logits, write
from tests.tiny_bundle import FP16, FP32, INT8_CPU

sizes = st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40)).map(
    lambda found: BatchRange(min=found[0], opt=found[0] + found[1], max=sum(found))
)


@given(count=st.integers(1, 64), batch=sizes)
def test_the_slices_cover_every_image_once_in_order(count: int, batch: BatchRange) -> None:
    parts = list(batch_slices(count, batch))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start <= batch.max for part in parts)


@given(count=st.integers(1, 64), batch=sizes)
def test_slices_and_full_batches_together_have_every_size_of_the_bundle(
    count: int, batch: BatchRange
) -> None:
    cut = {part.stop - part.start for part in batch_slices(count, batch)}
    full = [len(rows) for rows in full_batches(count, batch)]
    assert {batch.min, batch.opt, batch.max} <= cut | set(full)
    assert not cut & set(full)
    assert len(full) == len(set(full))


@given(count=st.integers(1, 64), batch=sizes)
def test_full_batches_repeat_images_in_turn(count: int, batch: BatchRange) -> None:
    for rows in full_batches(count, batch):
        assert rows.tolist() == [i % count for i in range(len(rows))]


def wrong_at(size: int) -> bytes:
    """The fp32 graph, but that its logits are zero for batches of exactly `size` images."""
    model = onnx.load_from_string(graph())
    last = model.graph.node[-1]
    for name, value in (("place", np.int64(0)), ("size", np.int64(size)), ("zero", np.float32(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    added = [
        helper.make_node("Shape", [last.input[0]], ["shape"]),
        helper.make_node("Gather", ["shape", "place"], ["count"]),
        helper.make_node("Equal", ["count", "size"], ["bad"]),
        helper.make_node("Where", ["bad", "zero", last.input[0]], ["spoilt"]),
    ]
    last.input[0] = "spoilt"
    for place, node in enumerate(added, len(model.graph.node) - 1):
        model.graph.node.insert(place, node)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def bundle(folder: Path, batch: BatchRange, fp32: bytes | None = None) -> Path:
    """A bundle of one graph that promises these batches."""
    write(folder, (FP32,), graphs={} if fp32 is None else {"fp32": fp32}, trained=True)
    manifest = msgspec.structs.replace(read_manifest(folder), batch=batch)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return folder


def golden(report: ParityReport) -> Check:
    (entry,) = report.entries
    found = entry.check("golden")
    assert found is not None
    return found


def broken(report: ParityReport) -> list[str]:
    return [criterion.name for criterion in golden(report).criteria if not criterion.passed]


def check(folder: Path, **options: object) -> ParityReport:
    return run_parity(folder, backends=["onnxruntime"], threads=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "full"),
    [
        (BatchRange(1, 8, 32), (32,)),
        (BatchRange(1, 32, 64), (32, 64)),
        (BatchRange(1, 4, 8), ()),
        (BatchRange(8, 8, 8), ()),
        (BatchRange(40, 50, 60), (40, 50, 60)),
    ],
    ids=str,
)
def test_a_healthy_graph_passes_at_every_size(
    tmp_path: Path, batch: BatchRange, full: tuple[int, ...]
) -> None:
    report = check(bundle(tmp_path / "b", batch))
    assert (report.exit_code, golden(report).batches) == (0, full)
    names = [criterion.name for criterion in golden(report).criteria]
    assert ("full_batches" in names) == bool(full)
    assert golden(report).comparison.figures.images == COUNT


@pytest.mark.parametrize(
    ("batch", "size"), [(BatchRange(1, 8, 32), 32), (BatchRange(1, 32, 64), 64), (BatchRange(1, 32, 64), 32)]
)
def test_a_graph_that_is_wrong_at_one_size_alone_fails(tmp_path: Path, batch: BatchRange, size: int) -> None:
    report = check(bundle(tmp_path / "b", batch, wrong_at(size)))
    assert (report.exit_code, broken(report)) == (1, ["full_batches"])
    found = next(one for one in golden(report).criteria if one.name == "full_batches")
    assert (found.value, found.limit) == (pytest.approx(1.0), report.entries[0].tolerance.relative_error)
    assert str(size) in found.detail
    assert report.verdict.stage == "backend"
    for rendered in (text.render(report), markdown.render(report), junit.render(report).decode()):
        assert "batches 1, expected ≤ 0.0001" in rendered
    names = {case.get("name") for case in ElementTree.fromstring(junit.render(report)).iter("testcase")}
    assert "golden.full_batches" in names


@given(own=st.floats(0, 10))
def test_two_independent_samples_of_the_same_rounding_are_within_the_limit(own: float) -> None:
    assert reproduction_limit(own) >= max(2 * np.sqrt(2) * own, 0.01)


def test_every_backend_reproduces_the_recorded_int8_logits_of_a_clean_artifact(tmp_path: Path) -> None:
    report = run_parity(
        write(tmp_path / "b", (FP32, INT8_CPU), trained=True), artifacts=["int8.cpu"], threads=1
    )
    assert {found.backend for found in report.entries} == {"onnxruntime", "openvino"}
    for found in report.entries:
        (criterion,) = [one for one in found.checks[0].criteria if one.name == "matches_recorded"]
        assert criterion.passed, found.title


def test_an_int8_artifact_that_is_not_what_was_recorded_fails_though_it_is_within_its_limits(
    tmp_path: Path,
) -> None:
    # As if the file had been changed: what was recorded had an error of 0.002, what runs has ten times as much.
    recorded = {"int8.cpu": (1.002 * logits(crops())).astype(np.float32)}
    folder = write(tmp_path / "b", (FP32, INT8_CPU), recorded=recorded, trained=True)
    report = check(folder, artifacts=["int8.cpu"])
    assert (report.exit_code, broken(report), report.verdict.stage) == (1, ["matches_recorded"], "backend")
    assert "logits recorded at export" in text.render(report)


def test_images_that_own_the_energy_do_not_excuse_a_backend_on_all_others() -> None:
    rng = np.random.default_rng(0)
    eager = rng.normal(size=(20, 5)).astype(np.float32)
    eager[3] *= 50
    known = eager + np.float32(0.01) * rng.normal(size=eager.shape).astype(np.float32)
    known[3] = 0.1 * eager[3]  # INT8 clips it, as it may
    found = known + np.float32(0.2) * rng.normal(size=eager.shape).astype(np.float32)
    same, other = (reproduction(eager, known, logits) for logits in (known, found))
    assert same is not None
    assert other is not None
    assert same.own == pytest.approx(0.01, rel=0.3)
    assert (same.error, other.error > other.limit) == (0, True)


def test_a_limit_on_the_error_that_is_dropped_drops_the_reproduction_too(tmp_path: Path) -> None:
    recorded = {"int8.cpu": (1.002 * logits(crops())).astype(np.float32)}
    folder = write(tmp_path / "b", (FP32, INT8_CPU), recorded=recorded, trained=True)
    report = check(folder, artifacts=["int8.cpu"], tolerances={"int8": {"relative_error": None}})
    assert (report.exit_code, broken(report)) == (0, [])


def test_artifacts_whose_full_batches_are_known_do_not_run_them_again(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", BatchRange(1, 8, 32), wrong_at(32))
    assert golden(check(folder, full_batches_known=["fp32"])).batches == ()
    assert golden(check(folder, full_batches_known=["fp16"])).batches == (32,)


def test_a_graph_that_is_wrong_at_a_size_of_the_single_pass_fails_by_its_figures(tmp_path: Path) -> None:
    report = check(bundle(tmp_path / "b", BatchRange(1, 8, 32), wrong_at(8)))
    assert {"relative_error", "full_batches"} <= set(broken(report))


def test_without_a_limit_on_the_relative_error_batches_are_not_judged(tmp_path: Path) -> None:
    limits = parse_overrides(b'{"fp32": {"relative_error": null}}')
    report = check(bundle(tmp_path / "b", BatchRange(1, 8, 32), wrong_at(32)), tolerances=limits)
    assert (report.exit_code, golden(report).batches) == (0, (32,))
    assert "full_batches" not in [criterion.name for criterion in golden(report).criteria]


@pytest.mark.filterwarnings("error")
def test_a_recorded_stage_that_is_not_finite_fails_the_artifacts_behind_it(tmp_path: Path) -> None:
    simplified = logits(crops())
    simplified[3, 1], simplified[7] = np.nan, np.inf
    folder = write(tmp_path / "b", (FP32, FP16), recorded={"simplified": simplified}, trained=True)
    report = check(folder)
    assert (report.exit_code, report.verdict.stage) == (1, "simplified")
    for entry in report.entries:
        (failed,) = [one for one in entry.checks[0].criteria if not one.passed]
        assert (failed.name, failed.value) == ("recorded_finite", 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_eager_logits_that_are_not_finite_are_no_evidence(tmp_path: Path, value: float) -> None:
    eager = logits(crops())
    eager[0, 0] = value
    folder = write(tmp_path / "b", (FP32,), recorded={"eager": eager})
    with pytest.raises(BundleError, match="eager logits hold NaN or infinity"):
        check(folder)
