"""Which limits in force are looser than the shipped ones, and by whom: said in every report."""

from __future__ import annotations

import msgspec

from resnet_export.runtime.parity.criteria.criterion import at_most
from resnet_export.runtime.parity.criteria.table import CRITERIA, bound
from resnet_export.runtime.parity.criteria.tolerances import Override, Overrides, Tolerances


def loosened(shipped: Tolerances, force: Tolerances, overrides: Overrides) -> tuple[str, ...]:
    """Return a sentence for each source of limits in `force`, the bundle and the user, that are looser than `shipped`.

    A limit that is not checked is the loosest.
    """
    found: dict[str, list[str]] = {}
    for precision, row in shipped.rows.items():
        given = overrides.get(precision, Override())
        for name, limit in msgspec.structs.asdict(force[precision]).items():
            expected = getattr(row, name)
            if expected is None or not _looser(name, limit, expected):
                continue
            source = "the bundle" if getattr(given, name) is msgspec.UNSET else "--tolerance"
            said = "not checked" if limit is None else _shown(name, limit)
            found.setdefault(source, []).append(
                f"{precision} {CRITERIA[name].title} {said} in place of {_shown(name, expected)}"
            )
    return tuple(
        f"limits are looser than the shipped ones, by {source}: {', '.join(limits)}"
        for source, limits in found.items()
    )


def _looser(name: str, limit: float | None, expected: float) -> bool:
    if limit is None:
        return True
    return limit > expected if CRITERIA[name].relation == "≤" else limit < expected


def _shown(name: str, limit: float) -> str:
    return bound(at_most(name, None, limit)).removeprefix("≤ ")
