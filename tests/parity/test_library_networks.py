"""Networks of other families, through torchvision and timm: what `docs/zoo.md` says of them is what an export shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest
from resnet_export.runtime.parity.report.schema import failure
from resnet_export.runtime.precision import Precision
from tests.natural_crops import natural_crops

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


@dataclass(frozen=True)
class Line:
    """One network, at an image size that it takes, and the precisions that it cannot hold untrained."""

    arch: str
    size: int
    outside: frozenset[str] = frozenset()


LINES = (
    Line("timm:densenet121", 64),
    Line("torchvision:efficientnet_b0", 64),
    Line("torchvision:mobilenet_v3_large", 64),
    Line("timm:convnext_tiny", 64),
    Line("torchvision:regnet_y_400mf", 64, frozenset({"bf16"})),
    Line("timm:vit_tiny_patch16_224", 224),
)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.arch.replace(":", "-"))
def test_a_network_of_another_family_is_within_tolerance_or_the_page_says_where_not(
    timm: ModuleType, line: Line, tmp_path: Path
) -> None:
    np.savez(tmp_path / "calib.npz", images=natural_crops(48, line.size, seed=3))
    spec = ExportSpec(
        fp16=True,
        bf16=True,
        int8=True,
        calib=tmp_path / "calib.npz",
        batch=BatchRange(min=1, opt=2, max=4),
        engine="tensorrt-rtx",
        gpu=("sm86",),
    )
    report = export(ModelSpec(arch=line.arch, image_size=line.size), spec, tmp_path / "bundle").report
    failed = {entry.artifact: failure(entry) for entry in report.entries if not entry.passed}
    assert failed.keys() == line.outside, failed
    manifest = read_manifest(tmp_path / "bundle")
    assert {one.precision for one in manifest.artifacts if one.kind == "engine"} >= {
        Precision.FP16,
        Precision.INT8,
    }


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.arch.replace(":", "-"))
def test_the_zoos_page_has_a_row_for_it_and_names_what_it_cannot_hold(line: Line) -> None:
    (row,) = [
        row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith(f"| {line.arch} |")
    ]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1] == str(line.size)
    assert {
        name for name, cell in zip(("fp16", "bf16"), cells[2:4], strict=True) if "outside" in cell
    } == line.outside
