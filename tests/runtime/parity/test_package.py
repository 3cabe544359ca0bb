"""The package as others import it: light, complete, and without what a device does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resnet_export.runtime import parity
from resnet_export.runtime.parity.attribution.stages import Attribution, StepError
from resnet_export.runtime.parity.criteria.table import CRITERIA
from resnet_export.runtime.parity.criteria.tolerances import TABLE, UNTRAINED_INT8
from resnet_export.runtime.parity.measure.metrics import Figures

DOCS = Path(__file__).parents[3] / "docs"


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_public_name_is_there_and_documented() -> None:
    for name in parity.__all__:
        assert getattr(parity, name).__doc__, name
    assert set(parity.__all__) <= set(dir(parity))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = parity.nothing


def test_importing_the_package_loads_no_part_of_it() -> None:
    found = loaded_after("import resnet_export.runtime.parity")
    assert "numpy" not in found
    assert not any(name.startswith("resnet_export.runtime.parity.") for name in found)


def test_the_whole_of_parity_loads_neither_frameworks_nor_backends_nor_renderers() -> None:
    found = loaded_after("from resnet_export.runtime.parity import *")
    assert "resnet_export.runtime.parity.check" in found
    unwanted = {"torch", "onnx", "click", "PIL", "onnxruntime", "openvino", "tensorrt", "rich", "scipy"}
    assert not found & unwanted
    assert "xml.etree.ElementTree" not in found


def test_the_documentation_defines_every_figure_and_every_criterion() -> None:
    text = (DOCS / "parity.md").read_text(encoding="utf-8")
    figures = {*Figures.__struct_fields__} - {"images", "classes", "near_tie_flips"}
    stages = {*StepError.__struct_fields__, *Attribution.__struct_fields__} & {
        *("separate", "cumulative", "share", "total", "cross", "residual", "bound", "largest", "diverges")
    }
    assert len(stages) == 9
    missing = [name for name in (*CRITERIA, *figures, *stages) if f"`{name}`" not in text]
    assert not missing


def test_the_documentation_states_the_limits_that_the_table_has() -> None:
    rows = [line for line in (DOCS / "tolerances.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    untrained = [(f"int8, untrained, {depth} layers", limits) for depth, limits in UNTRAINED_INT8.items()]
    for name, limits in (*TABLE.items(), *untrained):
        row = next(row for row in rows if row.startswith(f"| {name} |"))
        for limit in (limits.relative_error, limits.centered_cosine, limits.top1_agreement):
            assert f"| {limit:.12g} " in row, (name, limit)
