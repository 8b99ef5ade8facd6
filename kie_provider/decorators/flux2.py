"""``@task.flux2``: a function returns the prompt, the task returns the image."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from kie_provider import parameters
from kie_provider.client.errors import KieValidationError, raise_for_problems
from kie_provider.client.plain import shorten
from kie_provider.decorators.map_label import MapLabel
from kie_provider.operators.flux2 import REQUEST_FIELDS, Flux2GenerateImageOperator, read_request

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator

    from kie_provider.submission.inputs import TaskRequest


class Flux2DecoratedOperator(DecoratedOperator, Flux2GenerateImageOperator):
    """Calls a function for the prompt, then does what :class:`Flux2GenerateImageOperator` does.

    A try that finds a Kie task of an earlier one continues with it, and does not call the function again: another
    prompt, as an LLM would give, could not be submitted anyway.
    """

    custom_operator_name = "@task.flux2"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in Flux2GenerateImageOperator.template_fields if field != "prompt"),
    )
    template_fields_renderers = DecoratedOperator.template_fields_renderers
    shallow_copy_attrs: Sequence[str] = ("python_callable",)

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "prompt" in kwargs:
            raise TypeError("@task.flux2: the function returns the prompt, so it is no parameter of the decorator")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt="",  # until the function is called
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Call the function unless an earlier try has submitted its prompt; then create, wait and save."""
        context_merge(context, self.op_kwargs)
        self._label = MapLabel(context)
        self.op_kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        return self._generate(
            context,
            self._call,
            find=lambda: self._call().images,  # only the function knows them
            on_recorded=self._take_recorded,
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral, with the context as it was before."""
        context_merge(context, self.op_kwargs)
        MapLabel(context).recall()
        return super().resume_execution(next_method, next_kwargs, context)

    def _take_recorded(self) -> None:
        raise_for_problems(parameters.problems(self), "nothing more was sent.")
        self.log.info("An earlier try has submitted a prompt; the function is not called again")
        self._label.recall()

    def _call(self) -> TaskRequest:
        """Call the function, take over what it returns, and return what is asked for.

        :raises KieValidationError: it is neither a prompt nor a dict of known fields.
        """
        returned = self.python_callable(*self.op_args, **self.op_kwargs)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_result_of(returned))
        self._label.keep()
        if isinstance(returned, str):
            returned = {"prompt": returned}
        if not isinstance(returned, Mapping) or "prompt" not in returned:
            raise KieValidationError(
                f"nothing was sent.\n  - the function of @task.flux2 must return a prompt or a dict with one, "
                f"got {shorten(returned)}"
            )
        raise_for_problems(
            [
                f"{name}: @task.flux2 takes no such field; allowed: {', '.join(REQUEST_FIELDS)}"
                for name in returned
                if name not in REQUEST_FIELDS
            ]
        )
        for name, value in returned.items():
            setattr(self, name, value)
        return read_request(self)


async def _result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def flux2_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function that returns a prompt into a task that returns the result dict of its image.

    The function may also return a dict: ``prompt`` and any of ``model``, ``aspect_ratio``, ``resolution``,
    ``input_images``, ``input_urls``, ``nsfw_checker`` and ``callback_url``, which then count, not the decorator's.

    :param python_callable: the function.
    :param kwargs: parameters of :class:`~kie_provider.operators.flux2.Flux2GenerateImageOperator`, without ``prompt``.
    """
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=Flux2DecoratedOperator, **kwargs
    )
