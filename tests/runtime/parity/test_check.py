"""The gate on a bundle that really runs: what passes, what fails, and how a fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from resnet_export.runtime.errors import (
    BundleError,
    DatasetError,
    IntegrityError,
    NoBackendError,
    RequestError,
)
from resnet_export.runtime.parity import check as gate
from resnet_export.runtime.parity.check import run_parity
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.tolerances import Override, Tolerances, parse_overrides
from resnet_export.runtime.parity.measure.comparison import Batch
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import Entry, ParityReport, decode_report, encode_report
from resnet_export.runtime.precision import Precision, Tolerance
from tests.parity_bundle import COUNT, crops, graph, logits, write
from tests.tiny_bundle import CLASSES, FP16, FP32, INT8_CPU, LABELS, SIDE, graph_that_engines_refuse

ORT = ("onnxruntime",)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four artifacts, clean, of an untrained network."""
    return write(tmp_path_factory.mktemp("clean") / "tiny")


@pytest.fixture(scope="module")
def clean(bundle: Path) -> ParityReport:
    return run_parity(bundle, threads=1)


def labeled(count: int = 200, wrong: int = 5, size: int = 16, shift: int = 0) -> Iterator[Batch]:
    """Batches of crops with the labels that the fp32 graph gives them, but for every `wrong`-th."""
    images = crops(count, seed=9)
    labels = logits(images).argmax(axis=1)
    labels[::wrong] = (labels[::wrong] + 2) % CLASSES
    labels = (labels + shift) % CLASSES
    for start in range(0, count, size):
        part = slice(start, start + size)
        names = tuple(f"{i}.jpg" for i in range(start, min(start + size, count)))
        yield Batch(images[part], labels[part], names)


def entry(report: ParityReport, artifact: str, backend: str = "onnxruntime") -> Entry:
    return next(found for found in report.entries if (found.artifact, found.backend) == (artifact, backend))


def failed(found: Entry, images: str = "golden") -> list[str]:
    return [
        c.name for check in found.checks if check.images == images for c in check.criteria if not c.passed
    ]


def criterion(found: Entry, images: str, name: str) -> Criterion:
    return next(
        c for check in found.checks if check.images == images for c in check.criteria if c.name == name
    )


def changed(data: bytes, edit: Callable[[dict[str, np.ndarray]], None]) -> bytes:
    """The graph with its initializers edited, by name, in place."""
    model = onnx.load_from_string(data)
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    edit(arrays)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    result: bytes = model.SerializeToString()
    return result


def swap_channels(arrays: dict[str, np.ndarray]) -> None:
    first = next(name for name, array in arrays.items() if array.ndim == 4)
    arrays[first] = arrays[first][:, ::-1]


def overflow(arrays: dict[str, np.ndarray]) -> None:
    first = next(name for name, array in arrays.items() if array.ndim == 4)
    arrays[first][0] = np.float16(np.inf)  # what a weight becomes that fp16 cannot hold: infinity


def test_a_clean_bundle_passes_with_every_artifact_on_every_backend(clean: ParityReport) -> None:
    assert {(found.artifact, found.backend) for found in clean.entries} == {
        (artifact, backend)
        for artifact in ("fp32", "fp16", "int8", "int8.cpu")
        for backend in ("onnxruntime", "openvino")
    }
    assert clean.verdict.status == "passed"
    assert clean.exit_code == 0
    assert clean.unverified == ()
    assert all(found.passed for found in clean.entries)


def test_the_figures_are_those_of_onnx_runtime_driven_by_hand(clean: ParityReport) -> None:
    images = crops()
    eager, half = logits(images), logits(images, graph(FP16))
    found = entry(clean, "fp16").checks[0].comparison.figures
    difference = np.linalg.norm(half.astype(np.float64) - eager)
    assert found.relative_error == pytest.approx(
        difference / np.linalg.norm(eager.astype(np.float64)), rel=1e-9
    )
    assert found.top1 == (half.argmax(axis=1) == eager.argmax(axis=1)).sum()
    assert found.reference_classes == len(set(eager.argmax(axis=1))) > 2


