"""Functions whose parameters are decided while declaring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from keyword import iskeyword
from typing import Any

from bitactor.declare.context import Context
from bitactor.errors import DefinitionError


def with_parameters(
    function: Callable[..., Any],
    names: Iterable[str],
    name: str,
    *,
    made_from: Mapping[str, Any],
    context: bool = False,
) -> Callable[..., Any]:
    """`function`, which takes keywords, with a signature of these names; with `context`, it also takes `ctx`.

    Args:
        made_from: the options it was declared with, beside where its arguments come from; so that they can be written
            down again.

    Raises:
        DefinitionError: one of the names is no identifier.
    """
    names = [*names]
    wrong = next((parameter for parameter in names if not parameter.isidentifier() or iskeyword(parameter)), None)
    if wrong is not None:
        raise DefinitionError(
            f"{name}: {wrong!r} is no name of an argument; name it otherwise, as in {{'first': {wrong!r}}} of a "
            f"collect, or bind={{…}}"
        )
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(parameter, keyword) for parameter in names]
    if context:
        parameters.append(inspect.Parameter("ctx", keyword, annotation=Context))
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {"ctx": Context} if context else {}
    function.__name__ = name
    function.made_from = made_from  # type: ignore[attr-defined]
    return function
