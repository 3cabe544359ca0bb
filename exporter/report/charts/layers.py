"""The signal-to-noise ratio along an artifact's layers, in the order of its graph."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resnet_export.exporter.report.charts.section import Chart, Row, Shown, Table
from resnet_export.exporter.report.charts.svg import (
    WIDTH,
    color,
    fitted,
    framed,
    picture,
    to_svg,
    write,
)
from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.attribution.layers import LayerFigure, Layerwise
from resnet_export.runtime.parity.report.schema import ParityReport

_HEIGHT = 220
_LEFT, _RIGHT = 44, 10


_HEADERS = ("node", "module", "operator", "local error", "limit", "SNR in place, dB", "why it diverges")


def layer_charts(report: ParityReport, _: Material) -> Shown:
    """Show a chart, and the worst layers, for each artifact whose layers were compared."""
    if not report.layerwise:
        why = ", since nothing failed" if report.verdict.status == "passed" else ""
        return Shown(
            missing=Markup(
                "The layers were not compared{}: <code>resnet-export parity BUNDLE --layers all</code> does, with the "
                "export extra installed (<code>pip install 'resnet-export[export]'</code>)."
            ).format(why)
        )
    return Shown(
        lede=Markup(
            "Each layer’s output inside the artifact against the fp32 graph’s, measured on copies that are neither "
            "timed nor shipped. The ratio falls along the network also when nothing is wrong. A layer diverges (✕) "
            "when its <em>local error</em>, given the fp32 graph’s input, is larger than rounding explains."
        ),
        charts=tuple(
            Chart(
                title=f"{found.artifact} on {found.backend}",
                svg=layer_chart(found, f"layers{i}"),
                note=found.sentence,
                bad=found.first is not None,
            )
            for i, found in enumerate(report.layerwise)
        ),
        tables=tuple(
            Table(
                headers=_HEADERS,
                rows=tuple(Row(_cells(layer), layer.diverges) for layer in found.worst),
                numbers=frozenset(_HEADERS[3:6]),
                title=f"{found.artifact}: the {len(found.worst)} worst of {len(found.layers)} layers",
            )
            for found in report.layerwise
        ),
    )


def _cells(layer: LayerFigure) -> tuple[str, ...]:
    code = Markup("<code>{}</code>")
    error = "–" if layer.local_error is None else f"{layer.local_error:.2g}"
    return (
        code.format(layer.node),
        code.format(layer.module or "–"),
        layer.op,
        "missing" if layer.missing else error,
        f"{layer.limit:.2g}",
        "–" if layer.snr_db is None else f"{layer.snr_db:.1f}",
        layer.reason,
    )


def layer_chart(found: Layerwise, name: str) -> Markup:
    """Draw the ratio of the layers in place; layers that diverge are crosses, and the first of them is named.

    Not every layer has a ratio: one without error has none, nor has one that is missing or whose output exists
    nowhere outside a fused pair. The line runs past them.
    """
    figure = picture(_HEIGHT)
    axes = framed(figure, _LEFT, 40, _RIGHT, 42)
    ratios = [math.nan if layer.snr_db is None else layer.snr_db for layer in found.layers]
    order = list(range(1, len(ratios) + 1))
    known = [i for i, ratio in enumerate(ratios) if math.isfinite(ratio)]
    shown = [ratios[i] for i in known] or [0.0]
    axes.plot(
        [order[i] for i in known],
        [ratios[i] for i in known],
        color=color(found.precision),
        linewidth=1.5,
        marker="o",
        markersize=3.5,
    )
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or 5.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0.5, max(len(order), 1) + 0.5)
    diverging = [i for i, layer in enumerate(found.layers) if layer.diverges]
    heights = np.interp(diverging, known or [0], shown)
    axes.plot(
        [order[i] for i in diverging],
        heights,
        marker="X",
        markersize=9,
        color=color("bad"),
        linestyle="none",
        clip_on=False,
    )
    if diverging:
        x = order[diverging[0]]
        axes.axvline(x, color=color("bad"), linewidth=1, dashes=(3, 3))
        across = (x - 0.5) / len(order) * (WIDTH - _LEFT - _RIGHT)
        room = {"left": WIDTH - _LEFT - across, "right": _LEFT + across}
        side = max(room, key=lambda side: room[side])
        label = fitted(found.layers[diverging[0]].node, room[side], bold=True)
        write(
            axes,
            x,
            1.07,
            label,
            "bad",
            ha=side,
            weight="bold",
            transform=axes.get_xaxis_transform(),
        )
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("layer, in the order of the graph", color=color("muted"), labelpad=4)
    write(
        axes, -_LEFT / (WIDTH - _LEFT - _RIGHT), 1.22, "SNR in place, dB", "muted", transform=axes.transAxes
    )
    return to_svg(figure, name, found.sentence)
