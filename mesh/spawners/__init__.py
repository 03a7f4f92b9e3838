"""How a hop gets a place to run: one file per place, all behind `mesh.hops.ports.Spawner`."""
