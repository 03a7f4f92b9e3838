"""What a node can be told, from code or from the environment (`BITACTOR_…`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from bitactor.errors import ConfigurationError
from mesh.spawners.thread import DEFAULT_THREADS


class Settings(BaseSettings):
    """Every option of a node.  An argument wins over the environment, the environment over the default."""

    model_config = SettingsConfigDict(env_prefix="BITACTOR_", extra="forbid", frozen=True)

    store: str = "memory://"
    """Where pulses are kept: `memory://`, `sqlite:///file.db`."""
    durability: Literal["process", "power", "none"] = "process"
    """What a kept pulse survives: kill -9, a power failure, or nothing."""
    lease: float = Field(5.0, gt=0)
    """Seconds after which a silent owner counts as dead, where nothing better is known."""
    registry: str = ""
    """Endpoint of the registry server that connects several processes; empty: this process alone."""
    endpoint: str = ""
    """Where other nodes reach this one; empty: an ipc socket of its own."""
    curve: Path | None = None
    """File with the mesh's CURVE key; tcp endpoints need it."""
    hosts: bool = True
    """Whether this node runs steps and consumers itself; if not, it only supervises, and others must host."""
    threads: int = Field(DEFAULT_THREADS, ge=1, le=1_000)
    """Pool for `def` steps."""
    processes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=256)
    """Worker processes for `spawn="process"`, started when first needed."""
    max_in_flight: int = Field(1_000_000, ge=1)
    """Transactions running at once before new stimuli wait."""
    patience: float = Field(5.0, ge=0)
    """Seconds a stimulus, or a hop for another node, waits for room or for a holder before it fails."""
    drain: float = Field(10.0, ge=0)
    """Seconds a shutdown waits for running transactions."""
    service_name: str = "bitactor"
    """`service.name` on spans."""
    otlp: str = ""
    """OTLP/HTTP collector, such as `http://127.0.0.1:4318`; empty: no spans."""


def settings(**given: object) -> Settings:
    """Settings from arguments (None: not given) and the environment.

    Raises:
        ConfigurationError: names the option and what is wrong with it.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            name = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                problems.append(f"{name}: no such option; known are {', '.join(sorted(Settings.model_fields))}")
            else:
                problems.append(f"{name}={item['input']!r}: {item['msg']} (or in the environment: BITACTOR_{name.upper()})")
        raise ConfigurationError("; ".join(problems)) from None
