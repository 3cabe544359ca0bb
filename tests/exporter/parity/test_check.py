"""The whole gate on exported bundles: layers of what fails, and the eager network as the reference."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from resnet_export.calibration.data.dataset import DatasetWarning, open_dataset
from resnet_export.calibration.improve.channel_scaling import rescale
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.table import Factors, encode_table
from resnet_export.calibration.quantize.plan import Equalization, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter import report as html
from resnet_export.exporter.debug.layerwise import compare_artifacts, diagnose
from resnet_export.exporter.models.zoo import PublishedWeights
from resnet_export.exporter.parity.check import check_parity
from resnet_export.exporter.parity.eager import eager_reference
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    FileInfo,
    Manifest,
    WeightsInfo,
    encode_manifest,
    read_manifest,
)
from resnet_export.runtime.errors import CheckpointError, DatasetError, DependencyError, RequestError
from resnet_export.runtime.parity.attribution.diagnosis import suspects
from resnet_export.runtime.parity.criteria.tolerances import Override
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import ParityReport, decode_report, encode_report
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from tests import parity_bundle
from tests.exported import CLASSES, SIZE, seeded_crops, seeded_resnet18
from tests.tiny_bundle import FP16, FP32, LABELS

CONV = "layer2.0.conv2"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(seeded_resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def uint8_bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a checkpoint, with the normalization in the graph."""
    out = tmp_path_factory.mktemp("bundles") / "uint8"
    spec = ExportSpec(input="uint8", engine="none", batch=BatchRange(1, 4, 8))
    export(ModelSpec(weights=str(weights), image_size=SIZE), spec, out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=seeded_crops(12), labels=np.arange(12) % CLASSES)
    return path


def copied(bundle: Path, to: Path, change: dict[str, onnx.ModelProto]) -> Path:
    """A copy of a bundle without its engines in which artifacts have other graphs, with sound hashes."""
    shutil.copytree(bundle, to)
    manifest = read_manifest(to)
    artifacts = []
    for artifact in (one for one in manifest.artifacts if one.kind == "onnx"):
        data = (to / artifact.file).read_bytes()
        if artifact.name in change:
            data = change[artifact.name].SerializeToString()
            (to / artifact.file).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        artifacts.append(msgspec.structs.replace(artifact, bytes=len(data), sha256=sha256))
    return rewritten(to, msgspec.structs.replace(manifest, artifacts=tuple(artifacts)))


def rewritten(bundle: Path, manifest: Manifest) -> Path:
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return bundle


def scaled(bundle: Path, name: str, factor: float) -> onnx.ModelProto:
    """The graph of an artifact with the weights of one convolution scaled."""
    model = onnx.load(bundle / read_manifest(bundle).artifact(name).file)
    weight = next(node for node in model.graph.node if node.name == CONV).input[1]
    tensor = next(one for one in model.graph.initializer if one.name == weight)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), weight))
    return model


