"""Apache Airflow provider for Kie.ai: prompt -> Flux-2 image -> what comes after."""

__version__ = "0.1.0"
