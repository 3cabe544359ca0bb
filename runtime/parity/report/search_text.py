"""The report of the INT8 search in sentences: for the terminal, for Markdown and for the HTML report alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resnet_export.runtime.parity.report.search_report import (
    Improvement,
    LayerSensitivity,
    MixedPrecision,
    SearchReport,
    Validation,
)

_SHOWN = 3  # layers of a ranking


def sentences(found: SearchReport) -> tuple[str, ...]:
    """Return what a person wants to know of the search, one sentence or two to the line.

    Verdicts of graphs that may not be shipped are not among them: those stand with the artifacts themselves.
    """
    return tuple(_sentences(found))


def _sentences(found: SearchReport) -> Iterator[str]:
    if found.methods:
        yield (
            f"calibration method: {found.method} was chosen; SNR of an image's logits in dB, "
            f"{'; '.join(_tried_methods(found))}"
        )
    yield from map(_improvement, found.steps)
    yield from map(_mixed_precision, found.mixed_precision)
    for ranking in found.rankings:
        worst = ", ".join(map(_sensitivity, ranking.layers[:_SHOWN]))
        yield f"int8.{ranking.target}: most sensitive layers, each quantized alone: {worst}"
    for verdict in found.verdicts:
        if not verdict.validation.by_image.even:
            yield (
                f"int8.{verdict.target}: a handful of images owns the energy of the logits, so single images' errors "
                f"decide; the furthest are {', '.join(one.sentence for one in verdict.validation.worst)}"
            )
    yield from found.notices


def _tried_methods(found: SearchReport) -> Iterator[str]:
    rounds: dict[int, list[str]] = {}
    for trial in found.methods:
        images = next(iter(trial.results.values())).images
        rounds.setdefault(images, []).append(f"{trial.method} {_decibels_of(trial.results)}")
    targets = " / ".join(found.methods[0].results)
    for images, tried in rounds.items():
        held_out = " held-out" if images == found.held_out else ""
        yield f"on {images}{held_out} images ({targets}): {', '.join(tried)}"


def _improvement(step: Improvement) -> str:
    text = f"{step.name} was {'used' if step.used else 'not used'}"
    if step.before_db:
        gains = " / ".join(_decibels(gain, sign="+") for gain in step.gain_db.values())
        text += f"; it changes the SNR of an image's logits by {gains} dB ({' / '.join(step.gain_db)})"
    return f"{text}: {step.note}" if step.note else text


def _mixed_precision(found: MixedPrecision) -> str:
    path = "; ".join(
        f"{trial.excluded} excluded: {'within' if trial.holds else ', '.join(trial.outside)}"
        for trial in found.path
    )
    if not found.excluded:
        return (
            f"int8.{found.target}: excluding layers does not keep it within {found.limit} while INT8 remains "
            f"worthwhile ({path or 'none could be tried'})"
        )
    names = f": {', '.join(found.excluded[:_SHOWN])}{'…' if len(found.excluded) > _SHOWN else ''}"
    return (
        f"int8.{found.target}: {len(found.excluded)} layer{'s' if len(found.excluded) > 1 else ''} with "
        f"{100 * found.float_share:.1f} % of the multiply-adds excluded from INT8{names}; otherwise it would not be "
        f"within {found.limit} ({path})"
    )


def _sensitivity(layer: LayerSensitivity) -> str:
    noise = "logits that are not finite" if layer.noise is None else f"{100 * layer.noise:.2g} % noise"
    return f"{layer.layer} ({noise})"


def _decibels_of(results: Mapping[str, Validation]) -> str:
    return " / ".join(_decibels(one.finite_decibels) for one in results.values())


def _decibels(value: float | None, *, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}.1f}"
