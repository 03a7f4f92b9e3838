"""Stimuli over HTTP: an ASGI application over a mesh.

Every answer is JSON; every refusal is an RFC 9457 problem.  A workflow that fails is an answer (409), never a server
error.  There is no authentication here: who reaches the port may do everything.  Put a proxy in front that knows your
users.
"""

from __future__ import annotations

from mesh.ingress.application import application
from mesh.ingress.server import HttpServer, serve

__all__ = ["HttpServer", "application", "serve"]