def test_entries_say_what_really_ran_and_what_a_cpu_only_emulates(clean: ParityReport) -> None:
    half, int8 = entry(clean, "fp16"), entry(clean, "int8.cpu", "openvino")
    assert half.simulated == "simulated (computed in fp32)"
    assert (half.declared, half.ran, half.held_to) == (Precision.FP16,) * 3
    assert int8.simulated is None
    assert (int8.device, int8.provider, int8.ran) == ("cpu", "CPU", Precision.INT8)
    assert int8.version in clean.versions.values()


def test_what_this_host_cannot_run_is_skipped_with_its_reason_and_not_passed(clean: ParityReport) -> None:
    gpu = [item for item in clean.skipped if item.provider == "CUDAExecutionProvider"]
    assert {item.artifact for item in gpu} == {"fp32", "fp16", "int8", "int8.cpu"}
    assert all("onnxruntime-gpu" in item.reason or "GPU" in item.reason for item in gpu)
    assert not {found.provider for found in clean.entries} & {"CUDAExecutionProvider"}


def test_each_entry_names_the_step_that_most_of_its_error_comes_from(clean: ParityReport) -> None:
    found = entry(clean, "fp16").attribution
    assert found is not None
    assert [stage.stage for stage in found.stages] == ["onnx", "simplified", "fp16", "backend"]
    assert found.largest == "fp16"
    assert found.diverges is None
    assert found.residual is not None
    assert found.bound is not None
    assert found.residual <= found.bound
    int8 = entry(clean, "int8.cpu", "openvino").attribution
    assert int8 is not None
    assert int8.largest == "int8.cpu"


def test_the_verdicts_for_the_manifest_are_one_for_each_backend_that_ran(clean: ParityReport) -> None:
    found = clean.verdicts("int8.cpu")
    assert {verdict.backend for verdict in found} == {"onnxruntime", "openvino"}
    assert all(verdict.passed and "centered cosine" in verdict.detail for verdict in found)
    assert clean.verdicts("no such artifact") == ()


def test_the_same_bundle_gives_the_same_json_but_for_the_times(bundle: Path, clean: ParityReport) -> None:
    def timeless(report: ParityReport) -> bytes:
        return encode_report(msgspec.structs.replace(report, times={}))

    again = run_parity(bundle, threads=1)
    assert timeless(again) == timeless(clean)
    assert set(again.times) == {"started", "seconds", "running"}
    assert set(again.times["running"]) == {found.key for found in again.entries}


def test_a_fault_in_an_artifact_fails_it_and_is_traced_past_the_recorded_stages(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16), graphs={"fp16": changed(graph(FP16), swap_channels)})
    report = run_parity(folder, backends=ORT, threads=1)
    assert report.exit_code == 1
    assert entry(report, "fp32").passed
    broken = entry(report, "fp16")
    assert "centered_cosine" in failed(broken)
    assert broken.attribution is not None
    assert broken.attribution.diverges == "backend"
    assert "fp16 on onnxruntime (" in report.verdict.sentence
    assert [verdict.passed for verdict in report.verdicts("fp16")] == [False]


def test_a_fault_of_the_exporter_is_traced_to_the_stage_that_it_was_recorded_in(tmp_path: Path) -> None:
    wrong = changed(graph(), swap_channels)
    recorded = dict.fromkeys(("simplified", "fp32"), logits(crops(), wrong))
    folder = write(tmp_path / "tiny", (FP32,), graphs={"fp32": wrong}, recorded=recorded)
    report = run_parity(folder, backends=ORT, threads=1)
    found = entry(report, "fp32").attribution
    assert report.exit_code == 1
    assert found is not None
    assert found.diverges == found.largest == "simplified"


