"""Hypothesis on a busy machine: few examples, no stop-watch."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "client", max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("client")
