"""The emulator's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

UPLOAD_SECONDS = 86_400.0
"""How long uploads are kept: Kie's newest documentation says 24 hours, an older page 3 days."""
RETENTION_SECONDS = 14 * 86_400.0
"""How long results are kept: until then ``download-url`` returns a fresh link, even if the first URL has expired."""
DIRECT_LINK_SECONDS = 20 * 60.0
"""How long a link of ``download-url`` works."""


@dataclass(frozen=True)
class Settings:
    """One emulated Kie account and how it behaves; all durations are in seconds.

    :param api_key: the only key that is accepted.
    :param webhook_hmac_key: signs callbacks, as if set on Kie's settings page; empty: they are not signed.
    :param credits: balance at the start and after a reset; 1 credit is 0.005 USD.
    :param waiting_seconds: time a task spends in state ``waiting``.
    :param queuing_seconds: then in ``queuing``.
    :param generating_seconds: then in ``generating``, before it ends.
    :param result_seconds: how long a result URL works; after that it gives HTTP 404. Kie says 24 hours.
    :param create_limit: createTask requests allowed per window; Kie's limit is 20 per 10 s and account.
    :param create_window_seconds: length of that window.
    :param image_format: ``png`` (as Flux-2 delivers) or ``jpeg`` (as it did before).
    :param record_shape: of recordInfo: ``2026-09`` as recorded then, or ``2026-04``, which has no ``response``,
        ``successFlag``, ``creditsConsumed``, ``operationType`` and ``paramJson``.
    """

    api_key: str = field(default="emulator-key", repr=False)
    webhook_hmac_key: str = field(default="emulator-webhook-key", repr=False)
    credits: float = 1000.0
    waiting_seconds: float = 0.0
    queuing_seconds: float = 0.0
    generating_seconds: float = 0.5
    result_seconds: float = 86_400.0
    create_limit: int = 20
    create_window_seconds: float = 10.0
    image_format: Literal["png", "jpeg"] = "png"
    record_shape: Literal["2026-04", "2026-09"] = "2026-09"

    def __post_init__(self) -> None:
        if self.image_format not in ("png", "jpeg"):
            raise ValueError(f"image_format must be 'png' or 'jpeg', got {self.image_format!r}")
        if self.record_shape not in ("2026-04", "2026-09"):
            raise ValueError(f"record_shape must be '2026-04' or '2026-09', got {self.record_shape!r}")
