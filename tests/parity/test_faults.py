"""Faults of every kind in a trained network: the gate fails for what costs predictions, and names the right stage.

The list is that of `benchmarks/parity_faults.py`, which runs it whole on 1,000 images and prints what each fault costs.
Here are one or two of each kind, on fewer images.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.lab import Case, Lab
from tests.faults.table import FAULTS, Fault

IMAGES = 120

CHOSEN = (
    "one BatchNorm not folded",
    "max-pool padded at the end alone",
    "a shortcut dropped",
    "classifier's classes rolled by one",
    "one layer's inputs and outputs exchanged",
    "mean left out of the graph",
    "fp16 overflow in one layer",
    "clip halved",
    "one weight scale doubled",
    "int8: every bias dropped",
    "TensorRT's graph: kernels transposed",
    "fp32 file of another checkpoint",
    "int8 file with one stale tensor",
    "batch frozen at one",
    "wrong std",
    "BGR",
    "crop at the corner",
    "labels shifted by one",
    "two classes exchanged",
    "stale eager logits",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("faults") / "lab", checkpoints, IMAGES)


def test_the_network_is_worth_being_judged_and_its_clean_bundle_passes(lab: Lab) -> None:
    assert (lab.predicted("fp32") == lab.labels).mean() >= 0.97
    report = lab.check(Case(lab.clean, 0.0))
    assert (report.verdict.status, report.verdict.stage) == ("passed", None), report.verdict.sentence


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.name in CHOSEN], ids=lambda fault: fault.name
)
def test_a_fault_that_costs_predictions_fails_and_is_put_down_to_its_stage(lab: Lab, fault: Fault) -> None:
    case = fault.inject(lab, fault.name.replace(" ", "-").replace("/", "-"))
    report = lab.check(case)
    assert report.verdict.status == "failed", f"{fault.name} passed"
    assert report.verdict.stage == fault.stage, report.verdict.sentence


def test_every_fault_has_a_name_of_its_own_and_a_stage() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    stages = {
        "onnx",
        "simplified",
        "fp32",
        "fp16",
        "int8.tensorrt",
        "int8.cpu",
        "backend",
        "preprocessing",
        "labels",
    }
    assert {fault.stage for fault in FAULTS} == stages
    assert set(CHOSEN) <= {fault.name for fault in FAULTS}
