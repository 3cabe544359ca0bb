"""What is refused before a cluster is looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli.group import cli
from resnet_export.exporter.ray.serve import app
from resnet_export.runtime import RequestError
from tests import parity_bundle
from tests.tiny_bundle import FP32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundle") / "tiny", [FP32])


def test_words_that_contradict_each_other_are_refused(bundle: Path) -> None:
    for arguments, sentence in (
        (("parity", bundle), "--ray was given without --data"),
        (("parity", bundle, "--data", "d.npz", "--reference", "eager"), "contradict each other"),
        (("parity", bundle, "--data", "d.npz", "--triton", "localhost:8000"), "contradict each other"),
        (("calibrate", "--merge", "a.json", "b.json"), "--ray has no meaning with --merge"),
    ):
        done = CliRunner().invoke(cli, [*map(str, arguments), "--ray", "auto"])
        assert done.exit_code == 2
        assert sentence in done.output


def test_without_ray_the_way_to_get_it_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    data = tmp_path / "d.npz"
    np.savez(data, images=parity_bundle.crops(4))
    done = CliRunner().invoke(cli, ["parity", str(bundle), "--data", str(data), "--ray", "auto"])
    assert done.exit_code == 2
    assert "ray is not installed; run: pip install 'resnet-export[ray]'" in done.output


def test_the_words_of_serve_run_are_checked() -> None:
    with pytest.raises(RequestError, match="no bundle was given"):
        app({})
    with pytest.raises(RequestError, match="is no number"):
        app({"bundle": "b", "top": "five"})
