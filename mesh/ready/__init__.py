"""Ready-made resources (`mesh.ready.resources`) and steps (`mesh.ready.steps`), for what most workflows talk to.

Nothing is imported here: each module stands for itself, and those that need a library say which extra brings it.
"""
