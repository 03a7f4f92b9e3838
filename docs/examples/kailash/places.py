"""Where the services and the database are: resources that the four workflows share, each made when it is first needed."""

from __future__ import annotations

import os

from mesh.ready.resources.database import database as database_at
from mesh.ready.resources.http_client import http_client


def services() -> str:
    """The address of the services."""
    return os.environ["KAILASH_SERVICES"]


def data() -> str:
    """The address of the database."""
    return os.environ["KAILASH_DATABASE"]


api = http_client("api", base_url=services)
primary_api = http_client("primary_api", base_url=services)
backup_api = http_client("backup_api", base_url=services)
database = database_at("database", data)