def test_a_weight_that_overflowed_fails_as_not_finite_and_spoils_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16), graphs={"fp16": changed(graph(FP16), overflow)})
    report = run_parity(folder, backends=ORT, threads=1)
    broken = entry(report, "fp16")
    assert "finite" in failed(broken)
    assert broken.checks[0].comparison.figures.non_finite == COUNT
    assert broken.attribution is not None
    assert "NaN or infinity first appears in the backend" in broken.attribution.sentence
    assert decode_report(encode_report(report)).entries[1].checks[0].comparison.figures.relative_error is None


def test_a_frozen_batch_axis_is_found_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16), graphs={"fp16": graph(FP16, batch=1)})
    report = run_parity(folder, threads=1)
    for backend in ("onnxruntime", "openvino"):
        broken = entry(report, "fp16", backend)
        assert broken.error is not None
        assert not broken.passed
        assert "\n" not in broken.error
    assert report.exit_code == 1


def test_an_artifact_that_a_backend_refuses_fails_rather_than_being_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16), graphs={"fp16": graph_that_engines_refuse()})
    report = run_parity(folder, threads=1)
    assert {found.error is None for found in report.entries if found.artifact == "fp16"} == {False}
    assert "could not be opened" in str(entry(report, "fp16").error)
    assert "fp16" not in {item.artifact for item in report.skipped if item.backend == "openvino"}
    assert report.exit_code == 1


def test_a_damaged_file_is_no_parity_question(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32,))
    (folder / "model.fp32.onnx").write_bytes(graph(FP16))
    with pytest.raises(IntegrityError):
        run_parity(folder)


def test_a_bundle_that_is_replaced_during_the_check_is_not_judged(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16))
    other = write(tmp_path / "other", (FP32, FP16), trained=True)

    def progress(items: object, description: str, total: int | None = None) -> Iterator[object]:
        shutil.copytree(other, folder, dirs_exist_ok=True)
        yield from items  # type: ignore[misc]

    with pytest.raises(BundleError, match="replaced while it was checked"):
        run_parity(folder, backends=ORT, progress=progress, threads=1)


def test_further_images_are_compared_with_the_fp32_graph(bundle: Path) -> None:
    report = run_parity(bundle, batches=labeled(), data="photos", backends=ORT, threads=1)
    check = entry(report, "fp16").check("data")
    assert check is not None
    assert check.reference == "onnx"
    golden = entry(report, "fp32").check("golden")
    assert golden is not None
    assert check.reference_error == golden.comparison.figures.relative_error
    images = crops(200, seed=9)
    expected = logits(images, graph(FP16)).argmax(axis=1) == logits(images).argmax(axis=1)
    assert check.comparison.figures.top1 == expected.sum()
    assert check.comparison.labeled is not None
    assert check.comparison.labeled.reference_accuracy == pytest.approx(0.8)


def test_the_reference_shows_its_own_accuracy_and_is_not_compared_with_itself(bundle: Path) -> None:
    report = run_parity(bundle, batches=labeled(), backends=ORT, threads=1)
    check = entry(report, "fp32").check("data")
    assert check is not None
    assert check.comparison.labeled is not None
    assert check.comparison.labeled.drop_points == 0
    assert check.criteria == ()


def test_without_labels_the_reference_has_nothing_to_show(bundle: Path) -> None:
    report = run_parity(bundle, batches=[Batch(crops(8))], backends=ORT, threads=1)
    assert entry(report, "fp32").check("data") is None
    check = entry(report, "fp16").check("data")
    assert check is not None
    assert check.comparison.labeled is None


