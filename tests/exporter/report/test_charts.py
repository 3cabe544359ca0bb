"""What the charts are made of: the Pareto front, the clips, the shares, and the room that a name gets."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resnet_export.calibration.observe.histogram import observe
from resnet_export.calibration.observe.table import CalibrationTable, build
from resnet_export.exporter.report.charts.clipping import QUANTILES, clippings, histogram, worst
from resnet_export.exporter.report.charts.intervals import Interval, intervals
from resnet_export.exporter.report.charts.pareto import Point, front
from resnet_export.exporter.report.charts.svg import TEXT, drawing, fitted, scientific
from resnet_export.exporter.report.charts.waterfall import percent, waterfall
from resnet_export.runtime.parity.attribution.stages import Stage, attribute
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.precision import Precision

points = st.builds(
    Point,
    title=st.just("x"),
    milliseconds=st.sampled_from([1.0, 2.0, 3.0, 5.0]),
    percent=st.sampled_from([90.0, 95.0, 99.0]),
    precision=st.just(Precision.FP32),
    passed=st.booleans(),
)


@given(st.lists(points, max_size=12))
def test_a_run_is_on_the_front_exactly_when_no_passed_run_equals_or_beats_it_in_both(
    given: list[Point],
) -> None:
    def beaten(i: int) -> bool:
        mine = given[i]
        for j, other in enumerate(given):
            no_worse = other.milliseconds <= mine.milliseconds and other.percent >= mine.percent
            same = (other.milliseconds, other.percent) == (mine.milliseconds, mine.percent)
            if other.passed and no_worse and (not same or j < i):
                return True
        return False

    expected = {i for i, point in enumerate(given) if point.passed and not beaten(i)}
    found = front(given)
    assert set(found) == expected
    assert list(found) == sorted(found, key=lambda i: given[i].milliseconds)


def tables(values: np.ndarray) -> CalibrationTable:
    return build(
        {"x": observe(values)},
        graph="0" * 64,
        observed="0" * 64,
        data="1" * 64,
        images=1,
        methods=("percentile",),
    )


@pytest.mark.parametrize("relu", [False, True])
def test_the_figures_of_a_clip_are_those_of_the_values_themselves(relu: bool) -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[:40] *= 6
    if relu:
        values = np.maximum(values, 0)
    (one,) = clippings(tables(values))
    magnitudes = np.abs(values.astype(np.float64))
    assert one.beyond == pytest.approx((magnitudes > one.range.amax).mean(), rel=0.15, abs=1e-6)
    for q, found in zip(QUANTILES, one.quantiles, strict=True):
        assert found == pytest.approx(np.quantile(magnitudes, q), rel=0.02, abs=1e-3)
    step = one.range.amax / 127
    rounded = np.clip(np.rint(values / step), -127, 127) * step
    ratio = 10 * np.log10((magnitudes**2).sum() / ((values - rounded) ** 2).sum())
    assert one.snr_db == pytest.approx(ratio, abs=0.3)
    assert one.peak == magnitudes.max()


def test_a_tensor_of_zeros_has_no_ratio_and_is_not_among_the_worst() -> None:
    found = clippings(tables(np.zeros(100, np.float32)))
    assert found[0].snr_db is None
    assert worst(found, 6) == ()


@given(
    arrays.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
    ),
    st.integers(1, 20),
)
def test_a_histogram_counts_every_value_once(values: np.ndarray, bins: int) -> None:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    counts = histogram(observe(values), low, high if high > low else low + 1, bins)
    assert counts.shape == (bins,)
    assert counts.sum() == pytest.approx(len(values))
    assert (counts >= 0).all()


def test_a_histogram_agrees_with_numpys_up_to_the_bins_of_the_table() -> None:
    values = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
    found = histogram(observe(values), float(values.min()), float(values.max()), 16)
    expected, _ = np.histogram(values, 16, (float(values.min()), float(values.max())))
    assert np.abs(found - expected).max() <= 0.02 * expected.max()


@given(st.text(min_size=1, max_size=200), st.floats(30, 400))
def test_a_name_fits_its_room_and_keeps_both_ends(name: str, width: float) -> None:
    short = fitted(name, width)
    assert len(short) <= max(4, width / (0.56 * TEXT))
    assert short == name or (short[0] == name[0] and short[-1] == name[-1] and "…" in short)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.4825, "0.48"),
        (0.0011, "0.0011"),
        (3.4e-7, "3.4×10⁻⁷"),
        (-2e-5, "−2.0×10⁻⁵"),
        (12.0, "12"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert scientific(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.0234, "2.3 %"), (-0.2, "−20 %"), (1e-5, "≈0 %"), (-0.031, "−3.1 %")],
)
def test_shares_are_percentages(share: float, text: str) -> None:
    assert percent(share) == text


def bars(svg: str) -> list[tuple[float, float]]:
    """The left and right ends of the filled rectangles of a picture, from top to bottom."""
    found = []
    for path in ElementTree.fromstring(svg).iter("path"):
        corners = [
            (float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path.attrib.get("d", ""))
        ]
        if "fill: var(--" in path.attrib.get("style", "") and len(corners) >= 4:
            xs = [x for x, _ in corners]
            found.append((min(y for _, y in corners), min(xs), max(xs)))
    return [(left, right) for _, left, right in sorted(found)]


def test_bars_are_the_shares_and_each_begins_where_the_last_one_ended() -> None:
    rng = np.random.default_rng(0)
    eager = rng.normal(size=(20, 5))
    stages = [eager + rng.normal(size=eager.shape) * scale for scale in (0.1, 0.2, 0.15)]
    names = [Stage(name=name, precision=Precision.FP32) for name in ("onnx", "simplified", "backend")]
    limits = Tolerances.shipped()
    found = attribute(eager, list(zip(names, stages, strict=True)), limits, "x")
    with drawing():
        *parts, whole = bars(waterfall(found, "x"))
    scale = whole[1] - whole[0]
    reached = 0.0
    for stage, (left, right) in zip(found.stages, parts, strict=True):
        assert stage.share is not None
        ends = sorted((reached, reached + stage.share))
        assert (left - whole[0]) / scale == pytest.approx(ends[0], abs=1e-3)
        assert (right - whole[0]) / scale == pytest.approx(ends[1], abs=1e-3)
        reached += stage.share
    assert reached == pytest.approx(1)


def test_dots_lie_where_their_values_are_between_the_ends_of_the_scale() -> None:
    rows = [
        Interval(
            str(value), f"{value} %", value, value - 3, value + 2, 96.0, Precision.INT8, passed=value > 93
        )
        for value in (90.0, 95.0, 98.0)
    ]
    with drawing():
        svg = intervals(rows, "x", "dots", unit="%")
    dots = [float(use.attrib["x"]) for use in ElementTree.fromstring(svg).iter("use")]
    assert len(dots) == 3
    assert (dots[1] - dots[0]) / (dots[2] - dots[0]) == pytest.approx(5 / 8, abs=1e-3)
    texts = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert texts[:2] == ["✕ 90.0", "90.0 %"]
    assert texts[-2:] == ["87 %", "100 %"]


def test_control_characters_and_mathematics_in_a_name_are_written_out() -> None:
    row = Interval("a\x00\x1b[1m $x^2$", "1 %", 1.0, 0.0, 2.0, None, Precision.FP32, passed=True)
    with drawing():
        svg = intervals([row], "x", "a\x00description", unit="%")
    root = ElementTree.fromstring(svg)
    assert next(iter(root.iter("text"))).text == r"a\x00\x1b[1m $x^2$"
    assert root.attrib["aria-label"] == r"a\x00description"
