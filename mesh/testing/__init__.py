"""Tools for users' tests with pytest: meshes that close with the test, their pulses, time, and a readable look at
traces.

    async def test_a_user_is_greeted(mesh, pulses, fake_clock):
        tx = await mesh(signup, greet, steps={"create_user": fake}).stimulate(signup, {"name": "Ada", "email":
        "ada@example.org"}) await fake_clock.run_until(tx.result())
        assert_trace(tx, "accepted", ..., "completed welcome", "finished")

The fixtures come with the plugin (`pytest_bitactor`), which pytest finds by itself; `bitactor.testing` needs neither
pytest nor a mesh.
"""

from mesh.testing.bench import Bench, FixtureMesh, MeshFactory
from mesh.testing.clock import MeshClock
from mesh.testing.expect import assert_trace
from mesh.testing.pulses import Pulses

__all__ = ["Bench", "FixtureMesh", "MeshClock", "MeshFactory", "Pulses", "assert_trace"]
