from __future__ import annotations

import pytest

from tests.support.gallery import serve_gallery


@pytest.fixture(scope="module")
def gallery(kie_emulator_server, tmp_path_factory):
    """Runs with images of all kinds, and a real API server that shows them."""
    folders = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("airflow")
    with serve_gallery(kie_emulator_server, *folders) as gallery:
        yield gallery
