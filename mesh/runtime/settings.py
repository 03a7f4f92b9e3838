"""The options of a node, from code or from the environment (`BITACTOR_…`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from bitactor.errors import ConfigurationError, suggest
from bitactor.messages.duration import LONGEST
from bitactor.messages.values import MAX_TOKEN_BYTES
from mesh.limits.payload import LEAST_LIMIT, MOST_LIMIT
from mesh.limits.pools import DEFAULT_THREADS, usable_cores
from mesh.stores.lease import HUNG_AFTER

PREFIX: Final = "BITACTOR_"
_OF_A_SERVICE: Final = re.compile(r".*_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""Variables that Kubernetes sets in every pod for a service that is called `bitactor`, or `bitactor-something`."""


_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Places = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class Settings(BaseSettings):
    """Every option of a node.  An argument wins over the environment, the environment over the default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    store: str = "memory://"
    """Where pulses are kept: `memory://`, `sqlite:///file.db`."""
    durability: Literal["process", "power", "none"] = "process"
    """What a kept pulse survives: kill -9, a power failure, or nothing."""
    lease: float = Field(5.0, gt=0, le=LONGEST)
    """Seconds after which a silent owner counts as dead, where nothing better is known."""
    hung_after: float = Field(HUNG_AFTER, ge=0, le=LONGEST)
    """Seconds after which an owner whose process is there, but does not renew its lease, counts as dead too: it was
    stopped, or hangs.  So long may the event loop stand still before it is not renewed.  No sooner than after two
    leases; 0: never."""
    when_fenced: Literal["rejoin", "exit"] = "rejoin"
    """What a node does when another process has taken its transactions over: take part under a new owner's name, or
    end."""
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
    processes: int = Field(default_factory=lambda: min(usable_cores(), 256), ge=1, le=256)
    """Worker processes for `spawn="process"`, started when first needed."""
    pools: dict[_Name, _Places] = Field(default_factory=dict)
    """Places of each pool that steps name with `limit=`: so many of their hops run at once in this process, over all
    transactions.  In the
    environment as JSON: `{"database": 5}`."""
    payload_limit: int = Field(MAX_TOKEN_BYTES, ge=LEAST_LIMIT, le=MOST_LIMIT)
    """Bytes that one value may take which a transaction carries: an input, a step's result, an emitted signal.  All
    meshes that are open in a process have the same; a node takes no larger value from another."""
    max_in_flight: int = Field(1_000_000, ge=1)
    """Transactions running at once before new stimuli wait."""
    patience: float = Field(5.0, ge=0, le=LONGEST)
    """Seconds a stimulus, or the first hop of a transaction, waits for room or for a holder before it fails."""
    delivery_timeout: float = Field(86_400.0, ge=0, le=LONGEST)
    """Seconds an emitted signal waits for its consumers, or a hop of a transaction of which something has run for a
    holder, where no deadline says how long."""
    drain: float = Field(10.0, ge=0, le=LONGEST)
    """Seconds a shutdown waits for running transactions."""
    blocked_after: float = Field(1.0, ge=0, le=LONGEST)
    """Seconds without a turn after which the event loop counts as blocked, and a warning says whose code runs on it; 0:
    nobody looks."""
    service_name: str = "bitactor"
    """`service.name` on spans."""
    otlp: str = ""
    """OTLP/HTTP collector, such as `http://127.0.0.1:4318`; empty: no spans."""


def settings(**given: object) -> Settings:
    """Settings from arguments (None: not given) and the environment.

    Raises:
        ConfigurationError: names the option and what is wrong with it.
    """
    _refuse_unknown_variables()
    chosen = _chosen(given)
    if not chosen.hosts and not chosen.registry:
        raise ConfigurationError(
            "hosts=False, but no registry: who should run the steps? Name the registry by which other nodes are found, "
            "or let this one host"
        )
    return chosen


def _chosen(given: Mapping[str, object]) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            name = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                problems.append(f"{name}: no such option; known are {', '.join(sorted(Settings.model_fields))}")
            else:
                variable = str(item["loc"][0]).upper()
                problems.append(f"{name}={item['input']!r}: {item['msg']} (or in the environment: BITACTOR_{variable})")
        raise ConfigurationError("; ".join(problems)) from None
    except SettingsError as error:
        raise ConfigurationError(f'{error}: BITACTOR_POOLS takes JSON, such as {{"database": 5}}') from error


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in sorted(os.environ):
        shouted = name.upper()
        if shouted.startswith(PREFIX) and shouted not in known and not _OF_A_SERVICE.fullmatch(shouted):
            raise ConfigurationError(f"the environment has {name}, which is no option.{suggest(shouted, known)}")
