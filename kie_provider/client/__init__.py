"""Kie.ai in plain Python: nothing in here imports Airflow."""
