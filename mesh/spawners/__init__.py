"""Spawners, the places where a hop's function runs: one file per place, all behind `mesh.hops.ports.Spawner`."""
