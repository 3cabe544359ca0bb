"""The table of criteria has everything that a run is held to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from resnet_export.exporter.report.verdict_table import criteria_by_run
from resnet_export.runtime.parity import run_parity
from resnet_export.runtime.parity.criteria.criterion import at_most
from resnet_export.runtime.parity.measure.outputs import output_figures
from resnet_export.runtime.parity.report.schema import OutputCheck
from tests.parity_bundle import write
from tests.tiny_bundle import FP32


def test_a_run_that_fails_by_a_further_output_shows_the_criterion_that_broke(tmp_path: Path) -> None:
    report = run_parity(write(tmp_path / "bundle", [FP32]), backends=["onnxruntime"], threads=1)
    figures = output_figures(np.ones((2, 3)), np.ones((2, 3)))
    embedding = OutputCheck(name="embedding", figures=figures, criteria=(at_most("relative_error", 1, 0.1),))
    failed = msgspec.structs.replace(report.entries[0], outputs=(embedding,))
    (run,) = criteria_by_run(msgspec.structs.replace(report, entries=(failed,), preprocessing=()))
    assert (run.passed, run.broken) == (False, 1)
    (row,) = (row for row in run.criteria if not row.passed)
    assert row.images == "embedding"
