"""The kinds of steps, one file each; `KINDS` is the table of them.

A kind from elsewhere is one call, `register_kind(Repeat)`, and is declared with `workflow.declare(Repeat, …)`.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

from bitactor.errors import ConfigurationError
from bitactor.forms.keys import Key
from bitactor.kinds.around import Around
from bitactor.kinds.base import ContainerKind, FunctionKind
from bitactor.kinds.collect import Collect
from bitactor.kinds.compose import Compose
from bitactor.kinds.debug import Debug
from bitactor.kinds.flunk import Flunk
from bitactor.kinds.group import Group
from bitactor.kinds.iterate import Iterate
from bitactor.kinds.map import Map
from bitactor.kinds.recurse import Recurse
from bitactor.kinds.switch import Switch
from bitactor.kinds.template import Template
from bitactor.plan.kind import Kind

__all__ = [
    "KINDS", "Around", "Collect", "Compose", "Debug", "Flunk", "FunctionKind", "Group", "Iterate", "Map", "Recurse",
    "Switch", "Template", "register_kind",
]  # fmt: skip

KINDS: Final[dict[str, type[Kind]]] = {
    kind.label: kind
    for kind in (
        FunctionKind, Map, Iterate, Around, Compose, Switch, Group, Recurse, Collect, Template, Debug, Flunk,
    )
}  # fmt: skip
"""Name → kind, for all that `from_dict` reads; `register_kind` adds one."""


def register_kind(kind: type[Kind]) -> None:
    """Let `from_dict` read steps of this kind, and pictures know them, from now on.

    Raises:
        ConfigurationError: it is no kind, lacks something, or another one has its label.
    """
    label = getattr(kind, "label", "")
    if not (isinstance(kind, type) and issubclass(kind, Kind) and isinstance(label, str) and label):
        raise ConfigurationError(f"register_kind takes a class below bitactor.kinds.base.ContainerKind, not {kind!r}")
    missing = _missing(kind)
    if missing:
        raise ConfigurationError(f"the kind {label!r}, {kind.__qualname__}, has no {missing}")
    if KINDS.setdefault(label, kind) is not kind:
        raise ConfigurationError(
            f"there is a kind {label!r} already, {KINDS[label].__qualname__}; give it another label"
        )


def is_registered(kind: Any) -> bool:
    """Whether `kind` is a class that `register_kind` has been given, or one of ours."""
    return any(known is kind for known in KINDS.values())


def _missing(kind: type[Kind]) -> str:
    """What a class lacks that a kind has."""
    keys = getattr(kind, "keys", None)
    if not isinstance(keys, Mapping) or not all(isinstance(key, Key) for key in keys.values()):
        return "keys: a mapping of the names of its options to what is in bitactor.kinds.base, such as NESTED"
    if inspect.isabstract(kind):
        return ", ".join(f"{name}()" for name in sorted(kind.__abstractmethods__))
    if issubclass(kind, ContainerKind) and not callable(getattr(kind, "container", None)):
        return "container: its class below bitactor.kinds.base.Container"
    return ""
