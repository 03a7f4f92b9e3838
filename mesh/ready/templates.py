"""Texts and structures with fields, as ready-made steps are declared with: `/users/{user.id}`, `{"name": "{name}"}`.

A field is an argument of the step and, behind dots and brackets, a path into it.  A text that is one field and nothing
else stands for the value itself, whatever that is; in any other text a value is written out.  `{{` and `}}` are braces.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.source import Source
from bitactor.errors import DefinitionError, InvalidInput
from bitactor.kinds.template import TextTemplate

MIN_SECRET_LENGTH: Final = 4
"""Characters that a secret must have to be redacted; redacting less would make texts unreadable and hide nothing."""
REDACTED: Final = "•••"


class Template(TextTemplate):
    """A text with fields.

    Raises:
        DefinitionError: the template is no text, or its braces do not match.
    """

    @property
    def is_field(self) -> bool:
        """Whether the template is one field and nothing else, without a format."""
        literal, field, form, conversion = self._parts[0] if len(self._parts) == 1 else ("", None, None, None)
        return field is not None and not (literal or form or conversion)

    def value(self, values: Mapping[str, Any]) -> Any:
        """The field's own value if the template is one field, or else the text.

        Raises:
            InvalidInput: a path leads nowhere, or a value has no text.
        """
        return self._at(str(self._parts[0][1]), values) if self.is_field else self.filled(values)

    @override
    def _written(self, value: Any, form: str, field: str, before: str) -> str:
        return format(value, form) if form else text_of(value, field)


class Structure:
    """A template for any plain value: a text with fields, or mappings and lists of such; numbers, True, False and None
    are themselves.

    Raises:
        DefinitionError: something in it is neither.
    """

    def __init__(self, shape: Any) -> None:
        self._templates: list[Template] = []
        self._compiled = _with_leaves(shape, self._compile)

    @property
    def arguments(self) -> list[str]:
        """The arguments that the fields name."""
        return [argument for template in self._templates for argument in template.arguments]

    def value(self, values: Mapping[str, Any]) -> Any:
        """The structure with all fields filled in.

        Raises:
            InvalidInput: a path leads nowhere, or a value has no text.
        """
        return _with_leaves(self._compiled, lambda leaf: leaf.value(values) if isinstance(leaf, Template) else leaf)

    def _compile(self, leaf: Any) -> Any:
        if isinstance(leaf, str):
            leaf = Template(leaf)
            self._templates.append(leaf)
        elif leaf is not None and not isinstance(leaf, bool | int | float):
            raise DefinitionError(
                f"a template holds {leaf!r}; it is made of texts with fields, numbers, lists, mappings, Input, Result "
                "and Value"
            )
        return leaf


def text_of(value: Any, field: str) -> str:
    """`value` as people write it: `true` and `false`, moments as ISO 8601.

    Raises:
        InvalidInput: the value is nothing, a list, a mapping or bytes, for which there is no one way to write it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    shown = "None" if value is None else f"a {type(value).__name__}"
    raise InvalidInput(
        f"{{{field}}} is {shown}, which cannot be a part of a text; name a path into it, or bind a transform"
    )


def lift_sources(shape: Any, bind: dict[str, Source]) -> Any:
    """`shape` with each `Result`, `Input` and `Value` in it made a field of its own, which `bind` says the source
    of."""

    def lift(leaf: Any) -> Any:
        if not isinstance(leaf, Source):
            return leaf
        name = next(name for number in range(1, len(bind) + 2) if (name := f"_{number}") not in bind)
        bind[name] = leaf
        return f"{{{name}}}"

    return _with_leaves(shape, lift)


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with all `secrets` redacted, the longest first."""
    for secret in sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text


def _with_leaves(shape: Any, change: Callable[[Any], Any]) -> Any:
    """`shape` with all in it that is neither a mapping nor a list changed."""
    if isinstance(shape, Mapping):
        wrong = next((key for key in shape if not isinstance(key, str)), None)
        if wrong is not None:
            raise DefinitionError(f"a template has the key {wrong!r}; keys are texts")
        return {key: _with_leaves(value, change) for key, value in shape.items()}
    if isinstance(shape, list | tuple):
        return [_with_leaves(value, change) for value in shape]
    return change(shape)
