# ruff: noqa: INP001, T201
"""Use the emulator without pytest and without Airflow."""

from kie_provider.client.client import KieClient
from kie_provider.client.endpoint import Endpoint
from kie_provider.emulator import KieEmulator

with KieEmulator(credits=20, generating_seconds=1) as kie:
    with KieClient(Endpoint(kie.api_key, host=kie.url, upload_host=kie.url)) as client:
        kie_task_id = client.create_task(
            "flux-2/pro-text-to-image",
            {"prompt": "a lighthouse above a stormy sea", "aspect_ratio": "1:1", "resolution": "1K"},
        )
        record = client.get_task(kie_task_id)
    print(record.kie_state, kie.bill()["credits_left"])  # generating 15.0
