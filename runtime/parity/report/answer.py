"""Can I ship it? One row for each artifact, and what to run where: with this every report begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resnet_export.runtime.parity.report.schema import ArtifactIdentity, Check, Entry, ParityReport

__all__ = ["Answer", "answers", "caveats", "headers", "recommendations", "table"]

_WORDS = {"passed": "pass", "failed": "FAIL", "unverified": "not verified"}


@dataclass(frozen=True)
class Answer:
    """What is known of one artifact, over all backends that ran it here.

    Attributes:
        artifact: which one.
        status: "passed", "failed" where any run failed, "unverified" where nothing ran it.
        accuracy: of the reference and of the worst run, as fractions; None without labels.
        drop: the greatest drop in percentage points of top-1 accuracy, and its 95 % interval.
        agreement: the lowest top-1 agreement, as a fraction.
        milliseconds: of the fastest run, for one image, in batches as they came.
        fastest: where that was.
        places: where it ran within tolerance.
    """

    artifact: ArtifactIdentity
    status: str
    accuracy: tuple[float, float] | None
    drop: tuple[float, float, float] | None
    agreement: float | None
    milliseconds: float | None
    fastest: str | None
    places: tuple[str, ...]


def answers(report: ParityReport) -> tuple[Answer, ...]:
    """Return one answer for each artifact of the bundle that was to be checked, in the manifest's order."""
    ran = {entry.artifact for entry in report.entries}
    asked = ran | set(report.unverified)
    return tuple(_answer(report, artifact) for artifact in report.bundle.artifacts if artifact.name in asked)


def headers(report: ParityReport) -> tuple[str, ...]:
    """Return the titles of the columns of `table`."""
    budget = "" if report.asked.max_drop is None else f", {report.asked.max_drop:g} allowed"
    figures = ("accuracy, %", f"drop (95 %{budget})") if _labeled(report) else ("top-1 agreement",)
    return ("artifact", "verdict", *figures, "MB", "ms/image", "runs on")


def table(report: ParityReport) -> list[tuple[str, ...]]:
    """Return the cells under `headers`, one row for each artifact."""
    labeled = _labeled(report)
    return [tuple(_cells(answer, labeled=labeled)) for answer in answers(report)]


def recommendations(report: ParityReport) -> Iterator[str]:
    """Yield what to run, a sentence for each kind of host: the fastest artifact that passed there."""
    found = answers(report)
    for device, host in (("cpu", "CPU"), ("gpu", "NVIDIA GPU")):
        runs = [entry for entry in report.entries if entry.passed and entry.device.startswith(device)]
        timed = [(_milliseconds(report, entry), entry) for entry in runs if entry.simulated is None]
        fastest = min(
            ((ms, entry) for ms, entry in timed if ms is not None), key=lambda pair: pair[0], default=None
        )
        if fastest is not None:
            milliseconds, entry = fastest
            yield f"{host}: {entry.title} ({milliseconds:.1f} ms/image here)"
    waiting = [answer.artifact for answer in found if answer.status == "unverified"]
    engines = [artifact for artifact in waiting if artifact.kind == "engine"]
    if engines and not any(entry.device.startswith("gpu") for entry in report.entries):
        smallest = min(engines, key=lambda artifact: artifact.bytes)
        yield (
            f"NVIDIA GPU: {smallest.name}, once `resnet-export parity` has passed there: "
            f"{len(engines)} engine{'s' if len(engines) > 1 else ''} not verified on this host"
        )


def caveats(report: ParityReport) -> Iterator[str]:
    """Yield what the figures of the answer do not say themselves."""
    if report.int8 is not None and report.asked.data is None:
        for verdict in report.int8.verdicts:
            drop = verdict.validation.accuracy_drop
            if drop is not None:
                yield (
                    f"int8.{verdict.target} loses {drop:.2f} points on {verdict.validation.images} calibration images, "
                    "which INT8 was fitted to; --val judges it on others"
                )


def _answer(report: ParityReport, artifact: ArtifactIdentity) -> Answer:
    entries = [entry for entry in report.entries if entry.artifact == artifact.name]
    checks = [check for check in map(_decisive, entries) if check is not None]
    labeled = [check.comparison.labeled for check in checks if check.comparison.labeled is not None]
    worst = max(labeled, key=lambda one: one.drop_points, default=None)
    timed = [
        (milliseconds, entry.place)
        for entry in entries
        if entry.error is None
        and entry.simulated is None
        and (milliseconds := _milliseconds(report, entry)) is not None
    ]
    fastest = min(timed, default=(None, None))
    return Answer(
        artifact=artifact,
        status="unverified"
        if not entries
        else "passed"
        if all(entry.passed for entry in entries)
        else "failed",
        accuracy=None if worst is None else (worst.reference_accuracy, worst.candidate_accuracy),
        drop=None
        if worst is None
        else (worst.drop_points, worst.drop_interval_points.low, worst.drop_interval_points.high),
        agreement=min((check.comparison.figures.top1_agreement for check in checks), default=None),
        milliseconds=fastest[0],
        fastest=fastest[1],
        places=tuple(entry.place for entry in entries if entry.passed),
    )


def _cells(answer: Answer, *, labeled: bool) -> Iterator[str]:
    yield answer.artifact.name
    yield _WORDS[answer.status]
    if labeled:
        yield "" if answer.accuracy is None else "{:.2f} → {:.2f}".format(*(100 * x for x in answer.accuracy))
        yield "" if answer.drop is None else "{:.2f} ({:.2f} to {:.2f})".format(*answer.drop)
    else:
        yield "" if answer.agreement is None else f"{100 * answer.agreement:.1f} %"
    yield f"{answer.artifact.bytes / 1e6:.1f}"
    yield "" if answer.milliseconds is None else f"{answer.milliseconds:.1f}"
    yield ", ".join(answer.places)


def _decisive(entry: Entry) -> Check | None:
    """Return the check on validation images where there was one, else that on the golden images."""
    return entry.check("data") or entry.check("golden")


def _labeled(report: ParityReport) -> bool:
    return any(check.comparison.labeled is not None for entry in report.entries for check in entry.checks)


def _milliseconds(report: ParityReport, entry: Entry) -> float | None:
    """Return what the backend took for one image, None where the report does not say."""
    seconds = report.times.get("running", {}).get(entry.key)
    images = sum(check.comparison.figures.images + sum(check.batches) for check in entry.checks)
    return 1000 * seconds / images if seconds and images else None
