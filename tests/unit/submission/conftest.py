from __future__ import annotations

import pytest

from kie_provider.submission import journal, store


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    for module, name in ((store, "FIRST_PAUSE"), (store, "LONGEST_PAUSE"), (journal, "LATE_PAUSE")):
        monkeypatch.setattr(module, name, 0.0)
