"""collect: a step that gathers its arguments into a mapping, optionally transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bitactor.kinds.signatures import with_parameters


def collect_function(names: Sequence[str] | Any, transform: Callable[..., Any] | None) -> Callable[..., Any]:
    """A function with these parameters that returns a mapping of them, or what `transform` makes of that mapping."""

    def collected(**arguments: Any) -> Any:
        return arguments if transform is None else transform(arguments)

    return with_parameters(collected, names, "collect", made_from={"transform": transform})
