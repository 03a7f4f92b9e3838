"""Steps to declare on a workflow: HTTP requests, what one does with files, other programs.

    from mesh.ready.steps import files, http, subprocess

Each module's functions declare a step on a workflow; HTTP needs the extra `http`.
"""
