"""Result dicts, and the images they are about."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from kie_provider.files.provenance import RunFacts

RUN = RunFacts("a_dag", "a_run", "a_task", 3, 2)
KIE_TASK_ID = "0123456789abcdef0123456789abcdef"


def picture(kind: str = "PNG", size: tuple[int, int] = (1024, 1024), colour: Any = (10, 200, 90)) -> bytes:
    """Return the bytes of an image file of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def result_of(*urls: str, **changes: Any) -> dict[str, Any]:
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
