"""The fixture `parity`, used as somebody else's repository uses it: by pytest in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests import parity_bundle
from tests.parity_bundle import crops, logits
from tests.tiny_bundle import FP16, FP32

_PLUGIN = "resnet_export.exporter.parity.pytest_plugin"

_SUITE = """
import pytest
from resnet_export.runtime.errors import RequestError

def test_passes(parity):
    assert parity.check("sound", backends=["onnxruntime"]).exit_code == 0

def test_takes_data(parity):
    options = dict(max_drop=0.5, min_agreement=90, limit=20, seed=1, backends=["onnxruntime"])
    report = parity.check("sound", data="data.npz", **options)
    assert report.asked.limit == 20
    assert report.asked.data == "data.npz"

def test_fails(parity):
    parity.check("broken", backends=["onnxruntime"])

def test_unverified(parity):
    parity.check("sound", backends=["tensorrt"])

def test_wrong_request(parity):
    with pytest.raises(RequestError, match="expected percentage points"):
        parity.check("sound", data="data.npz", max_drop=101)

def test_wrong_option(parity):
    with pytest.raises(RequestError, match="max_dorp"):
        parity.check("sound", max_dorp=1)
"""

_COST = """
import sys
before = set(sys.modules)
import pytest
pytests = set(sys.modules)
import resnet_export.exporter.parity.pytest_plugin
print("\\n".join(sorted(set(sys.modules) - pytests)))
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", _PLUGIN, *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What each test of the suite above came to, and the message of those that did not pass."""
    folder = tmp_path_factory.mktemp("repository")
    parity_bundle.write(folder / "sound", [FP32, FP16], trained=True)
    parity_bundle.write(folder / "broken", [FP32, FP16], graphs={"fp16": parity_bundle.graph(FP32, batch=4)})
    images = crops(40, seed=5)
    np.savez(folder / "data.npz", images=images, labels=logits(images).argmax(axis=1))
    (folder / "test_it.py").write_text(_SUITE)
    done = run_pytest(folder, "--junit-xml=junit.xml", "-W", "error")
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
        children = list(case)
        found[case.attrib["name"]] = (children[0].tag, children[0].text or "") if children else ("passed", "")
    return found


@pytest.mark.parametrize(
    "name", ["test_passes", "test_takes_data", "test_wrong_request", "test_wrong_option"]
)
def test_a_sound_bundle_passes_and_wrong_use_raises(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    assert outcomes[name] == ("passed", "")


def test_a_broken_bundle_fails_with_the_verdict_and_the_criteria(
    outcomes: dict[str, tuple[str, str]],
) -> None:
    outcome, message = outcomes["test_fails"]
    assert outcome == "failure"
    assert "FAILED: probable cause stage backend; 1 of 2 artifact runs outside tolerance" in message
    assert "fp16 on onnxruntime" in message
    assert "Traceback" not in message


def test_a_bundle_that_nothing_could_run_fails_loudly(outcomes: dict[str, tuple[str, str]]) -> None:
    outcome, message = outcomes["test_unverified"]
    assert outcome == "failure"
    assert "NOT VERIFIED" in message
    assert "backend 'tensorrt'" in message


def test_loading_the_plugin_imports_nothing_else_of_the_project() -> None:
    done = subprocess.run([sys.executable, "-c", _COST], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"resnet_export.exporter", _PLUGIN} <= loaded
    assert {name for name in loaded if name.startswith("resnet_export.")} == {
        "resnet_export.exporter",
        "resnet_export.exporter.parity",
        _PLUGIN,
    }
    assert not loaded & {"numpy", "msgspec", "torch", "onnx", "click", "PIL", "onnxruntime"}


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    # A source tree on sys.path may hold older metadata of the same distribution.
    points = [
        point
        for distribution in importlib.metadata.distributions(name="resnet-export")
        for point in distribution.entry_points
        if point.group == "pytest11"
    ]
    assert {(point.name, point.value) for point in points} == {("resnet-export", _PLUGIN)}


def test_a_project_that_does_not_use_it_runs_as_before(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_it(): pass\n")
    done = run_pytest(tmp_path, "-W", "error", "--strict-markers", "--strict-config")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
