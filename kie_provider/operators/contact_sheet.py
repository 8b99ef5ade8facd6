"""Show all images of a run on one sheet."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath


class KieContactSheetOperator(BaseOperator):
    """Show results and gaps on one sheet: ``<name>.html``, ``<name>.png`` and ``<name>.json``; needs Pillow.

    What is wrong with one image is shown in its tile and logged as a warning. To show the gaps that failed tasks
    leave, use ``trigger_rule="all_done"`` and ``prompts``.

    Returns a dict with ``html``, ``png``, ``manifest`` (paths as text), ``images`` (number shown), ``missing`` (number
    of prompts without an image) and ``credits``; see :func:`~kie_provider.contact_sheet.write_contact_sheet`.

    :param results: result dicts of the other operators and sensors: a list, one dict, or the ``output`` of a mapped
        task, whose failed ones are left out (templated).
    :param target: folder, as text or ObjectStoragePath: a local path, which is created, or ``s3://conn@bucket/prefix``
        (templated).
    :param prompts: all prompts that were asked for, in the order to show them; default: those of the results
        (templated).
    :param title: heading, default "Contact sheet" (templated).
    :param name: file name without suffix, default ``contact_sheet`` (templated).
    """

    template_fields: Sequence[str] = ("results", "target", "prompts", "title", "name")
    template_fields_renderers = {"results": "json", "prompts": "json"}  # noqa: RUF012  # as BaseOperator declares it
    ui_color = "#e8e4f8"

    def __init__(
        self,
        *,
        results: Any,
        target: str | ObjectStoragePath,
        prompts: Any = None,
        title: str = "Contact sheet",
        name: str = "contact_sheet",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.results = results
        self.target = target
        self.prompts = prompts
        self.title = title
        self.name = name

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        """Write the three files and return where they are, and the totals."""
        from kie_provider.contact_sheet import write_contact_sheet

        try:
            sheet = write_contact_sheet(
                _results(self.results),
                self.target,
                prompts=_prompts(self.prompts),
                title=str(self.title),
                name=str(self.name),  # a date that was rendered as a native object is a number
            )
        except (ValueError, ImportError) as error:
            raise AirflowFailException(str(error)) from error  # the next try would meet the same
        self.log.info(
            "%s shows %d images and %d gaps, %g credits",
            sheet["html"],
            sheet["images"],
            sheet["missing"],
            sheet["credits"],
        )
        return sheet


def _results(value: Any) -> Any:
    """Return results, also those that a template made text.

    :raises ValueError: they are no results.
    """
    parsed = _parsed(value)
    if parsed is None or (isinstance(parsed, Mapping | Sequence) and not isinstance(parsed, str)):
        return parsed
    from kie_provider.client.models import shorten

    raise ValueError(f"results: must be result dicts, got {shorten(value)}")


def _prompts(value: Any) -> Any:
    parsed = _parsed(value)
    return parsed if not isinstance(parsed, Mapping) else value


def _parsed(value: Any) -> Any:
    """Read a list or dict that a template made text; return anything else as it is, and None for nothing."""
    from kie_provider.client.models import is_blank

    if is_blank(value):
        return None
    if not isinstance(value, str) or value.strip()[0] not in "[{":
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # noqa: PERF203  # two rounds
            continue
    return value
