from __future__ import annotations

import io

import pytest
from PIL import Image

from kie_provider.client.prices import PriceTable
from kie_provider.files.provenance import RunFacts
from kie_provider.files.saving import ResultSaver, SaveOptions
from kie_provider.hooks.kie import KieHook

RUN = RunFacts("a_dag", "a_run", "a_task", 3, 2)
KIE_TASK_ID = "0123456789abcdef0123456789abcdef"


def picture(kind="PNG", size=(1024, 1024), colour=(10, 200, 90)):
    """Return the bytes of an image file."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def result_of(*urls, **changes):
    """Return a result dict, as sensors and operators give it."""
    return {
        "kie_task_id": KIE_TASK_ID,
        "model": "flux-2/pro-text-to-image",
        "state": "success",
        "urls": list(urls),
        "result": None,
        "credits_consumed": 5.0,
        "cost_seconds": 12,
        "created_at": "2026-11-22T10:00:00Z",
        "completed_at": "2026-11-22T10:00:12Z",
        "input": {"prompt": "a red fox", "aspect_ratio": "1:1", "resolution": "1K"},
        **changes,
    }


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
