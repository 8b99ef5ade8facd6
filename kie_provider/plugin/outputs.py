"""What the image page reads of a task instance in Airflow's database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kie_provider.failures import FAILURE_KEY

#: The XCom of the result, and those that are read where there is no result.
RESULT_KEY = "return_value"
MORE_KEYS = ("progress", "kie_task_id", FAILURE_KEY)
#: Operators that create Kie tasks; each task instance is shown as an image or a gap. The names are class names.
CREATORS = frozenset(
    {
        "Flux2BatchOperator",
        "Flux2CreateTaskOperator",
        "Flux2DecoratedOperator",
        "Flux2GenerateImageOperator",
        "KieCreateTaskOperator",
    }
)
#: Operators that wait for or save the results of those.
FOLLOWERS = frozenset({"Flux2TaskSensor", "KieSaveResultOperator", "KieTaskSensor"})

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class TaskOutput:
    """A task instance: its state, its XComs and its rendered template fields.

    :param at: when it was last updated; None: not known.
    :param values: XComs by key, as stored.
    :param rendered: its rendered template fields; read only if there is no result.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    operator: str = ""
    state: str | None = None
    at: datetime | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    rendered: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What identifies the task instance."""
        return self.dag_id, self.run_id, self.task_id, self.map_index
