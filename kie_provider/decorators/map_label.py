"""The name of a mapped task instance, where its function is not called again to set it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kie_provider.execution_timeout import held

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from kie_provider.submission.store import Store

log = logging.getLogger(__name__)

#: Key in the store of the task instance; the journal's keys begin with "kie." and a number.
KEY = "kie.map_label"


class MapLabel:
    """What ``map_index_template`` renders to.

    Airflow renders the template in the process that ends the task. A function that set what the template needs has then
    been called in another one, before a deferral or in an earlier try, so the rendered text is kept. Before Airflow 3.3
    it is kept for this try.
    """

    def __init__(self, context: Context) -> None:
        self._context: Any = context

    def keep(self) -> None:
        """Keep what the template renders to now that the function was called; nothing, if it needs what comes later."""
        if label := self._render():
            self._show(label)
            try:
                with held():
                    self._open_store().set(KEY, label)
            except Exception as error:  # noqa: BLE001  # a name is no reason not to make the image
                log.warning("The task's name %r could not be kept for later tries (%s)", label, error)

    def recall(self) -> None:
        """Have Airflow render the kept text, if the template needs what only the function has set."""
        if "map_index_template" not in self._context or self._render() is not None:
            return
        try:
            with held():
                label = self._open_store().get(KEY)
        except Exception as error:  # noqa: BLE001
            log.warning("The task's name could not be read (%s)", error)
            return
        if isinstance(label, str):
            self._context["kie_map_label"], self._context["map_index_template"] = label, "{{ kie_map_label }}"
            self._show(label)

    def _open_store(self) -> Store:
        from kie_provider.submission.store import open_store

        return open_store(self._context)

    def _render(self) -> str | None:
        """Return what the template renders to; None: there is none, or something is missing that it needs."""
        template = self._context.get("map_index_template")
        if template is None:
            return None
        try:
            return str(self._context["task"].dag.get_template_env().from_string(template).render(self._context))
        except Exception:  # noqa: BLE001  # jinja2's own, or one of Python's: {{ (label | default(none)) + "!" }}
            return None

    def _show(self, label: str) -> None:
        """Have Airflow show the text while the task is deferred."""
        if hasattr(ti := self._context["ti"], "rendered_map_index"):
            ti.rendered_map_index = label
