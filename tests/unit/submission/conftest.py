from __future__ import annotations

import pytest

from kie_provider.submission import journal as journals


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE", "LATE_PAUSE"):
        monkeypatch.setattr(journals, name, 0.0)
