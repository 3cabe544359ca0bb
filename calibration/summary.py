"""What the INT8 search found, in sentences: for the terminal, for Markdown and for the HTML report alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resnet_export.calibration.findings import Findings, Step
from resnet_export.calibration.layout import Target
from resnet_export.calibration.sensitivity import Budget, Damage
from resnet_export.calibration.trial import Judgement

_TITLES: Mapping[Target, str] = {"tensorrt": "TensorRT", "cpu": "CPU"}
_SHOWN = 3  # layers of a ranking


def sentences(findings: Findings) -> tuple[str, ...]:
    """Return what a person wants to know of the search, one sentence or two to the line.

    Verdicts of graphs that may not be shipped are not among them: those stand with the artifacts themselves.
    """
    return tuple(_sentences(findings))


def _sentences(findings: Findings) -> Iterator[str]:
    if findings.methods:
        seen = ", ".join(f"{one.method} {_pair(one.judged)}" for one in findings.methods)
        yield (
            f"INT8 ranges: {findings.method} came closest of the methods tried; SNR of the logits on "
            f"{findings.held_back} held-back images, TensorRT graph / CPU graph, in dB: {seen}"
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


def _step(step: Step) -> str:
    text = f"INT8 {step.name} was {'used' if step.used else 'not used'}"
    if step.before_db:
        gains = " / ".join(_decibels(gain, sign="+") for gain in step.gain_db.values())
        text += f"; it changes the SNR of the logits by {gains} dB (TensorRT graph / CPU graph)"
    return f"{text}: {step.note}" if step.note else text


def _budget(budget: Budget) -> str:
    where = f"INT8, {_TITLES[budget.target]} graph"
    path = ", ".join(f"{one.kept} kept: {one.found:.2f}" for one in budget.path)
    if not budget.kept:
        return (
            f"{where}: no number of layers that leaves INT8 worth while keeps {budget.measure} within "
            f"{budget.limit:g} points ({path or 'none could be tried'})"
        )
    return (
        f"{where}: {len(budget.kept)} layers with {100 * budget.float_share:.1f} % of the multiply-adds stay in "
        f"floating point to keep {budget.measure} within {budget.limit:g} points ({path})"
    )


def _damage(damage: Damage) -> str:
    noise = "logits that are not finite" if damage.noise is None else f"{100 * damage.noise:.2g} % noise"
    return f"{damage.layer} ({noise})"


def _pair(judged: Mapping[Target, Judgement]) -> str:
    return " / ".join(_decibels(one.snr_db) for one in judged.values())


def _decibels(value: float | None, *, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}.1f}"
