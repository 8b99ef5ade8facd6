"""Save the results of Kie tasks as files that can be trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import BaseOperator

from kie_provider.assets import set_asset_extra
from kie_provider.client.errors import KieTaskFailedError, KieTaskTimeoutError, raise_for_problems
from kie_provider.client.plain import from_text, got, is_blank
from kie_provider.config import price_table, shown_prices
from kie_provider.failures import FailureContext, failures
from kie_provider.hooks.kie import DEFAULT_CONN_ID, KieHook
from kie_provider.links import KieImagesLink, KieLogsLink, KieResultLink
from kie_provider.parameters import DEFAULT_FILE_NAME

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath

    from kie_provider.client.records import ResultDict, TaskRecord
    from kie_provider.files.provenance import Result, SavedResult
    from kie_provider.files.saving import ResultSaver

DEFAULT_MAX_BYTES = 2**30
#: A decoded pixel takes four bytes: with this limit, 48 MB.
DEFAULT_MAX_PIXELS = 12_000_000


class SavingOperator(BaseOperator):
    """Base class of the operators that save results; not for use in a DAG.

    The parameters are described at :class:`KieSaveResultOperator`.
    """

    template_fields: Sequence[str] = ("target", "file_name")

    def __init__(
        self,
        *,
        target: str | ObjectStoragePath | None = None,
        file_name: str = DEFAULT_FILE_NAME,
        overwrite: bool = False,
        on_wrong_size: str = "warn",
        embed_provenance: bool = False,
        redact_prompt: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target = target
        self.file_name = file_name
        self.overwrite = overwrite
        self.on_wrong_size = on_wrong_size
        self.embed_provenance = embed_provenance
        self.redact_prompt = redact_prompt
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        self._result: Result | ResultDict | None = None

    def _charged(self) -> float | None:
        """Return the credits that the result has cost; None: not known, or no result yet."""
        return shown_prices().cost_of(self._result) if self._result else None

    def saver(self, hook: KieHook, *, images_only: bool = False, file_name: str | None = None) -> ResultSaver:
        """Return the saver, which checks the rendered parameters.

        :param images_only: whether every result must be an image.
        :param file_name: replaces the author's.
        """
        from kie_provider.files.saving import ResultSaver, SaveOptions

        options = SaveOptions(
            target=self.target,
            file_name=self.file_name if file_name is None else file_name,
            overwrite=self.overwrite,
            on_wrong_size=self.on_wrong_size,
            embed_provenance=self.embed_provenance,
            redact_prompt=self.redact_prompt,
            max_bytes=self.max_bytes,
            max_pixels=self.max_pixels,
        )
        return ResultSaver(options, hook, price_table(), images_only=images_only)

    def _save(self, result: Result, saver: ResultSaver, context: Context) -> SavedResult:
        """Save the files of a result, tell the assets among the outlets, and return the result with ``files``."""
        from kie_provider.files.provenance import RunFacts

        self._result = result
        saved = saver.save(result, RunFacts.of(context["ti"]))
        extra = {"kie_task_id": saved["kie_task_id"], "model": saved.get("model"), "files": saved["files"]}
        set_asset_extra(self, context, extra)
        return saved


class KieSaveResultOperator(SavingOperator):
    """Save the result files of one Kie task where the pipeline wants them, and return the result dict with ``files``.

    Every file is downloaded, recognised by its content, decoded to the end if it is an image, measured and hashed
    before it appears under its final name, complete. A Flux-2 result must be an image. Beside the file stands a JSON
    file that says where it comes from: prompt, model, all inputs, Kie task id, credits and dollars, times, sha256, and
    the task instance.

    A retry keeps what is there and saves only what is missing; nothing is charged. Each asset among the outlets gets
    one event per task instance, with all files in ``extra``.

    ``files`` has one entry per file: ``path``, ``sha256`` (as Kie delivered it), ``stored_sha256`` (as stored),
    ``bytes``, ``media_type``, ``width`` and ``height`` (pixels, as it is shown; None if not an image), ``sidecar``
    (path of the JSON file) and ``thumbnail`` (path of a small JPEG; None if there is none).

    :param result: the result dict of a sensor or operator, or a Kie task id (templated).
    :param target: folder, as a local path, where ``~`` is the home folder, or as Airflow's object storage knows it:
        ``s3://conn_id@bucket/prefix`` (templated).
    :param file_name: name below the target, default ``{kie_task_id}-{index}.{extension}``; it ends with
        ``.{extension}``, and may have folders (templated).
    :param overwrite: replace a file of that name that is another one. Default: fail, and leave it alone.
    :param on_wrong_size: ``warn`` (default) or ``fail``, when an image does not have the aspect ratio or resolution
        that was requested.
    :param embed_provenance: also write model, Kie task id, prompt and the IPTC source type for generated media into
        PNG, JPEG and WebP files, as PNG text, EXIF and XMP. The pixels stay as they are. Refused for files with C2PA.
    :param redact_prompt: leave the prompt out of the JSON file (its sha256 is there instead) and of the image.
    :param max_bytes: refuse a larger file; default 1 GiB.
    :param max_pixels: refuse an image with more pixels; default 12 million. Each takes four bytes of memory.
    :param kie_conn_id: Airflow connection of type ``kie``, default ``kie_default`` (templated).
    """

    template_fields: Sequence[str] = ("result", *SavingOperator.template_fields, "kie_conn_id")
    template_fields_renderers = {"result": "json"}  # noqa: RUF012  # as BaseOperator declares it
    operator_extra_links = (KieImagesLink(), KieLogsLink(), KieResultLink())
    ui_color = "#e8e4f8"

    def __init__(
        self,
        *,
        result: str | Mapping[str, object],
        target: str | ObjectStoragePath,
        file_name: str = DEFAULT_FILE_NAME,
        overwrite: bool = False,
        on_wrong_size: str = "warn",
        embed_provenance: bool = False,
        redact_prompt: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        kie_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            target=target,
            file_name=file_name,
            overwrite=overwrite,
            on_wrong_size=on_wrong_size,
            embed_provenance=embed_provenance,
            redact_prompt=redact_prompt,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            **kwargs,
        )
        self.result = result
        self.kie_conn_id = kie_conn_id

    def execute(self, context: Context) -> SavedResult:
        """Save every file that is not there yet."""
        with failures(self.log, self._facts), KieHook(self.kie_conn_id) as hook:
            saver = self.saver(hook)
            return self._save(_read_result(self.result, hook), saver, context)

    def _facts(self) -> FailureContext:
        return FailureContext(self.kie_conn_id, self._result and self._result["kie_task_id"], self._charged())


def _read_result(value: object, hook: KieHook) -> Result:
    """Return a result dict; a Kie task id is looked up, and text may be a dict that a template has rendered.

    :raises KieValidationError: it is neither.
    :raises KieError: Kie does not know the task, or it has not ended well.
    """
    value = from_text(value)
    if isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{1,200}", value.strip()) and not is_blank(value):
        return _finished(hook.get_task(value.strip())).to_result()
    given = value if isinstance(value, Mapping) else {}
    urls = given.get("urls")
    if not isinstance(urls, Sequence) or isinstance(urls, str) or not isinstance(given.get("kie_task_id"), str):
        raise_for_problems([f"result: must be a Kie task id or a result dict, {got(value)}"])
    return cast("Result", dict(given))


def _finished(record: TaskRecord) -> TaskRecord:
    """Return the record of a task that has ended well.

    :raises KieTaskFailedError: it failed.
    :raises KieTaskTimeoutError: it is still running; there may be a result later.
    """
    from kie_provider.client.records import TaskState

    if record.state is TaskState.FAIL:
        reason = record.fail_message or "Kie gave no reason"
        raise KieTaskFailedError(
            reason, code=record.fail_code, kie_task_id=record.kie_task_id, credits_consumed=record.credits_consumed
        )
    if record.state is TaskState.RUNNING:
        raise KieTaskTimeoutError(
            f"it is still {record.kie_state}, and this operator does not wait; put KieTaskSensor before it",
            kie_task_id=record.kie_task_id,
        )
    return record
