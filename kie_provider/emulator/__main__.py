"""``python -m kie_provider.emulator``: run the emulator in the foreground until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import time

from kie_provider.emulator.emulator import connection, serve
from kie_provider.emulator.server import Server
from kie_provider.emulator.settings import Settings


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and serve."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m kie_provider.emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="0 chooses a free one (default: %(default)s)")
    parser.add_argument("--api-key", default=defaults.api_key, help="key that is accepted (default: %(default)s)")
    text = "key that signs callbacks; empty: they are not signed (default: %(default)s)"
    parser.add_argument("--webhook-hmac-key", default=defaults.webhook_hmac_key, help=text)
    parser.add_argument("--credits", type=float, default=defaults.credits, help="balance (default: %(default)s)")
    for state in ("waiting", "queuing", "generating"):
        name = f"{state}_seconds"
        text = f"time a task spends in state {state} (default: %(default)s)"
        parser.add_argument(f"--{state}-seconds", type=float, default=getattr(defaults, name), help=text)
    options = vars(parser.parse_args(arguments))
    host, port = options.pop("host"), options.pop("port")
    asyncio.run(_foreground(Settings(**options), host, port))


async def _foreground(settings: Settings, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def announce(url: str) -> None:
        line = shlex.quote(json.dumps(connection(url, settings.api_key)))
        print(f"Kie.ai emulator listening on {url}")
        print(f"export AIRFLOW_CONN_KIE_DEFAULT={line}", flush=True)

    await serve(Server(settings, time.time), host, port, announce, stop)


if __name__ == "__main__":
    main()
