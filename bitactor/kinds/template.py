"""template: a step that fills in a text, `Hello {user.name}`: each field is an argument and, behind dots and brackets,
a path into it."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from bitactor.errors import DefinitionError, InvalidInput
from bitactor.kinds.base import FunctionKind, Key, with_parameters
from bitactor.plan.arguments import value_at

_CONVERSIONS = ("r", "s", "a")


class TextTemplate:
    """A text with fields, each an argument and a path into it.

    Raises:
        DefinitionError: it is no text, or its braces do not match.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise DefinitionError(f"a template is a text with {{fields}}, not {text!r}")
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise DefinitionError(f"the template {text!r} cannot be read: {error}") from None
        self.fields: dict[str, tuple[str, tuple[str | int, ...]]] = {}
        """Field as written → its argument, and the path into that."""
        for _, field, _, conversion in self._parts:
            if conversion not in (None, *_CONVERSIONS):
                raise DefinitionError(
                    f"the template {text!r} has {{{field}!{conversion}}}; behind the `!` stands one of r, s, a"
                )
            if field is not None:
                self.fields[field] = _parsed(text, field)

    @property
    def arguments(self) -> list[str]:
        """The arguments that the fields name, each once."""
        return list(dict.fromkeys(argument for argument, _ in self.fields.values()))

    def filled(self, values: Mapping[str, Any]) -> str:
        """The text with its fields filled in.

        Raises:
            InvalidInput: a path leads nowhere, or a value cannot be formatted as asked.
        """
        made = ""
        for literal, field, form, conversion in self._parts:
            made += literal
            if field is not None:
                value = self._at(field, values)
                if conversion:
                    value = string.Formatter().convert_field(value, conversion)
                try:
                    made += self._written(value, form or "", field, made)
                except (TypeError, ValueError) as error:
                    raise InvalidInput(f"{{{field}:{form}}}: {error}") from None
        return made

    def _at(self, field: str, values: Mapping[str, Any]) -> Any:
        argument, path = self.fields[field]
        return value_at(values[argument], path, f"{{{field}}}")

    def _written(self, value: Any, form: str, field: str, before: str) -> str:
        """The text of a field's value, which follows the text `before`."""
        return format(value, form)


class Template(FunctionKind):
    """A text filled in with arguments; declared."""

    label = "template"
    keys = {"text": Key(str, required=True)}

    def __init__(self, what: str, text: str) -> None:
        self.text = text
        template = TextTemplate(text)

        def filled(**arguments: Any) -> str:
            return self.answer(template.filled(arguments))

        super().__init__(what, with_parameters(filled, template.arguments, self.label))

    def answer(self, text: str) -> str:
        """The step's answer, given the text filled in."""
        return text

    @override
    def result_type(self, name: str) -> Any:
        return str


def _parsed(text: str, field: str) -> tuple[str, tuple[str | int, ...]]:
    argument, *rest = field.replace("]", "").replace("[", ".").split(".")
    if not argument.isidentifier():
        raise DefinitionError(f"the template {text!r} has a field {{{field}}}, which begins with no argument's name")
    return argument, tuple(int(part) if part.lstrip("-").isdigit() else part for part in rest)
