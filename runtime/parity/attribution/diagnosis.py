"""Which step a failed check points to: one name, so that a person and a script know where to look first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.parity.attribution.stages import BACKEND
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import Cause, cause
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.parity.preprocessing_check import NORMALIZE, PREPROCESSING, advice
from resnet_export.runtime.parity.report.schema import Entry

LABELS = "labels"
CHECKPOINT = "checkpoint"
DATA = "data"

_LAST = 1000  # the backend comes after every recorded stage, however many an artifact has


def failing_stage(
    entries: Sequence[Entry], preprocessing: Sequence[Criterion], *, varies: bool = True
) -> str | None:
    """Return the stage that the failures point to, None when nothing failed.

    `varies` is False when the eager network gives every golden image the same logits.

    1. `preprocessing`, when the bundle's sample does not become what it became at the export: every figure on
       this host may then be wrong.
    2. `checkpoint`, when the network itself gives every golden image the same logits, and no recorded stage diverges.
    3. The earliest stage, in the order of the line, whose step by itself breaks its limits in an artifact that failed;
       an artifact that could not be opened or run, or that computes another thing in other batches or than was
       recorded, counts as `backend`.
    4. `data`, when the images are too few to tell, and nothing else is wrong; `labels`, when nothing but the labels
       of validation images is wrong, or the accuracy of every run alike.
    5. The stage that has the largest share in the error of the first artifact that failed, where each step by itself
       is within its limits.
    """
    if any(not criterion.passed for criterion in preprocessing):
        return PREPROCESSING
    failed = [entry for entry in entries if not entry.passed]
    if not failed:
        return None
    beside = _beside_artifacts(entries)
    wrong = [entry for entry in failed if _artifact_failed(entry, beside)]
    if not wrong:
        return DATA if all(map(_undecided, itertools.chain.from_iterable(map(_broken, failed)))) else LABELS
    diverging = [found for entry in wrong for found in _divergence(entry)]
    if not varies and all(stage == BACKEND for _, stage in diverging):
        return CHECKPOINT
    if diverging:
        return min(diverging)[1]
    largest = (entry.attribution.largest for entry in wrong if entry.attribution)
    return next((stage for stage in largest if stage is not None), None)


def suspects(
    entries: Sequence[Entry], preprocessing: Sequence[Criterion], stage: str | None
) -> tuple[str, ...]:
    """Return the artifacts whose layers may show what failed, in the order of the report.

    `stage` is what `failing_stage` named. Empty where something else is the cause: the labels of validation images, a
    network that ignores its input, or a host that normalizes otherwise than the export, which spoils every artifact.
    """
    normalized = all(criterion.passed for criterion in preprocessing if criterion.name == NORMALIZE)
    if stage == CHECKPOINT or (not normalized and all(_left_the_record(entry) for entry in entries)):
        return ()
    beside = _beside_artifacts(entries)
    return tuple(dict.fromkeys(entry.artifact for entry in entries if _artifact_failed(entry, beside)))


def hint(
    stage: str | None,
    entries: Sequence[Entry],
    preprocessing: Sequence[Criterion],
    golden: Mapping[str, NDArray[np.float32]],
) -> str:
    """Return a clause that says more of the stage that `failing_stage` named; "" where there is nothing to say.

    `golden` holds what each run made of the golden images, logits [N, C] by entry key.
    """
    if stage == PREPROCESSING:
        return f"so {advice(preprocessing)}"
    if stage == CHECKPOINT:
        return "since the network itself gives every golden image the same logits"
    if stage == DATA:
        return "which are too few for the limit that was asked for; give more images"
    if stage == LABELS and "checkpoint or labels" in _beside_artifacts(entries):
        return (
            "since every run is below the accuracy demanded; compare the labels, the preprocessing that the export was "
            "told, and the checkpoint"
        )
    if stage == BACKEND and _alike(entries, golden):
        return "and every backend agrees on it, so suspect the file, not a backend"
    return ""


def _alike(entries: Sequence[Entry], golden: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether each artifact that diverges in the backend does so on several backends, which agree with one another."""
    by_artifact: dict[str, list[Entry]] = {}
    for entry in entries:
        by_artifact.setdefault(entry.artifact, []).append(entry)
    groups = [group for group in by_artifact.values() if any(_left_the_record(entry) for entry in group)]
    return bool(groups) and all(
        len({entry.backend for entry in group}) > 1
        and all(_left_the_record(entry) and entry.key in golden for entry in group)
        and all(_agree(one, other, golden) for one, other in itertools.combinations(group, 2))
        for group in groups
    )


def _left_the_record(entry: Entry) -> bool:
    diverges = entry.attribution is not None and entry.attribution.diverges == BACKEND
    return not entry.passed and (diverges or any(one.name == "matches_recorded" for one in _broken(entry)))


def _agree(one: Entry, other: Entry, golden: Mapping[str, NDArray[np.float32]]) -> bool:
    limits = [entry.tolerance.relative_error for entry in (one, other)]
    error = relative_error(golden[other.key], golden[one.key])
    return error is not None and all(limit is not None and error <= limit for limit in limits)


def _beside_artifacts(entries: Sequence[Entry]) -> frozenset[Cause]:
    """Return the causes that are no artifact: labels, and an accuracy that no run has, fp32 included."""
    shared: Cause = "checkpoint or labels"
    asked = [entry for entry in entries if any(cause(one) == shared for one in entry.criteria)]
    lacking = bool(asked) and all(any(cause(one) == shared for one in _broken(entry)) for entry in asked)
    return frozenset({"labels", shared} if lacking else {"labels"})


def _artifact_failed(entry: Entry, beside: frozenset[Cause]) -> bool:
    """Whether the artifact itself is outside its limits, and not only for a cause in `beside`."""
    if entry.passed:
        return False
    return bool(
        entry.error
        or entry.refusal
        or not entry.checks
        or any(cause(one) not in beside and not _undecided(one) for one in _broken(entry))
    )


def _broken(entry: Entry) -> Iterator[Criterion]:
    return (criterion for criterion in entry.criteria if not criterion.passed)


def _undecided(criterion: Criterion) -> bool:
    """Whether a limit was kept, and failed all the same, since the images are too few to tell (`strict`)."""
    return (
        not criterion.passed
        and criterion.name == "max_drop"
        and criterion.value is not None
        and criterion.limit is not None
        and criterion.value <= criterion.limit
    )


def _divergence(entry: Entry) -> Iterator[tuple[int, str]]:
    """Yield where on the line the stage stands at which the entry diverges, and its name."""
    if entry.error is not None:
        yield _LAST, BACKEND
    elif entry.attribution is not None and entry.attribution.diverges is not None:
        stage = entry.attribution.diverges
        places = [error.stage for error in entry.attribution.stages]
        yield (_LAST if stage == BACKEND else places.index(stage)), stage
    elif any(cause(criterion) == "backend" for criterion in _broken(entry)):
        yield _LAST, BACKEND
