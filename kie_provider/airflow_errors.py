"""How a Kie error ends an Airflow task: finally, or with a retry."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout

from kie_provider.client.errors import KieError, KieTaskTimeoutError


def operator_failure(error: KieError) -> Exception:
    """Return the exception an operator raises: hopeless errors use up no retries, transient ones do."""
    return error if error.is_transient else AirflowFailException(str(error))


def sensor_failure(error: KieError) -> Exception:
    """Return the exception a sensor raises: as an operator, but its deadline is final, as with every sensor."""
    return AirflowSensorTimeout(str(error)) if isinstance(error, KieTaskTimeoutError) else operator_failure(error)
