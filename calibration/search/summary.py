"""What the INT8 search found, in sentences: for the terminal, for Markdown and for the HTML report alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resnet_export.calibration.quantize.placement import Target
from resnet_export.calibration.search.evaluate import Judgment
from resnet_export.calibration.search.mixed_precision import Budget, Damage
from resnet_export.calibration.search.search_report import Findings, Step

_TITLES: Mapping[Target, str] = {"tensorrt": "TensorRT", "cpu": "CPU"}
_SHOWN = 3  # layers of a ranking


def sentences(findings: Findings) -> tuple[str, ...]:
    """Return what a person wants to know of the search, one sentence or two to the line.

    Verdicts of graphs that may not be shipped are not among them: those stand with the artifacts themselves.
    """
    return tuple(_sentences(findings))


def _sentences(findings: Findings) -> Iterator[str]:
    if findings.methods:
        yield (
            f"INT8 ranges: {findings.method} was chosen; SNR of the logits, TensorRT graph / CPU graph, in dB, "
            f"{'; '.join(_seen(findings))}"
        )
    for step in findings.steps:
        yield _step(step)
    for budget in findings.budgets:
        yield _budget(budget)
    for ranking in findings.rankings:
        worst = ", ".join(_damage(one) for one in ranking.layers[:_SHOWN])
        yield (
            f"INT8, {_TITLES[ranking.target]} graph: quantized alone, these layers do the most damage: {worst}"
        )
    yield from findings.notices


def _seen(findings: Findings) -> Iterator[str]:
    rounds: dict[int, list[str]] = {}
    for trial in findings.methods:
        images = next(iter(trial.judged.values())).images
        rounds.setdefault(images, []).append(f"{trial.method} {_pair(trial.judged)}")
    for images, seen in rounds.items():
        held = " held-out" if images == findings.held_back else ""
        yield f"on {images}{held} images: {', '.join(seen)}"


def _step(step: Step) -> str:
    text = f"INT8 {step.name} was {'used' if step.used else 'not used'}"
    if step.before_db:
        gains = " / ".join(_decibels(gain, sign="+") for gain in step.gain_db.values())
        text += f"; it changes the SNR of the logits by {gains} dB (TensorRT graph / CPU graph)"
    return f"{text}: {step.note}" if step.note else text


def _budget(budget: Budget) -> str:
    where = f"INT8, {_TITLES[budget.target]} graph"
    path = "; ".join(
        f"{one.excluded} kept: {'within' if one.holds else ', '.join(one.outside)}" for one in budget.path
    )
    if not budget.excluded:
        return (
            f"{where}: no number of layers that leaves INT8 worth while keeps it within {budget.limit} "
            f"({path or 'none could be tried'})"
        )
    names = f": {', '.join(budget.excluded[:_SHOWN])}{'…' if len(budget.excluded) > _SHOWN else ''}"
    return (
        f"{where}: {len(budget.excluded)} layer{'s' if len(budget.excluded) > 1 else ''} with "
        f"{100 * budget.float_share:.1f} % of the multiply-adds stay in floating point{names}; otherwise it would not "
        f"be within {budget.limit} ({path})"
    )


def _damage(damage: Damage) -> str:
    noise = "logits that are not finite" if damage.noise is None else f"{100 * damage.noise:.2g} % noise"
    return f"{damage.layer} ({noise})"


def _pair(judged: Mapping[Target, Judgment]) -> str:
    return " / ".join(_decibels(one.snr_db) for one in judged.values())


def _decibels(value: float | None, *, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}.1f}"
