"""What a task instance leaves in Airflow's database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kie_provider.failures import FAILURE_KEY

#: The XCom that tells what a task instance has made, and those that say what is known without it.
RESULT_KEY = "return_value"
MORE_KEYS = ("progress", "kie_task_id", FAILURE_KEY)
#: Operators that order images; of each there is a picture or a gap. The names are those in Airflow's database.
CREATORS = frozenset(
    {
        "Flux2BatchOperator",
        "Flux2CreateTaskOperator",
        "Flux2DecoratedOperator",
        "Flux2GenerateImageOperator",
        "KieCreateTaskOperator",
    }
)
#: Operators that take over from one of those.
FOLLOWERS = frozenset({"Flux2TaskSensor", "KieSaveResultOperator", "KieTaskSensor"})

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class TaskOutput:
    """A task instance and what it has left in Airflow's database.

    :param at: when it last said something; None: that was not asked for.
    :param values: XComs by key, as they are stored.
    :param rendered: its template fields, if there is no result.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    operator: str = ""
    state: str | None = None
    at: datetime | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    rendered: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.dag_id, self.run_id, self.task_id, self.map_index