def test_an_eager_model_can_be_the_reference_instead(bundle: Path) -> None:
    calls: list[int] = []

    def eager(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return np.zeros((len(images), CLASSES)) + np.arange(CLASSES) * images.mean(axis=(1, 2, 3))[:, None]

    report = run_parity(bundle, batches=[Batch(crops(20))], eager=eager, backends=ORT, threads=1)
    assert calls == [20]
    check = entry(report, "fp32").check("data")
    assert check is not None
    assert (check.reference, check.reference_error, check.passed) == ("eager", None, False)


def test_the_reference_runs_even_when_it_was_not_asked_for(bundle: Path) -> None:
    report = run_parity(bundle, batches=labeled(), artifacts=["fp16"], backends=["openvino"], threads=1)
    assert [found.artifact for found in report.entries] == ["fp32", "fp16"]
    assert "not requested" in entry(report, "fp32").notes[-1]
    assert entry(report, "fp16", "openvino").check("data") is not None


def test_a_reference_that_failed_its_golden_check_is_not_compared_with(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16), graphs={"fp32": changed(graph(), swap_channels)})
    report = run_parity(folder, batches=labeled(), backends=ORT, threads=1)
    assert report.exit_code == 1
    assert any("their reference, failed against golden" in note for note in report.notes)
    assert entry(report, "fp16").check("data") is None


def test_an_accuracy_drop_beyond_the_users_limit_fails_and_within_it_passes(bundle: Path) -> None:
    def run(points: float) -> Entry:
        report = run_parity(
            bundle, batches=labeled(), artifacts=["int8.cpu"], backends=ORT, max_drop=points, threads=1
        )
        return entry(report, "int8.cpu")

    strict, loose = run(0.5), run(50)
    assert "max_drop" in failed(strict, "data")
    assert "max_drop" not in failed(loose, "data")
    assert criterion(strict, "data", "max_drop").limit == 0.5


def test_a_small_data_set_is_said_to_be_too_small_for_the_limit(bundle: Path) -> None:
    report = run_parity(
        bundle, batches=labeled(40), artifacts=["fp16"], backends=ORT, max_drop=0.5, threads=1
    )
    found = criterion(entry(report, "fp16"), "data", "max_drop")
    assert "40 images are too few to resolve 0.5 points (about " in found.detail


def test_shifted_labels_fail_a_trained_network_and_no_untrained_one(tmp_path: Path) -> None:
    for trained in (True, False):
        folder = write(tmp_path / f"{trained}", (FP32, FP16), trained=trained)
        right = run_parity(folder, batches=labeled(), backends=ORT, threads=1)
        shifted = run_parity(folder, batches=labeled(shift=1), backends=ORT, threads=1)
        assert "labels_fit" not in failed(entry(right, "fp16"), "data")
        assert ("labels_fit" in failed(entry(shifted, "fp16"), "data")) is trained


def test_near_ties_count_as_agreement_for_an_untrained_network_only(tmp_path: Path) -> None:
    # The tiny network has no redundancy: int8 flips one prediction in ten, all of them near ties.
    strict = parse_overrides(b'{"int8": {"top1_agreement": 0.99}}')
    found = {}
    for trained in (True, False):
        folder = write(tmp_path / f"{trained}", (FP32, INT8_CPU), trained=trained)
        data = [Batch(crops(300, seed=4))]
        report = run_parity(folder, batches=data, backends=ORT, tolerances=strict, threads=1)
        found[trained] = "top1_agreement" in failed(entry(report, "int8.cpu"), "data")
    assert found == {True: True, False: False}


def test_the_users_agreement_is_demanded_of_the_data_or_else_of_the_golden_images(bundle: Path) -> None:
    without = run_parity(bundle, artifacts=["fp16"], backends=ORT, min_agreement=100, threads=1)
    found = criterion(entry(without, "fp16"), "golden", "min_agreement")
    top1 = entry(without, "fp16").checks[0].comparison.figures.top1
    assert found.passed is (top1 == COUNT)
    having = run_parity(
        bundle, batches=labeled(), artifacts=["fp16"], backends=ORT, min_agreement=90, threads=1
    )
    assert criterion(entry(having, "fp16"), "data", "min_agreement").passed
    assert "min_agreement" not in [c.name for c in entry(having, "fp16").checks[0].criteria]


