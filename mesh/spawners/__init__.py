"""Spawners, the places where functions run: a file or a folder each, and one call for a place of somebody else's."""

from __future__ import annotations

from typing import Final

from bitactor.declare.spawners import SPAWNERS
from mesh.hops.ports import Spawner

ADDED: Final[dict[str, type[Spawner]]] = {}
"""Name → class of the spawners that are not ours."""


def register_spawner(name: str, spawner: type[Spawner]) -> None:
    """Let `spawn=name` run steps by a spawner of this class, from now on; each mesh that opens makes one."""
    SPAWNERS[name], ADDED[name] = spawner.traits, spawner
