"""examples/cpp: a bundle opened in another language, by what docs/bundle.md says alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.preprocess import to_input
from tests import parity_bundle, tiny_bundle
from tests.tiny_bundle import FP32, INT8_CPU

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built against the headers and libraries in OpenVINO's wheel."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} (Debian: apt-get install cmake g++)")
    spec = find_spec("openvino")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs OpenVINO (pip install 'resnet-export[openvino]')")
    config = Path(spec.submodule_search_locations[0]) / "cmake"
    build = tmp_path_factory.mktemp("cpp")
    for command in (
        ["cmake", "-S", SOURCE, "-B", build, f"-DOpenVINO_DIR={config}", "-DCMAKE_CXX_FLAGS=-Werror -O1"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "open_bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundles") / "tiny", (FP32, INT8_CPU))


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("artifact", ["fp32", "int8.cpu"])
def test_it_finds_the_figures_that_the_runtime_finds(program: Path, bundle: Path, artifact: str) -> None:
    done = run(program, bundle, artifact)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 files, every hash as the manifest says" in done.stdout
    golden = read_golden(bundle)
    with open_session(bundle, backend="openvino", artifact=artifact) as session:
        logits = session.run(to_input(golden.images, session.manifest.preprocessing))
    (found,) = re.findall(r"relative_error +([0-9.e+-]+)", done.stdout)
    assert float(found) == pytest.approx(relative_error(logits, golden.logits["eager"]), rel=1e-3, abs=1e-6)
    agreement = np.mean(logits.argmax(axis=1) == golden.logits["eager"].argmax(axis=1))
    (found,) = re.findall(r"top1_agreement +([0-9.e+-]+)", done.stdout)
    assert float(found) == pytest.approx(agreement)


def test_logits_outside_the_limits_are_status_1(program: Path, tmp_path: Path) -> None:
    other = parity_bundle.write(tmp_path / "other", (FP32,), graphs={"fp32": tiny_bundle.graph(FP32, seed=5)})
    done = run(program, other, "fp32")
    assert done.returncode == 1
    assert "OUTSIDE" in done.stdout


def _in_manifest(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(bundle: Path) -> None:
        document = json.loads((bundle / "manifest.json").read_text())
        edit(document)
        (bundle / "manifest.json").write_text(json.dumps(document))

    return change


def _flipped_byte(bundle: Path) -> None:
    data = bytearray((bundle / "model.fp32.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "model.fp32.onnx").write_bytes(data)


def _linked_away(bundle: Path) -> None:
    outside = shutil.move(bundle / "golden.npz", bundle.parent / "golden.npz")
    (bundle / "golden.npz").symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_flipped_byte, "has another SHA-256"),
        (_linked_away, "leads outside the bundle"),
        (lambda bundle: (bundle / "golden.npz").write_bytes(b"short"), "bytes, the manifest says otherwise"),
        (lambda bundle: (bundle / "golden.npz").unlink(), "golden.npz"),
        (lambda bundle: (bundle / "manifest.json").write_bytes(b'{"schema": 1'), "is not JSON"),
        (_in_manifest(lambda document: document.update(schema=2)), "this reader knows 1"),
        (_in_manifest(lambda document: document.update(tolerence={})), "unknown key 'tolerence'"),
        (
            _in_manifest(lambda document: document["artifacts"][0].update(file="../model.onnx")),
            "is no path of a bundle",
        ),
        (
            _in_manifest(lambda document: document["golden"].update(count=31)),
            "has an array images with the header",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_in_words(
    program: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    bundle = parity_bundle.write(tmp_path / "bundle", (FP32,))
    change(bundle)
    done = run(program, bundle, "fp32")
    assert (done.returncode, done.stdout.count("OUTSIDE")) == (2, 0)
    assert done.stderr.startswith(f"Error: {bundle}: ")
    assert words in done.stderr


def test_an_artifact_that_is_not_there_is_refused(program: Path, tmp_path: Path) -> None:
    done = run(program, parity_bundle.write(tmp_path / "bundle", (FP32,)))
    assert done.returncode == 2
    assert "the bundle has no artifact 'int8.cpu'" in done.stderr
