"""A fixture for the test suite of whoever ships a bundle.

    def test_parity(parity):
        parity.check("bundle/", data="photos/", max_drop=0.5)

pytest loads this module by itself, in every project that has resnet-export installed; so it imports nothing but
pytest until a test uses the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import os

    from resnet_export.runtime.parity.report.schema import ParityReport

__all__ = ["Parity", "parity"]


class Parity:
    """What the fixture `parity` gives a test."""

    def check(self, bundle: str | os.PathLike[str], **options: Any) -> ParityReport:
        """Check a bundle, fail the test unless every artifact that ran is within tolerance, and return the report.

        `options` are the fields of `resnet_export.runtime.parity.ParitySpec`, or a whole one as `spec`, and what
        `resnet_export.exporter.parity.check.check_parity` takes besides.

        A verdict of "unverified", where nothing could run, fails the test too. A wrong request or a damaged bundle
        raises what `check_parity` raises.
        """
        __tracebackhide__ = True
        from resnet_export.exporter.parity.check import check_parity
        from resnet_export.runtime.parity.report.text import details

        report = check_parity(bundle, **options)
        if report.exit_code:
            found = dict(details(report))
            lines = [report.verdict.sentence]
            for title in ("Outside tolerance", "Layers", "Notes", "Skipped"):
                lines += [f"{title}:", *(f"  {item}" for item in found[title])] if title in found else []
            pytest.fail("\n".join(lines), pytrace=False)
        return report


@pytest.fixture(scope="session")
def parity() -> Parity:
    """Check bundles of resnet-export: `parity.check("bundle/", data="photos/", max_drop=0.5)`."""
    return Parity()
