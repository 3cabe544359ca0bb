"""Fixtures that tests of several commands need."""

from __future__ import annotations

import pytest

from resnet_export.exporter.cli import parity


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No parity check may begin."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the check began")

    monkeypatch.setattr(parity, "check_parity", fail)
