"""A registry server in a process of its own: `python -m tests.e2e.registry_process ENDPOINT STATE`; end of file on
stdin ends it."""

from __future__ import annotations

import sys
from pathlib import Path

from registry import RegistryServer

if __name__ == "__main__":
    with RegistryServer(sys.argv[1], Path(sys.argv[2])):
        print("ready", flush=True)
        sys.stdin.read()