@pytest.fixture(scope="module")
def broken(resnet18_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp16 graph with half the weights in one layer."""
    out = tmp_path_factory.mktemp("broken") / "bundle"
    return copied(resnet18_bundle, out, {"fp16": scaled(resnet18_bundle, "fp16", 0.5)})


def test_the_layers_of_a_failed_artifact_are_compared_without_being_asked_for(broken: Path) -> None:
    report = check_parity(broken, backends=["onnxruntime"])
    assert report.exit_code == 1
    (found,) = report.layerwise
    assert found.artifact == "fp16"
    assert found.first is not None
    assert (found.first.node, found.first.module) == (CONV, CONV)
    assert found.images == read_manifest(broken).golden.count
    read = decode_report(encode_report(report)).layerwise[0]
    assert read.first is not None
    assert (read.first.node, len(read.layers)) == (CONV, len(found.layers))
    for rendered in (text.render(report), markdown.render(report), junit.render(report).decode()):
        assert "diverges at" in rendered
        assert CONV in rendered


def test_nothing_is_compared_by_layer_when_all_is_well_or_it_is_not_wanted(
    broken: Path, resnet18_bundle: Path
) -> None:
    assert check_parity(resnet18_bundle, backends=["onnxruntime"]).layerwise == ()
    report = check_parity(broken, backends=["onnxruntime"], layers="none")
    assert report.exit_code == 1
    assert report.layerwise == ()


def test_layers_of_a_sound_artifact_can_be_asked_for(resnet18_bundle: Path) -> None:
    report = check_parity(resnet18_bundle, backends=["onnxruntime"], layers=["all"])
    (found,) = report.layerwise
    assert (found.artifact, found.first) == ("fp16", None)
    assert report.exit_code == 0
    assert (found.sentence,) == tuple(one.sentence for one in compare_artifacts(resnet18_bundle))


def test_a_wrong_fp32_graph_is_seen_from_a_sound_artifact(resnet18_bundle: Path, tmp_path: Path) -> None:
    bundle = copied(resnet18_bundle, tmp_path / "bundle", {"fp32": scaled(resnet18_bundle, "fp32", 0.5)})
    (found,) = check_parity(bundle, backends=["onnxruntime"]).layerwise
    assert found.artifact == "fp32"
    assert found.first is not None
    assert found.first.node == CONV
    assert any("seen from fp16" in note for note in found.notes)


def test_a_fault_of_one_backend_alone_is_said_to_be_elsewhere(resnet18_bundle: Path) -> None:
    report = check_parity(resnet18_bundle, artifacts=["fp16"], backends=["onnxruntime", "openvino"])
    entries = tuple(
        msgspec.structs.replace(entry, error="failed while running") if entry.backend == "openvino" else entry
        for entry in report.entries
    )
    (found,), _ = diagnose(resnet18_bundle, entries, ["fp16"])
    assert found.first is None
    assert found.notes == ("it fails on openvino and not on onnxruntime, where its layers were measured",)


def test_the_same_check_gives_the_same_layers(broken: Path) -> None:
    first, second = (
        msgspec.structs.replace(check_parity(broken, backends=["onnxruntime"]), times={}) for _ in range(2)
    )
    assert encode_report(first) == encode_report(second)


@pytest.mark.parametrize(
    ("layers", "said"),
    [(["fp61"], "no artifact 'fp61'"), (["fp32"], "what those of other"), ("every", "'every'")],
)
def test_layers_that_cannot_be_compared_are_refused(
    resnet18_bundle: Path, layers: list[str] | str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        check_parity(resnet18_bundle, layers=layers)


_HIDE = """
import sys
for name in {hidden}:
    sys.modules[name] = None
from resnet_export.exporter.cli import main
main()
"""


def run(*arguments: object, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _HIDE.format(hidden=hidden), "parity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_host_without_onnx_says_why_it_compared_no_layers(broken: Path) -> None:
    done = run(broken, "--backend", "onnxruntime", hidden=("torch", "onnx"))
    assert done.returncode == 1, done.stderr
    assert "onnx is not installed" in done.stdout
    done = run(broken, "--layers", "fp16", hidden=("torch", "onnx"))
    assert done.returncode == 2
    assert "resnet-export[export]" in done.stderr


def test_the_command_line_writes_the_layers_as_json(broken: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run(broken, "--backend", "onnxruntime", "--json", report)
    assert done.returncode == 1, done.stderr
    assert json.loads(report.read_bytes())["layerwise"][0]["first"]["node"] == CONV
    done = run(broken, "--backend", "onnxruntime", "--json", report, "--no-layers")
    assert json.loads(report.read_bytes())["layerwise"] == []
    done = run(broken, "--no-layers", "--layers", "fp16")
    assert done.returncode == 2
    assert "contradict" in done.stderr


# The eager reference


def test_an_untrained_network_is_rebuilt_from_its_seed(resnet18_bundle: Path, data: Path) -> None:
    report = check_parity(resnet18_bundle, data=data, reference="eager", backends=["onnxruntime"])
    assert report.exit_code == 0, report.verdict.sentence
    checks = [check for entry in report.entries for check in entry.checks if check.images == "data"]
    assert [check.reference for check in checks] == ["eager", "eager"]  # fp32 and fp16
    errors = [check.comparison.figures.relative_error for check in checks]
    assert all(error is not None and 0 < error < 1e-2 for error in errors)


def test_a_checkpoint_is_the_reference_of_a_graph_that_takes_uint8(
    uint8_bundle: Path, weights: Path, data: Path
) -> None:
    report = check_parity(
        uint8_bundle, data=data, reference="eager", weights=weights, backends=["onnxruntime"], layers="none"
    )
    (entry,) = report.entries
    check = entry.check("data")
    assert check is not None
    error = check.comparison.figures.relative_error
    assert error is not None
    assert error < 1e-4


def test_the_eager_reference_takes_what_the_artifacts_take(uint8_bundle: Path, weights: Path) -> None:
    golden, manifest = read_golden(uint8_bundle), read_manifest(uint8_bundle)
    crops = golden.images[:3]
    found = eager_reference(uint8_bundle, weights)(to_input(crops, manifest.preprocessing))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, golden.logits[EAGER][:3], rtol=0, atol=1e-4)


def test_published_weights_may_be_given_as_a_file(uint8_bundle: Path, weights: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(uint8_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    sha256 = manifest.model.weights.sha256
    info = WeightsInfo(source="torchvision", name="ResNet18_Weights.IMAGENET1K_V1", sha256=sha256)
    rewritten(
        bundle, msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, weights=info))
    )
    assert eager_reference(bundle, weights) is not None


def test_published_weights_are_fetched_where_no_file_is_given(
    resnet18_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(resnet18_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    info = WeightsInfo(source="torchvision", name="ResNet18_Weights.IMAGENET1K_V1", sha256="0" * 64)
    rewritten(
        bundle, msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, weights=info))
    )

    def offline(published: PublishedWeights, progress: object) -> Path:
        raise CheckpointError(f"asked for {published.name}")

    monkeypatch.setattr("resnet_export.exporter.models.checkpoint.fetch", offline)
    with pytest.raises(CheckpointError, match="asked for IMAGENET1K_V1"):
        eager_reference(bundle)


def test_other_weights_are_refused_with_both_hashes(uint8_bundle: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    expected = read_manifest(uint8_bundle).model.weights.sha256
    assert expected is not None
    done = run(uint8_bundle, "--data", data, "--reference", "eager", "--weights", other)
    assert done.returncode == 2
    assert expected in done.stderr
    assert hashlib.sha256(b"other weights").hexdigest() in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_weights_that_are_missing_or_not_wanted_are_refused(
    uint8_bundle: Path, resnet18_bundle: Path, weights: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"mine\.pth with sha256"):
        eager_reference(uint8_bundle)
    with pytest.raises(CheckpointError, match="cannot be read"):
        eager_reference(uint8_bundle, tmp_path / "nowhere.pth")
    with pytest.raises(RequestError, match="untrained"):
        eager_reference(resnet18_bundle, weights)
    with pytest.raises(RequestError, match="without the eager reference"):
        check_parity(uint8_bundle, data=data, weights=weights)
    with pytest.raises(RequestError, match="validation images"):
        check_parity(uint8_bundle, reference="eager", weights=weights)
    with pytest.raises(RequestError, match="'torch'"):
        check_parity(uint8_bundle, data=data, reference="torch")  # type: ignore[arg-type]


def test_a_network_that_gives_other_logits_than_recorded_is_refused(
    resnet18_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(resnet18_bundle, tmp_path / "bundle")
    manifest = read_manifest(bundle)
    info = msgspec.structs.replace(manifest.model.weights, seed=1)
    rewritten(
        bundle, msgspec.structs.replace(manifest, model=msgspec.structs.replace(manifest.model, weights=info))
    )
    with pytest.raises(RequestError, match="differs from the one that the bundle was exported from"):
        eager_reference(bundle)


def test_a_host_without_torch_says_so_in_one_sentence(resnet18_bundle: Path, data: Path) -> None:
    done = run(resnet18_bundle, "--data", data, "--reference", "eager", hidden=("torch",))
    assert done.returncode == 2
    assert "torch is not installed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_eager_reference_needs_torch_to_be_importable(
    resnet18_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError, match="torch"):
        eager_reference(resnet18_bundle)


# Data


def test_a_path_is_opened_as_the_bundle_preprocesses(resnet18_bundle: Path, data: Path) -> None:
    report = check_parity(
        resnet18_bundle, data=data, limit=5, artifacts=["fp16"], backends=["onnxruntime"], threads=1
    )
    check = report.entries[-1].check("data")
    assert check is not None
    assert check.comparison.figures.images == 5


def test_an_empty_folder_is_refused(resnet18_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images"):
        check_parity(resnet18_bundle, data=tmp_path)


# Equalized graphs


@pytest.mark.parametrize("recorded", [True, False])
def test_an_equalized_graph_is_compared_under_its_own_equalization(
    resnet18_bundle: Path, tmp_path: Path, recorded: bool
) -> None:
    """Without what `calibration.json` records, the rescaled channels would look like a fault."""
    bundle = copied(resnet18_bundle, tmp_path / "bundle", {})
    manifest = read_manifest(bundle)
    fp32 = onnx.load(bundle / manifest.artifact("fp32").file)
    factors = (2 ** np.random.default_rng(0).uniform(-1, 1, 64)).astype(np.float32)
    done = Equalization(("layer1.0.conv1",), ("layer1.0.conv2",), factors)
    model = rescale(fp32, [done])
    table = calibrate(model, [to_input(read_golden(bundle).images, manifest.preprocessing)], threads=2)
    plan = QuantPlan(method="mse")
    int8 = quantize(model, plan.choose_ranges(table), plan, "cpu").SerializeToString()
    if recorded:
        known = (Factors.of(done.producers, done.consumers, done.factors),)
        table = msgspec.structs.replace(table, equalization=known)
    files = {"model.int8.cpu.onnx": int8, "calibration.json": encode_table(table)}
    for name, data in files.items():
        (bundle / name).write_bytes(data)
    facts = {
        name: {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    artifact = Artifact(
        name="int8.cpu", kind="onnx", precision=Precision.INT8, target="cpu", **facts["model.int8.cpu.onnx"]
    )
    excluded = tuple(one for one in manifest.files if one.file not in files and "engine" not in one.file)
    rewritten(
        bundle,
        msgspec.structs.replace(
            manifest,
            artifacts=(*manifest.artifacts, artifact),
            files=(*excluded, FileInfo(**facts["calibration.json"])),
        ),
    )
    (found,) = compare_artifacts(bundle, ["int8.cpu"])
    assert (found.first is None) == recorded


# What is asked for


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("tiny") / "bundle", [FP32, FP16], trained=True)


def pictures(folder: Path, count: int = 24, classes: tuple[str, ...] = ()) -> Path:
    """PNG files of crops, in class folders where `classes` are named, with the labels that the fp32 graph gives."""
    images = parity_bundle.crops(count, seed=5)
    for i, label in enumerate(parity_bundle.logits(images).argmax(axis=1)):
        path = folder / (classes[label] if classes else "") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
    return folder


def noted(report: ParityReport, words: str) -> bool:
    rendered = (
        text.render(report),
        markdown.render(report),
        junit.render(report).decode(),
        encode_report(report).decode(),
        html.render(report).decode(),
    )
    return all(words in " ".join(one.replace("\\", "").split()) for one in rendered)


def test_images_that_cannot_be_read_are_warned_of_and_counted_in_every_output(
    tiny: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "photos")
    (folder / "05.png").write_bytes(b"no picture")
    with pytest.warns(DatasetWarning, match="1 of 24 images"):
        report = check_parity(tiny, data=folder, backends=["onnxruntime"], threads=1)
    assert report.exit_code == 0
    check = report.entries[1].check("data")
    assert check is not None
    assert check.comparison.figures.images == 23
    assert noted(report, "cannot be read and was skipped; the first: 05.png")
    whole = pictures(tmp_path / "whole")
    assert not any("skipped" in note for note in check_parity(tiny, data=whole, threads=1).notes)


def test_the_same_note_comes_whatever_runs_beside_the_check(tiny: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos")
    (folder / "05.png").write_bytes(b"no picture")
    filters = list(warnings.filters)

    def notes(_: int) -> tuple[str, ...]:
        return check_parity(tiny, data=folder, backends=["onnxruntime"], threads=1).notes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(3) as pool:
            found = set(pool.map(notes, range(6)))
    assert len(found) == 1
    assert sum("skipped" in note for note in found.pop()) == 1
    assert warnings.filters == filters


def test_how_folders_of_other_names_were_taken_stands_in_the_notes(tiny: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "photos", 60, ("a", "b", "c", "d", "e"))
    assert len(list(data.iterdir())) == len(LABELS)
    with pytest.warns(DatasetWarning):
        report = check_parity(tiny, data=data, backends=["onnxruntime"], threads=1)
    assert report.exit_code == 0
    with pytest.warns(DatasetWarning) as caught:
        open_dataset(data, preprocessing=read_manifest(tiny).preprocessing, labels=LABELS)
    assert {str(one.message) for one in caught} <= set(report.notes)


def test_all_layers_may_be_asked_for_by_the_commands_word(resnet18_bundle: Path) -> None:
    report = check_parity(resnet18_bundle, backends=["onnxruntime"], layers="all")
    assert [found.artifact for found in report.layerwise] == ["fp16"]
    assert report.asked.layers == "all"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 3}, "limit was given without data"),
        ({"seed": 3}, "seed was given without data"),
        ({"seed": "3", "data": "d"}, "seed is '3'"),
        ({"limit": "3", "data": "d"}, "limit is '3'"),
        ({"max_drop": "0.5", "data": "d"}, r"max_drop is '0\.5'"),
        ({"data": 5}, "data is 5, expected the path"),
        ({"batches": ["a.jpg"]}, r"the batches hold 'a\.jpg'"),
        ({"batches": 5}, "batches is 5, expected batches of crops"),
        ({"max_dorp": 5}, "no option 'max_dorp' of a parity check; expected artifacts, "),
        ({"precisions": ["fp8"]}, "no precision 'fp8'"),
        ({"layers": 5}, "layers is 5, expected names"),
        ({"weights": 5}, "weights is 5, expected the path"),
        ({"tolerances": 5}, "not understood"),
        ({"tolerances": {"fp8": {}}}, "not understood"),
    ],
    ids=str,
)
def test_an_option_of_the_wrong_kind_is_refused_in_one_sentence(
    tiny: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said) as found:
        check_parity(tiny, **options)
    assert "\n" not in str(found.value)
    with pytest.raises(RequestError, match="bundle is None"):
        check_parity(None)  # type: ignore[arg-type]


def test_limits_in_place_of_a_file_are_what_the_file_says(tiny: Path, tmp_path: Path) -> None:
    limits = {"fp16": {"relative_error": 1e-9}}
    file = tmp_path / "limits.json"
    file.write_text(json.dumps(limits))
    options = {"artifacts": ["fp16"], "backends": ["onnxruntime"], "threads": 1, "layers": "none"}
    given, read = (check_parity(tiny, tolerances=one, **options) for one in (limits, file))  # type: ignore[arg-type]
    assert (given.exit_code, given.entries) == (1, read.entries)
    assert (given.asked.tolerances, read.asked.tolerances) == (
        {Precision.FP16: Override(relative_error=1e-9)},
        str(file),
    )


def test_the_report_says_what_was_asked_of_the_check(tiny: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "photos")
    report = check_parity(
        tiny, data=data, limit=9, seed=3, layers="none", backends=["onnxruntime"], threads=1
    )
    read = decode_report(encode_report(report)).asked
    assert (read.limit, read.seed, read.layers, read.tolerances, read.weights) == (9, 3, "none", None, None)
    plain = check_parity(tiny, backends=["onnxruntime"], threads=1).asked
    assert (plain.seed, plain.layers) == (0, "failed")


# Whose layers are worth a look


def test_labels_that_are_wrong_send_nobody_into_the_layers(tiny: Path, tmp_path: Path) -> None:
    turned = (*LABELS[1:], LABELS[0])
    data = pictures(tmp_path / "photos", 120, turned)
    report = check_parity(tiny, data=data, backends=["onnxruntime"], threads=1)
    assert (report.exit_code, report.verdict.stage) == (1, "labels")
    assert suspects(report.entries, report.preprocessing, report.verdict.stage) == ()
    assert report.layerwise == ()
    assert not any("layers" in note for note in report.notes)


@pytest.fixture(scope="module")
def normalized_otherwise(resnet18_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    """A bundle whose manifest has another mean than the network was exported with."""
    bundle = Path(shutil.copytree(resnet18_bundle, tmp_path_factory.mktemp("mean") / "bundle"))
    manifest = read_manifest(bundle)
    preprocessing = msgspec.structs.replace(manifest.preprocessing, mean=(0.0, 0.0, 0.0))
    rewritten(bundle, msgspec.structs.replace(manifest, preprocessing=preprocessing))
    return check_parity(bundle, backends=["onnxruntime"])


def test_another_normalization_is_put_down_to_no_backend_and_to_no_layer(
    normalized_otherwise: ParityReport,
) -> None:
    report = normalized_otherwise
    assert (report.exit_code, report.verdict.stage) == (1, "preprocessing")
    assert "compare the manifest's mean and std with the export's" in report.verdict.sentence
    assert report.layerwise == ()
    assert not any("layers" in note for note in report.notes)
    for entry in report.entries:
        assert entry.attribution is not None
        assert "to the backend (" not in entry.attribution.sentence
        assert "whose input is not what the export normalized" in entry.attribution.sentence
