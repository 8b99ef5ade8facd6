"""A real Airflow API server over the database of this process, below a path, with users of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import requests

from tests.support.airflow_stack import free_port
from tests.support.processes import ChildProcess, stop_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Name -> role of Airflow's simple auth manager; one without a role may do nothing.
USERS = {"admin": "admin", "viewer": "viewer", "nobody": ""}


@dataclass
class Site:
    """The API server, as its users reach it."""

    url: str
    log: Path
    process: ChildProcess | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, user: str | None = "admin", **options: Any) -> requests.Response:
        """Get an address below the one of Airflow, logged in as the browser is: by cookie."""
        cookies = {} if user is None else {"_token": self.tokens[user]}
        return self.session.get(f"{self.url}/{path}", cookies=cookies, timeout=60, allow_redirects=False, **options)

    def cpu_seconds(self) -> float:
        """How much processor time the server has taken so far."""
        assert self.process is not None
        times = [psutil.Process(pid).cpu_times() for pid in self.process.members()]
        return sum(each.user + each.system for each in times)


@contextlib.contextmanager
def serve(folder: Path, *, base_path: str = "/air", env: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Run the API server until the end of the block."""
    port, password = free_port(), secrets.token_urlsafe(16)
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(USERS, password)))
    site = Site(f"http://127.0.0.1:{port}{base_path}", folder / "api-server.log")
    site.session.trust_env = False
    settings = {
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "API__BASE_URL": site.url,
        "API__HOST": "127.0.0.1",
        "API__PORT": str(port),
        "API__WORKERS": "1",
        "API__SECRET_KEY": secrets.token_hex(16),
        "API_AUTH__JWT_SECRET": secrets.token_hex(32),
    }
    child = ChildProcess(
        "api-server",
        [sys.executable, "-m", "airflow", "api-server"],
        log=site.log,
        env={**os.environ, **{f"AIRFLOW__{name}": value for name, value in settings.items()}, **(env or {})},
        cwd=folder,
    )
    site.process = child
    try:
        _wait_for(site, child)
        for user in USERS:
            login = {"username": user, "password": password}
            answer = site.session.post(f"{site.url}/auth/token", json=login, timeout=60)
            answer.raise_for_status()
            site.tokens[user] = answer.json()["access_token"]
        yield site
    finally:
        site.session.close()
        stop_all([child], grace=5)


def _wait_for(site: Site, child: ChildProcess, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if site.session.get(f"{site.url}/api/v2/version", timeout=10).ok:
                return
        if child.exit_code is not None or time.monotonic() > deadline:
            raise RuntimeError(f"The API server did not start\n{child.tail()}")
        time.sleep(0.2)
