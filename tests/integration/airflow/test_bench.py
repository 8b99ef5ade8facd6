"""The benchmark of waiting still measures what it says: no other test runs it."""

from __future__ import annotations

import json

from tests.bench.waiting import Python
from tests.bench.waiting_contenders import CONTENDERS
from tests.bench.waiting_server import WARM_UP
from tests.support.servers import self_signed_certificate


async def test_the_trigger_gets_to_the_end_of_a_task_of_the_benchmark(tmp_path, monkeypatch):
    contender = CONTENDERS["ours"]
    self_signed_certificate(tmp_path)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with Python("waiting_server", contender.shape, certificate, key, limit=30.0) as server:
        monkeypatch.setenv("AIRFLOW_CONN_BENCH", json.dumps(contender.connection(server.read()["port"])))

        async with contender.opens() as wait:
            assert await wait(WARM_UP)
