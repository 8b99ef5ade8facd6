"""Show all images of a run on one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from kie_provider.assets import set_asset_extra
from kie_provider.client.errors import KieStorageError
from kie_provider.client.plain import counted, from_text, got, is_blank
from kie_provider.config import price_table
from kie_provider.failures import FailureContext, failures
from kie_provider.links import KieRunImagesLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath


class KieContactSheetOperator(BaseOperator):
    """Show results and gaps on one sheet: ``<name>.html``, ``<name>.png`` and ``<name>.json``; needs Pillow.

    What is wrong with one image is shown in its tile and logged as a warning. To show the gaps that failed tasks
    leave, use ``trigger_rule="all_done"`` and ``prompts``.

    Returns a dict with ``html``, ``png``, ``manifest`` (paths as text), ``images`` (number shown), ``missing`` (number
    of prompts without an image), ``not_found`` (number of files that are not there) and ``credits``; see
    :func:`~kie_provider.contact_sheet.write_contact_sheet`.

    Each asset among the outlets gets one event with the files of all results in ``extra``.

    :param results: result dicts of the other operators and sensors: a list, one dict, or the ``output`` of a mapped
        task, whose failed ones are left out; or what a batch has returned (templated).
    :param target: folder, as text or ObjectStoragePath: a local path, which is created, or ``s3://conn@bucket/prefix``
        (templated).
    :param prompts: all prompts that were asked for, in the order to show them; default: those of the results, or of
        the batch (templated).
    :param title: heading, default "Contact sheet" (templated).
    :param name: file name without suffix, default ``contact_sheet`` (templated).
    """

    template_fields: Sequence[str] = ("results", "target", "prompts", "title", "name")
    template_fields_renderers = {"results": "json", "prompts": "json"}  # noqa: RUF012  # as BaseOperator declares it
    operator_extra_links = (KieRunImagesLink(),)
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

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the three files and return where they are, and the totals."""
        from kie_provider.batch import manifest
        from kie_provider.contact_sheet import write_contact_sheet
        from kie_provider.contact_sheet.results import list_of, result_dicts
        from kie_provider.files.provenance import input_of
        from kie_provider.files.storage import storage_path

        with failures(self.log, lambda: FailureContext(charged="nothing")):
            results, prompts = _read_results(self.results), _read_prompts(self.prompts)
            if _is_batch(results):
                content = manifest.read(path := storage_path("results", results["manifest"]))
                items = manifest.items_of(content)
                if problem := manifest.problem(content, results):
                    problem = f"{path} {problem}, {manifest.ANOTHER_DISK}"
                    if not items:
                        raise KieStorageError(f"results: {problem}")
                    self.log.warning("Images may be missing from the sheet: %s.", problem)
                results = [item for item in items if manifest.is_saved(item)]
                prompts = prompts or [input_of(item).get("prompt") for item in items]
            results = result_dicts(results)
            sheet = write_contact_sheet(
                results,
                self.target,
                prompts=prompts,
                title=str(self.title),
                name=str(self.name),  # a date that was rendered as a native object is a number
                prices=price_table(),
            )
        self.log.info(
            "%s shows %s and %s, %s",
            sheet["html"],
            counted(sheet["images"], "image"),
            counted(sheet["missing"], "gap"),
            counted(sheet["credits"], "credit"),
        )
        if sheet["not_found"]:
            self.log.warning(
                "%d of the files that the results name are not there, as this worker sees it: other tasks have saved "
                "them on other machines, or they were removed. A local target must be a disk that all workers share.",
                sheet["not_found"],
            )
        files = [file for result in results for file in list_of(result.get("files"))]
        set_asset_extra(self, context, {"manifest": sheet["manifest"], "files": files})
        return dict(sheet)


def _read_results(value: object) -> Any:
    """Return results, also those that a template has made text.

    :raises AirflowFailException: they are no results.
    """
    results = from_text(value)
    if is_blank(results):
        return None
    if isinstance(results, str) or not isinstance(results, Mapping | Sequence):
        raise AirflowFailException(f"results: must be result dicts, {got(value)}")
    return results


def _is_batch(results: Any) -> bool:
    """Whether this is what a batch has returned."""
    return isinstance(results, Mapping) and "manifest" in results and "urls" not in results


def _read_prompts(value: object) -> Any:
    """Return prompts, also a list that a template has made text; a prompt may be text that looks like an object."""
    prompts = from_text(value)
    if is_blank(prompts):
        return None
    return value if isinstance(prompts, Mapping) else prompts
