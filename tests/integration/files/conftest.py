from __future__ import annotations

import pytest

from kie_provider.client.prices import PriceTable
from kie_provider.files.saving import ResultSaver, SaveOptions
from kie_provider.hooks.kie import KieHook
from tests.support.results import RUN


@pytest.fixture
def save(kie_connection, tmp_path, monkeypatch):
    """Save a result below ``tmp_path / "out"`` with the options given; nothing is slept."""
    monkeypatch.setattr("kie_provider.client.retry.backoff", lambda attempt, **_: 0.0)

    def save(result, *, run=RUN, **options):
        defaults = {
            "target": str(tmp_path / "out"),
            "file_name": "{kie_task_id}-{index}.{extension}",
            "overwrite": False,
            "on_wrong_size": "warn",
            "embed_provenance": False,
            "redact_prompt": False,
            "max_bytes": 2**30,
            "max_pixels": 12_000_000,
        }
        with KieHook() as hook:
            return ResultSaver(SaveOptions(**defaults | options), hook, PriceTable.parse()).save(result, run)

    return save
