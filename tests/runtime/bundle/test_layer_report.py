"""The layer report as a file, and the sentences that are made from it."""

from __future__ import annotations

import pytest

from resnet_export.runtime.bundle.layer_report import (
    TABLE_HEADER,
    LayerInfo,
    LayerReport,
    Operator,
    decode_report,
    encode_report,
    summary,
    table,
)
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.precision import Precision


def operator(
    node: str, op: str = "Conv", got: Precision | None = Precision.INT8, reason: str | None = None
) -> Operator:
    return Operator(
        node=node, op=op, graph=Precision.INT8, engine=got, layer=None if got is None else node, reason=reason
    )


def layer(name: str, output: str) -> LayerInfo:
    return LayerInfo(
        name=name, type="correlation", nodes=(name,), inputs=("int8",), outputs=(output,), weights="int8"
    )


REPORT = LayerReport(
    asked=Precision.INT8,
    source="build log",
    layers=(layer("a", "fp32"), layer("b", "int8"), layer("c", "fp16"), layer("fc", "fp16")),
    operators=(
        operator("a"),
        operator("b"),
        operator("c", got=Precision.FP16, reason="too sensitive"),
        operator("d", got=None, reason="no layer of the engine names it"),
        operator("fc", "Gemm", Precision.FP16, "not quantized"),
    ),
)


def test_a_report_survives_its_file() -> None:
    assert decode_report(encode_report(REPORT)) == REPORT
    assert encode_report(REPORT).endswith(b"}\n")


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1, 2]"])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="layer report cannot be read"):
        decode_report(data)


def test_a_table_has_a_row_per_layer_and_a_column_per_heading() -> None:
    rows = table(REPORT)
    assert len(rows) == len(REPORT.layers)
    assert {len(row) for row in rows} == {len(TABLE_HEADER)}
    assert rows[0] == ("a", "a", "correlation", "int8", "fp32", "")


def test_convolutions_are_counted_by_what_computes_them() -> None:
    assert REPORT.convolutions() == {Precision.INT8: 2, Precision.FP16: 1, None: 1}


def test_the_summary_accounts_for_every_convolution_and_names_each_shortfall() -> None:
    assert summary(REPORT) == (
        "3 of 4 convolutions accounted for (4 layers, from the build log)",
        "2 of 4 convolutions compute in int8",
        "1 of 4 convolutions compute in fp16",
        "1 of 2 int8 convolutions write a wider type; separate kernels requantize it",
        "c (Conv) computes in fp16, not in int8: too sensitive",
        "d (Conv) computes in unknown precision, not in int8: no layer of the engine names it",
        "fc (Gemm) computes in fp16, not in int8: not quantized",
    )
