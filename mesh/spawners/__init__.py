"""How a hop gets a place to run: one file per place, all behind one port."""

from mesh.hops.ports import Spawner

__all__ = ["Spawner"]
