"""What asset events say about the files that a task has made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Asset

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context


def set_asset_extra(operator: BaseOperator, context: Context, extra: Mapping[str, Any]) -> None:  # any JSON
    """Put ``extra`` into the event that each asset among the outlets gets when the task has succeeded."""
    for outlet in operator.outlets:
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra = dict(extra)
