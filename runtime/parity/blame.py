"""Which step a failed check points to: one name, so that a person and a script know where to look first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnet_export.runtime.parity.attribution import BACKEND
from resnet_export.runtime.parity.criteria import LABEL_CRITERIA, Criterion
from resnet_export.runtime.parity.preprocessing_check import PREPROCESSING
from resnet_export.runtime.parity.report import Entry

LABELS = "labels"

_LAST = 1000  # the backend comes after every recorded stage, however many an artifact has


def blame(entries: Sequence[Entry], preprocessing: Sequence[Criterion]) -> str | None:
    """Return the stage that the failures point to, None when nothing failed.

    1. `preprocessing`, when the bundle's sample does not become what it became at the export: every figure on
       this host may then be wrong.
    2. The earliest stage, in the order of the line, whose step by itself breaks its limits in an artifact that failed;
       an artifact that could not be opened or run counts as `backend`.
    3. `labels`, when nothing but the labels of further images is wrong.
    4. The stage that has the largest share in the error of the first artifact that failed, where each step by itself
       is within its limits.
    """
    if any(not criterion.passed for criterion in preprocessing):
        return PREPROCESSING
    failed = [entry for entry in entries if not entry.passed]
    if not failed:
        return None
    wrong = [
        entry for entry in failed if entry.error or entry.refusal or set(_broken(entry)) - LABEL_CRITERIA
    ]
    if not wrong:
        return LABELS
    departing = [found for entry in wrong for found in _departure(entry)]
    if departing:
        return min(departing)[1]
    largest = (entry.attribution.largest for entry in wrong if entry.attribution)
    return next((stage for stage in largest if stage is not None), None)


def _broken(entry: Entry) -> Iterator[str]:
    return (criterion.name for check in entry.checks for criterion in check.criteria if not criterion.passed)


def _departure(entry: Entry) -> Iterator[tuple[int, str]]:
    """Yield where on the line the stage stands at which the entry departs, and its name."""
    if entry.error is not None:
        yield _LAST, BACKEND
    elif entry.attribution is not None and entry.attribution.departs is not None:
        stage = entry.attribution.departs
        places = [error.stage for error in entry.attribution.stages]
        yield (_LAST if stage == BACKEND else places.index(stage)), stage
