"""How a Kie error ends an Airflow task: finally, or with a retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout

from kie_provider.client.errors import KieError, KieTaskTimeoutError


def operator_failure(error: KieError) -> Exception:
    """Return the exception an operator raises: hopeless errors use up no retries, transient ones do."""
    return error if error.is_transient else AirflowFailException(str(error))


@contextmanager
def operator_failures() -> Iterator[None]:
    """Turn Kie errors into what an operator raises."""
    try:
        yield
    except KieError as error:
        failure = operator_failure(error)
        raise failure from (None if failure is error else error)


def sensor_failure(error: KieError) -> Exception:
    """Return the exception a sensor raises: as an operator, but its deadline is final, as with every sensor."""
    return AirflowSensorTimeout(str(error)) if isinstance(error, KieTaskTimeoutError) else operator_failure(error)
