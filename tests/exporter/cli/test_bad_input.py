"""Bad input ends with status 2 and one sentence on standard error, and costs the user nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_export.exporter.cli import cli

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


def assert_refused(result: Result, *expected: str) -> None:
    """Exit status 2, one sentence that says what was found, no traceback, nothing on standard output."""
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for text in expected:
        assert text in errors[0]


@pytest.fixture
def bundle_copy(resnet18_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(resnet18_bundle, tmp_path / "copy"))


def edit_manifest(bundle: Path, edit: Callable[[dict], None]) -> None:
    """Change the manifest's JSON in place."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_an_export_without_a_network_is_refused(run: Run) -> None:
    assert_refused(run("--fp16"), "--depth, --arch, or --weights")


def test_a_missing_checkpoint_is_refused(run: Run) -> None:
    assert_refused(run("--depth", 18, "--weights", "missing.pth"), "missing.pth")


def test_an_empty_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert_refused(run("--depth", 18, "--weights", "empty.pth"), "empty.pth")


def test_a_truncated_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    import torch

    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    assert_refused(run("--depth", 18, "--weights", "cut.pth"), "cut.pth")


def test_a_text_file_as_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("these are not weights\n")
    assert_refused(run("--depth", 18, "--weights", "notes.pth"), "notes.pth")


def test_a_folder_as_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert_refused(run("--depth", 18, "--weights", "folder.pth"), "folder.pth")


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch attacked",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": _Malicious()}))
    assert_refused(run("--depth", 18, "--weights", "evil.pth"), "evil.pth")
    assert not (tmp_path / "attacked").exists()


def test_a_checkpoint_of_another_depth_is_refused_and_both_are_named(run: Run, tmp_path: Path) -> None:
    import torch

    from resnet_export.exporter.models.resnet import build
    from resnet_export.exporter.models.zoo import ZOO

    torch.save(build(ZOO["resnet34"], 10).state_dict(), tmp_path / "r34.pth")
    assert_refused(run("--depth", 18, "--weights", "r34.pth"), "resnet18", "resnet34")


def test_labels_that_do_not_match_the_classes_are_refused_with_both_numbers(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert_refused(run("--depth", 18, "--num-classes", 4, "--labels", "labels.txt"), "3", "4")


@pytest.mark.parametrize("triple", ["8,1,32", "0,1,2", "1,2", "a,b,c", "", "1,8,32,64"])
def test_a_bad_batch_triple_is_refused(run: Run, triple: str) -> None:
    assert_refused(run("--depth", 18, "--batch", triple), "MIN,OPT,MAX")


def test_an_existing_bundle_is_kept_without_force(run: Run, bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    assert_refused(run("--depth", 18, "--out", bundle_copy), "--force")
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_a_folder_with_other_files_is_never_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    assert_refused(run("--depth", 18, "--out", "mine", "--force"), "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"


def test_an_output_folder_that_cannot_be_made_is_refused(run: Run) -> None:
    assert_refused(run("--depth", 18, "--out", "/proc/bundle"), "/proc")


def test_options_of_the_export_are_refused_before_another_command(run: Run, bundle_copy: Path) -> None:
    assert_refused(run("--depth", 18, "inspect", bundle_copy), "--depth")


def test_missing_calibration_images_are_refused(run: Run) -> None:
    assert_refused(run("--depth", 18, "--fp16", "--calib", "nowhere"), "nowhere")


@pytest.mark.parametrize("command", [["inspect"], ["infer"], ["parity"]])
def test_a_folder_that_is_no_bundle_is_refused(run: Run, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    images = ["photo.jpg"] if command == ["infer"] else []
    assert_refused(run(*command, tmp_path, *images), "manifest.json")


@pytest.mark.parametrize("command", ["inspect", "infer", "parity"])
def test_a_newer_schema_is_refused_by_its_number(run: Run, command: str, bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, lambda manifest: manifest.update(schema=2))
    images = ["photo.jpg"] if command == "infer" else []
    assert_refused(run(command, bundle_copy, *images), "schema 2", "schema 1")


@pytest.mark.parametrize("command", ["inspect", "infer", "parity"])
def test_a_changed_artifact_is_refused(
    run: Run, command: str, bundle_copy: Path, photograph_files: list[Path]
) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        data = bytearray((bundle_copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle_copy / name).write_bytes(data)
    images = photograph_files[:1] if command == "infer" else []
    assert_refused(run(command, bundle_copy, *images), "sha256")


def test_an_artifact_outside_the_bundle_is_refused(
    run: Run, bundle_copy: Path, photograph_files: list[Path]
) -> None:
    shutil.move(bundle_copy / "model.onnx", bundle_copy.parent / "model.onnx")
    edit_manifest(bundle_copy, lambda manifest: manifest["artifacts"][0].update(file="../model.onnx"))
    assert_refused(run("infer", bundle_copy, photograph_files[0]), "artifacts[0].file")


def test_an_artifact_that_links_out_of_the_bundle_is_refused(
    run: Run, bundle_copy: Path, photograph_files: list[Path]
) -> None:
    shutil.move(bundle_copy / "model.onnx", bundle_copy.parent / "model.onnx")
    (bundle_copy / "model.onnx").symlink_to("../model.onnx")
    assert_refused(run("infer", bundle_copy, photograph_files[0]), "model.onnx")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n broken", b"just text"], ids=["zero bytes", "corrupt", "no image"]
)
def test_an_image_that_cannot_be_decoded_is_counted_as_failed(
    run: Run, resnet18_bundle: Path, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "photo.png").write_bytes(data)
    result = run("infer", resnet18_bundle, "photo.png")
    assert result.exit_code == 1
    assert "failed: 'photo.png'" in result.stdout
    assert result.stderr.endswith("1 of 1 images failed\n")


def test_a_gigapixel_image_is_refused_before_it_is_decoded(
    run: Run, resnet18_bundle: Path, tmp_path: Path
) -> None:
    # A PNG whose header promises 40000 × 40000 pixels and that holds none.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    result = run("infer", resnet18_bundle, "huge.png")
    assert result.exit_code == 1
    assert "failed: 'huge.png' is too large to decode" in result.stdout


def test_an_unknown_backend_and_artifact_are_refused_with_what_there_is(
    run: Run, resnet18_bundle: Path, photograph_files: list[Path]
) -> None:
    assert_refused(run("infer", resnet18_bundle, photograph_files[0], "--backend", "tpu"), "onnxruntime")
    assert_refused(run("infer", resnet18_bundle, photograph_files[0], "--artifact", "int4"), "fp16")


def test_a_report_path_that_cannot_be_written_is_refused_before_the_work(
    run: Run, resnet18_bundle: Path
) -> None:
    assert_refused(run("parity", resnet18_bundle, "--json", "no/such/folder/report.json"), "no/such/folder")


def test_a_tolerance_file_with_an_unknown_key_is_refused(
    run: Run, resnet18_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "limits.json").write_text('{"fp16": {"centred_cosine": 0.9}}')
    assert_refused(run("parity", resnet18_bundle, "--tolerance", "limits.json"), "centred_cosine")


def test_exporting_without_onnx_runtime_is_refused_in_one_sentence(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['onnxruntime'] = None\n"
    code = hide + "from resnet_export.exporter.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--depth", "18"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: onnxruntime is not installed")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code = "from resnet_export.exporter.cli import main; main()"
    command = [sys.executable, "-c", code, "--debug", "--depth", "18", "--weights", "missing.pth"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
