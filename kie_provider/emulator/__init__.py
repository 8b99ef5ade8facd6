"""An emulated Kie.ai on loopback, to try and test DAGs without paying.

``with KieEmulator() as kie:`` serves it in a thread, ``python -m kie_provider.emulator`` in the foreground.
"""

from __future__ import annotations

from kie_provider.emulator.emulator import KieEmulator
from kie_provider.emulator.settings import Settings

__all__ = ["KieEmulator", "Settings"]
