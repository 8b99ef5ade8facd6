"""Directives for errors.md: what the code says about its errors, so that the page cannot disagree with it."""  # noqa: INP001

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from kie_provider.client import errors
from kie_provider.failures import FailureContext, log_lines, operator_failure, sensor_failure

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FINAL = "fails, no retry"
RETRIED = "fails, Airflow retries"
SENSOR_TIMEOUT = "times out, no retry"
COMES_BACK = "is rescheduled"
NEVER = "does not occur"

#: createTask never ends with these: an answer that leaves the outcome open becomes KieSubmitUnknownError.
_NOT_WHEN_CREATING = (
    errors.KieServerError,
    errors.KieTaskFailedError,
    errors.KieTaskTimeoutError,
    errors.KieResultError,
    errors.KieBatchError,
    errors.KieFileError,
)
#: A sensor reads no files and writes none.
_NOT_WHEN_WAITING = (
    errors.KieSubmitUnknownError,
    errors.KieBudgetError,
    errors.KieBatchError,
    errors.KieFileError,
    errors.KieStorageError,
    errors.KieTargetError,
)


def create_ends(error: type[errors.KieError]) -> str:
    """Say how a create operator ends."""
    if error is errors.KieError or issubclass(error, _NOT_WHEN_CREATING):
        return NEVER
    if error is errors.KieRateLimitError:
        return COMES_BACK
    return FINAL if isinstance(operator_failure(error("")), AirflowFailException) else RETRIED


def sensor_ends(error: type[errors.KieError]) -> str:
    """Say how a sensor ends."""
    if issubclass(error, _NOT_WHEN_WAITING):
        return NEVER
    failure = sensor_failure(error(""))
    if isinstance(failure, AirflowSensorTimeout):
        return SENSOR_TIMEOUT
    return FINAL if isinstance(failure, AirflowFailException) else RETRIED


def saving_ends(error: type[errors.KieError]) -> str:
    """Say how an operator ends that saves the result of a Kie task which is there already."""
    if issubclass(error, errors.KieSubmitUnknownError | errors.KieBudgetError | errors.KieBatchError):
        return NEVER
    return FINAL if isinstance(operator_failure(error("")), AirflowFailException) else RETRIED


class ErrorTable(SphinxDirective):
    """``{kie-errors}``: one row per error class."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        lines = ["| Error | Create operator | Sensor | Saving |", "| --- | --- | --- | --- |"]
        for error in errors.error_classes():
            name = error.__name__
            ends = f"{create_ends(error)} | {sensor_ends(error)} | {saving_ends(error)}"
            lines.append(f"| [{name}](#{name.lower()}) | {ends} |")
        return self.parse_text_to_nodes(StringList(lines, source="kie-errors"))


class ErrorExample(SphinxDirective):
    """``{kie-error} Class``: the full text for the message in its body, and how tasks end."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "code": directives.unchanged,
        "http": directives.nonnegative_int,
        "task": directives.unchanged,
    }

    def example(self) -> errors.KieError:
        """Return the error that the options and the body describe."""
        error: errors.KieError = getattr(errors, self.arguments[0])(
            "\n".join(self.content),
            code=self.options.get("code"),
            http_status=self.options.get("http"),
            kie_task_id=self.options.get("task"),
        )
        return error

    def run(self) -> list[nodes.Node]:
        """Return a literal block and a line of text."""
        error, example = getattr(errors, self.arguments[0]), self.example()
        block = nodes.literal_block(str(example), str(example), language="text", classes=["wrap"])
        ends = f"Create operator: {create_ends(error)}. Sensor: {sensor_ends(error)}. Saving: {saving_ends(error)}."
        return [block, nodes.paragraph(ends, ends)]


class LogExample(ErrorExample):
    """``{kie-log} Class``: what the log of a task says that fails so."""

    def run(self) -> list[nodes.Node]:
        """Return a literal block."""
        lines = "\n".join(log_lines(self.example(), FailureContext("kie_default")))
        return [nodes.literal_block(lines, lines, language="text", classes=["wrap"])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("kie-errors", ErrorTable)
    app.add_directive("kie-error", ErrorExample)
    app.add_directive("kie-log", LogExample)
    return {"parallel_read_safe": True}
