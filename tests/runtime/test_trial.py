"""A bundle of a stranger is opened in another process first, which may be lost."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.errors import BackendError, IntegrityError, RequestError
from resnet_export.runtime.select.spec import SessionSpec
from resnet_export.runtime.trial import _run, try_to_open
from tests import tiny_bundle
from tests.tiny_bundle import FP32, graph_that_engines_refuse


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle.write(tmp_path / "a bundle", (FP32,))


def test_a_bundle_that_does_no_harm_is_opened_as_ever(bundle: Path) -> None:
    with open_session(bundle, untrusted=True, device="cpu", backend="onnxruntime", threads=1) as session:
        assert session.choice.backend == "onnxruntime"
        assert session.run(np.zeros((1, *session.manifest.input.shape[1:]), np.float32)).shape == (
            1,
            tiny_bundle.CLASSES,
        )


def test_what_is_refused_there_is_refused_here_by_the_same_error(tmp_path: Path) -> None:
    refused = tiny_bundle.write(tmp_path / "refused", graphs={"fp32": graph_that_engines_refuse()})
    with pytest.raises(BackendError, match="ONNX Runtime cannot open artifact 'fp32'"):
        open_session(refused, untrusted=True, device="cpu", backend="onnxruntime")
    model = onnx.load_from_string(tiny_bundle.graph())
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    outside = tiny_bundle.write(tmp_path / "outside", graphs={"fp32": model.SerializeToString()})
    with pytest.raises(IntegrityError, match="data outside the file"):
        open_session(outside, untrusted=True)


@pytest.mark.slow
def test_another_bundle_than_was_tried_is_not_opened(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(
        tiny_bundle.write(tmp_path / "other", graphs={"fp32": tiny_bundle.graph(seed=3)})
    )
    with pytest.raises(IntegrityError, match="was replaced while it was tried"):
        try_to_open(bundle, manifest, SessionSpec(device="cpu", threads=1))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"ended that process \(SIGSEGV\)"),
        ("import os; os.abort()", r"ended that process \(SIGABRT\)"),
        ("raise SystemExit(3)", r"ended that process \(status 3\)"),
        ("import time; time.sleep(60)", "took over 1 s"),
        ("data = bytearray(400_000_000); import time; time.sleep(60)", "took over 200 MB"),
    ],
)
def test_a_process_that_is_lost_is_an_error_in_words(program: str, words: str) -> None:
    seconds = 1 if "1 s" in words else 30
    with pytest.raises(BackendError, match=f"opening it in a process of its own .*{words}"):
        _run([sys.executable, "-c", program], b"", "opening it", 200, seconds)


def test_a_program_without_an_interpreter_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(RequestError, match="no interpreter to start"):
        open_session(bundle, untrusted=True)
