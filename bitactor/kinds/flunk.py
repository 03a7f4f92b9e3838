"""flunk: a step that fails deliberately, with a text filled in as a template is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from bitactor.kinds.signatures import with_parameters
from bitactor.kinds.template import TextTemplate
from bitactor.messages.outcome import Fail


def flunk_function(text: str) -> Callable[..., Any]:
    """A function that fails, with this text filled in by its arguments."""
    template = TextTemplate(text)

    def flunked(**arguments: Any) -> NoReturn:
        raise Fail(template.filled(arguments))

    return with_parameters(flunked, template.arguments, "flunk", made_from={"text": text})
