"""What is gained and what is paid: time per image against accuracy, and the runs that nothing else beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from resnet_export.exporter.report.charts.svg import TEXT, WIDTH, color, framed, picture, to_svg, write
from resnet_export.runtime.precision import Precision

_HEIGHT = 270
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 18, 12, 42


@dataclass(frozen=True)
class Point:
    """One run: milliseconds an image, and percent right or in agreement. Only runs that `passed` can be best."""

    title: str
    milliseconds: float
    percent: float
    precision: Precision
    passed: bool


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        apart = (
            self.left >= other.left + other.width
            or other.left >= self.left + self.width
            or self.top >= other.top + other.height
            or other.top >= self.top + self.height
        )
        return not apart


def front(points: Sequence[Point]) -> tuple[int, ...]:
    """Return the Pareto front, fastest first: the passed runs that no passed run equals or beats in both.

    Of runs that are equal in both, the first is in it.
    """
    ranked = sorted(
        (i for i, point in enumerate(points) if point.passed),
        key=lambda i: (points[i].milliseconds, -points[i].percent, i),
    )
    found: list[int] = []
    for i in ranked:
        if not found or points[i].percent > points[found[-1]].percent:
            found.append(i)
    return tuple(found)


def scatter(points: Sequence[Point], quantity: str, name: str) -> Markup:
    """Draw the runs; those on the front are joined by steps and named first, the others where there is room."""
    best = front(points)
    figure = picture(_HEIGHT)
    axes = framed(figure, _LEFT, _TOP, _RIGHT, _BOTTOM)
    times = [point.milliseconds for point in points]
    values = [point.percent for point in points]
    low, high = math.log10(min(times)), math.log10(max(times))
    spare = 0.12 * (high - low) + 0.05
    bottom, top = min(values), max(values)
    margin = 0.18 * (top - bottom) or 1.0
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - spare), 10 ** (high + spare))
    axes.set_ylim(bottom - margin, top + 1.8 * margin)  # two rows of names fit above the best
    axes.xaxis.set_major_locator(FixedLocator(_round_numbers(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(FixedLocator(_ticks(bottom, top)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g} %"))
    axes.tick_params(axis="y", labelsize=TEXT, pad=2)
    axes.set_xlabel("ms/image", color=color("muted"), fontsize=TEXT, labelpad=4, parse_math=False)
    title = write(axes, 0, 1, quantity, "muted", transform=axes.transAxes, va="bottom")
    title.set_position((-(_LEFT - 2) / (WIDTH - _LEFT - _RIGHT), 1.02))

    steps = [points[i] for i in best]
    axes.step(
        [point.milliseconds for point in steps],
        [point.percent for point in steps],
        where="post",
        color=color("muted"),
        linewidth=1.2,
    )
    for i, point in enumerate(points):
        axes.plot(
            [point.milliseconds],
            [point.percent],
            marker="o" if point.passed else "X",
            markersize=9 if i in best else 7,
            color=color(point.precision) if point.passed else color("bad"),
            markerfacecolor=None if i in best or not point.passed else color("surface"),
            markeredgewidth=1.6,
            linestyle="none",
        )
    dots = [tuple(axes.transData.transform((point.milliseconds, point.percent))) for point in points]
    order = [*best, *(i for i in range(len(points)) if i not in best)]
    for i, (x, y) in _labels([points[i].title for i in order], [dots[i] for i in order], dots).items():
        chosen = points[order[i]]
        left, middle = axes.transData.inverted().transform((x, y))
        write(
            axes,
            left,
            middle,
            chosen.title,
            "ink" if order[i] in best else "muted",
            weight="bold" if order[i] in best else "normal",
        )
    named = ", ".join(points[i].title for i in best) or "none"
    return to_svg(figure, name, f"{quantity} against ms/image. Pareto-optimal: {named}.")


def _labels(
    titles: Sequence[str], dots: Sequence[tuple[float, ...]], obstacles: Iterable[tuple[float, ...]]
) -> dict[int, tuple[float, float]]:
    """Return where the left middle of each title goes that has room beside its dot, in units from the bottom left."""
    taken = [_Box(x - 6, y - 6, 12, 12) for x, y in obstacles]
    placed: dict[int, tuple[float, float]] = {}
    for i, (title, (x, y)) in enumerate(zip(titles, dots, strict=True)):
        width = 0.58 * TEXT * len(title)
        for left, middle in (
            (x + 9, y),
            (x - 9 - width, y),
            (x - width / 2, y + 15),
            (x - width / 2, y - 15),
            (x + 4, y + 15),
            (x + 4, y - 15),
            (x - width - 4, y + 15),
            (x - width - 4, y - 15),
            (x - width / 2, y + 30),
            (x - width / 2, y - 30),
        ):
            box = _Box(left, middle - 7, width, 14)
            inside = (
                left >= _LEFT - 8 and left + width <= WIDTH and _BOTTOM <= middle - 7 <= _HEIGHT - _TOP - 10
            )
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                placed[i] = (left, middle)
                break
    return placed


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; where that is too many or too few, thinned or the ends."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    if len(inside) > 5:
        inside = [value for value in inside if f"{value:e}"[0] == "1"]
    return inside if len(inside) > 1 else [float(f"{low * 1.1:.2g}"), float(f"{high / 1.1:.2g}")]


def _ticks(low: float, high: float) -> list[float]:
    if low == high:
        return [low]
    return [low, (low + high) / 2, high]