def test_an_accuracy_that_is_demanded_is_demanded_of_the_reference_too(bundle: Path) -> None:
    # One label in five is wrong on purpose: the fp32 graph is right on 80 %.
    options: dict[str, Any] = {"backends": ORT, "artifacts": ["fp32", "fp16"], "threads": 1}
    assert run_parity(bundle, batches=labeled(), min_accuracy=75, **options).exit_code == 0
    report = run_parity(bundle, batches=labeled(), min_accuracy=85, **options)
    assert {found.artifact for found in report.entries if found.passed} == set()
    assert criterion(entry(report, "fp32"), "data", "min_accuracy").value == pytest.approx(80)
    assert "demanded top-1 accuracy 80 %, expected ≥ 85 %" in report.verdict.sentence
    # What fp32 lacks no artifact has lost.
    assert report.verdict.stage == "labels"
    assert "every run is below the accuracy demanded" in report.verdict.sentence
    alone = run_parity(bundle, batches=labeled(), min_accuracy=85, **(options | {"artifacts": ["fp32"]}))
    assert (alone.exit_code, failed(entry(alone, "fp32"), "data")) == (1, ["min_accuracy"])
    with pytest.raises(
        DatasetError, match="min_accuracy was given, and the images of validation images have no labels"
    ):
        run_parity(bundle, batches=[Batch(crops(4))], min_accuracy=85, **options)


def test_an_artifact_alone_below_the_accuracy_demanded_is_to_blame_for_it(tmp_path: Path) -> None:
    def roll(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if array.ndim and array.shape[0] == CLASSES:
                arrays[name] = np.roll(array, 1, axis=0)

    folder = write(tmp_path / "b", (FP32, FP16), trained=True)
    clean = (folder / "model.fp16.onnx").read_bytes()
    spoilt = write(tmp_path / "s", (FP32, FP16), graphs={"fp16": changed(clean, roll)}, trained=True)
    report = run_parity(spoilt, batches=labeled(), min_accuracy=75, backends=ORT, threads=1)
    assert "min_accuracy" not in failed(entry(report, "fp32"), "data")
    assert "min_accuracy" in failed(entry(report, "fp16"), "data")
    assert report.verdict.stage != "labels"


def test_limits_of_the_user_replace_those_of_the_bundle(bundle: Path) -> None:
    strict = parse_overrides(b'{"fp16": {"relative_error": 1e-9}}')
    report = run_parity(bundle, artifacts=["fp16"], backends=ORT, tolerances=strict, threads=1)
    assert failed(entry(report, "fp16")) == ["relative_error"]
    assert entry(report, "fp16").tolerance.relative_error == 1e-9


def test_the_limits_in_the_manifest_are_the_ones_that_hold(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", (FP32, FP16))
    manifest = read_manifest(folder)
    tight = {
        **manifest.tolerances,
        "fp16": msgspec.structs.replace(manifest.tolerances["fp16"], relative_error=0.0),
    }
    changed_manifest = msgspec.structs.replace(manifest, tolerances=tight)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed_manifest))
    report = run_parity(folder, backends=ORT, threads=1)
    assert failed(entry(report, "fp16")) == ["relative_error"]


def test_bf16_is_checked_when_it_is_asked_for_and_held_to_its_own_limits(bundle: Path) -> None:
    report = run_parity(bundle, precisions=[Precision.BF16], threads=1)
    assert all(found.held_to is found.ran is Precision.BF16 for found in report.entries)
    assert all(item.precision is Precision.BF16 for item in report.skipped)
    assert len(report.entries) + len(report.skipped) == 1


@pytest.mark.parametrize("limit", [1, 16, 17, 200, 999])
def test_the_limit_counts_images_and_not_batches(bundle: Path, limit: int) -> None:
    report = run_parity(bundle, batches=labeled(), artifacts=["fp16"], backends=ORT, limit=limit, threads=1)
    check = entry(report, "fp16").check("data")
    assert check is not None
    assert check.comparison.figures.images == min(limit, 200)


def test_nothing_beyond_the_limit_is_read(bundle: Path) -> None:
    def batches() -> Iterator[Batch]:
        yield from list(labeled())[:2]
        raise AssertionError("read on")

    run_parity(bundle, batches=batches(), artifacts=["fp16"], backends=ORT, limit=32, threads=1)


def test_progress_sees_each_run_and_each_batch(bundle: Path) -> None:
    seen: dict[str, int] = {}

    def progress(items: object, description: str, total: int | None = None) -> Iterator[object]:
        for item in items:  # type: ignore[attr-defined]
            seen[description] = seen.get(description, 0) + 1
            yield item

    run_parity(bundle, batches=labeled(40), artifacts=["fp16"], backends=ORT, progress=progress, threads=1)
    assert seen == {"golden images": 2, "validation images": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.5}, "max_drop was given without data"),
        ({"max_drop": -1.0, "batches": []}, "percentage points from 0 to 100"),
        ({"max_drop": float("nan"), "batches": []}, "percentage points from 0 to 100"),
        ({"min_agreement": 101.0}, "percent from 0 to 100"),
        ({"limit": 0}, "at least one image"),
        ({"artifacts": []}, "artifacts is empty"),
        ({"backends": []}, "backends is empty"),
        ({"backends": ["tflite"]}, "there is no backend 'tflite'"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    bundle: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        run_parity(bundle, **options)  # type: ignore[arg-type]


def test_an_artifact_that_does_not_exist_is_named_beside_those_that_do(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no artifact 'fp8'; it has fp32, fp16, int8, int8\.cpu"):
        run_parity(bundle, artifacts=["fp8"])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "there is no image in photos"),
        ([Batch(np.zeros((0, SIDE, SIDE, 3), np.uint8))], {}, "there is no image in photos"),
        ([Batch(crops(2))], {"max_drop": 1.0}, "the images of photos have no labels"),
        ([Batch(crops(2), [0, CLASSES])], {}, "image 1 has label 5"),
    ],
)
def test_data_that_cannot_be_judged_by_is_refused(
    bundle: Path, data: list[Batch], options: dict[str, float], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        run_parity(bundle, batches=data, data="photos", artifacts=["fp16"], backends=ORT, **options)  # type: ignore[arg-type]


def test_a_backend_that_was_asked_for_and_runs_nothing_is_no_pass(bundle: Path) -> None:
    report = run_parity(bundle, backends=["onnxruntime", "tensorrt"], artifacts=["fp32"], threads=1)
    assert report.verdict.status == "unverified"
    assert report.exit_code == 2
    assert "backend 'tensorrt'" in report.verdict.sentence
    assert entry(report, "fp32").passed


def test_a_host_without_any_backend_passes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = msgspec.structs.replace(gate.probe(), packages=())
    monkeypatch.setattr(gate, "probe", lambda **_: bare)
    report = run_parity(bundle)
    assert report.entries == ()
    assert report.unverified == ("fp32", "fp16", "int8", "int8.cpu")
    assert report.verdict.status == "unverified"
    assert report.exit_code == 2
    with pytest.raises(NoBackendError, match="nothing on this host runs it"):
        run_parity(bundle, batches=labeled())


def test_a_reference_that_predicts_one_class_is_pointed_out(tmp_path: Path) -> None:
    def flatten(arrays: dict[str, np.ndarray]) -> None:
        arrays["bias"] = np.float32([0, 0, 0, 0, -1e4])

    same = changed(graph(), flatten)
    recorded = dict.fromkeys(("eager", "onnx", "simplified"), logits(crops(), same))
    folder = write(tmp_path / "tiny", (FP32,), graphs={"fp32": same}, recorded=recorded)
    report = run_parity(folder, backends=ORT, threads=1)
    assert any("predicts only 1 of the classes" in note for note in report.notes)


# What cannot be applied


@pytest.mark.parametrize(
    "options", [{"min_agreement": 100}, {"max_drop": 0}, {"max_drop": 1, "min_agreement": 1}]
)
def test_a_limit_that_nothing_would_be_held_to_is_refused_before_the_work(
    bundle: Path, options: dict[str, float]
) -> None:
    def data() -> Iterator[Batch]:
        raise AssertionError("the data were read")
        yield

    with pytest.raises(RequestError) as found:
        run_parity(bundle, batches=data(), data="photos", artifacts=["fp32"], backends=ORT, **options)  # type: ignore[arg-type]
    said = str(found.value)
    assert said.startswith(" and ".join(options))
    assert "fp32 on onnxruntime, the reference of photos, is all that would run" in said
    assert "--reference eager (with --weights" in said


def test_data_that_are_compared_with_nothing_are_said_to_be_in_every_output(bundle: Path) -> None:
    options: dict[str, Any] = {"data": "photos", "artifacts": ["fp32"], "backends": ORT, "threads": 1}
    for data in (labeled(40), iter([Batch(crops(8))])):
        report = run_parity(bundle, batches=data, **options)
        assert report.exit_code == 0
        assert said_everywhere(
            report, "photos were compared with nothing: fp32 on onnxruntime, their reference"
        )
    both = run_parity(bundle, batches=labeled(40), **(options | {"artifacts": ["fp16"]}))
    assert not any("compared with nothing" in note for note in both.notes)


def test_the_reference_alone_can_be_held_to_an_eager_network(bundle: Path) -> None:
    def eager(inputs: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(graph(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"input": inputs})[0])

    report = run_parity(
        bundle,
        batches=labeled(40),
        artifacts=["fp32"],
        backends=ORT,
        eager=eager,
        min_agreement=100,
        threads=1,
    )
    assert criterion(entry(report, "fp32"), "data", "min_agreement").passed
    assert not any("compared with nothing" in note for note in report.notes)


def said_everywhere(report: ParityReport, words: str) -> bool:
    rendered = (text.render(report), markdown.render(report), junit.render(report).decode())
    return all(words in " ".join(one.replace("\\", "").split()) for one in rendered)


# Images and networks that tell nothing


def test_copies_of_one_image_leave_the_centered_cosine_out_and_the_relative_error_in(bundle: Path) -> None:
    strongest = int(np.linalg.norm(logits(crops()), axis=1).argmax())
    for count in (1, 13):
        copies = crops()[[strongest] * count]
        batches = [Batch(copies[part]) for part in (slice(0, 8), slice(8, None))]
        report = run_parity(bundle, batches=batches, data="photos", backends=ORT, threads=1)
        assert report.exit_code == 0, report.verdict.sentence
        check = entry(report, "fp16").check("data")
        assert check is not None
        names = [found.name for found in check.criteria]
        assert "relative_error" in names
        assert "centered_cosine" not in names
        assert said_everywhere(report, "photos leave the centered cosine similarity out")
        assert said_everywhere(report, "give several different images")


def test_a_candidate_that_ignores_its_input_fails_on_different_images_all_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", (FP32, FP16), graphs={"fp16": changed(graph(FP16), dead)})
    report = run_parity(folder, batches=[Batch(crops(8))], backends=ORT, threads=1)
    assert "centered_cosine" in failed(entry(report, "fp16"), "data")


def dead(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if name != "bias":
            array[...] = 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("biased", [True, False])
def test_a_dead_network_fails_and_the_checkpoint_is_to_blame(tmp_path: Path, biased: bool) -> None:
    def edit(arrays: dict[str, np.ndarray]) -> None:
        dead(arrays)
        arrays["bias"] *= biased

    same = changed(graph(), edit)
    recorded = dict.fromkeys(("eager", "onnx", "simplified"), logits(crops(), same))
    folder = write(tmp_path / "b", (FP32,), graphs={"fp32": same}, recorded=recorded, trained=True)
    report = run_parity(folder, backends=ORT, threads=1)
    assert (report.exit_code, report.verdict.stage) == (1, "checkpoint")
    assert report.verdict.sentence.endswith(
        "First stage to look at: checkpoint, since the network itself gives every golden image the same logits."
    )
    found = entry(report, "fp32").attribution
    assert found is not None
    assert found.diverges is None
    assert "bit for bit" in found.sentence
    assert said_everywhere(report, "look at the checkpoint that was exported")


def test_stale_constant_eager_logits_are_no_dead_network(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", (FP32,), recorded={"eager": np.ones((COUNT, CLASSES), np.float32)})
    assert run_parity(folder, backends=ORT, threads=1).verdict.stage == "onnx"


# Limits


def test_limits_that_the_bundle_loosened_are_named_in_every_output(tmp_path: Path) -> None:
    loose = {**Tolerances.shipped(untrained=True, layers_in_series=18).by_name(), "fp32": Tolerance()}
    report = run_parity(write(tmp_path / "b", (FP32,), tolerances=loose), backends=ORT, threads=1)
    assert said_everywhere(
        report, "limits are looser than the shipped ones, by the bundle: fp32 relative error"
    )
    user = run_parity(tmp_path / "b", backends=ORT, tolerances={"int8": {"top1_agreement": 0.5}}, threads=1)
    assert said_everywhere(user, "by --tolerance: int8 top-1 agreement 50 % in place of 95 %")
    assert said_everywhere(user, "by the bundle")


def test_the_shipped_limits_are_no_news(clean: ParityReport) -> None:
    assert not any("looser" in note for note in clean.notes)


def test_limits_may_be_given_as_a_mapping(bundle: Path) -> None:
    strict = {"fp16": {"relative_error": 1e-9}}
    report = run_parity(bundle, artifacts=["fp16"], backends=ORT, tolerances=strict, threads=1)
    assert failed(entry(report, "fp16")) == ["relative_error"]
    assert report.asked.tolerances == {Precision.FP16: Override(relative_error=1e-9)}


# Words


def test_a_sound_run_is_said_to_be_within_the_limits_of_every_step(clean: ParityReport) -> None:
    found = entry(clean, "fp16").attribution
    assert found is not None
    assert found.sentence.endswith("; every stage is within its own limits.")


def test_a_file_that_every_backend_computes_alike_is_suspected_rather_than_a_backend(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", (FP32, FP16), graphs={"fp16": changed(graph(FP16), swap_channels)})
    said = (
        "First stage to look at: backend, and every backend agrees on it, so suspect the file, not a backend."
    )
    assert run_parity(folder, threads=1).verdict.sentence.endswith(said)
    alone = run_parity(folder, backends=ORT, threads=1).verdict.sentence
    assert alone.endswith("First stage to look at: backend.")


def test_exchanged_labels_are_named_by_their_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", (FP32, FP16), trained=True)
    images = crops(400, seed=5)
    truth = logits(images).argmax(axis=1)
    common, other = np.bincount(truth).argsort()[::-1][:2]
    table = np.arange(CLASSES)
    table[[common, other]] = table[[other, common]]
    report = run_parity(folder, batches=[Batch(images, table[truth])], backends=ORT, threads=1)
    low, high = sorted((int(common), int(other)))
    words = (
        f"the labels of 2 classes are exchanged ({LABELS[low]} → {LABELS[high]} → {LABELS[low]}), expected 0"
    )
    assert words in report.verdict.sentence
    assert "rename the folders" in text.render(report)
