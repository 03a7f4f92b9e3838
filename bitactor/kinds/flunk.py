"""flunk: a step that fails deliberately, with a text filled in as a template is."""

from __future__ import annotations

from typing import Any, NoReturn

from typing_extensions import override

from bitactor.kinds.template import Template
from bitactor.messages.outcome import Fail


class Flunk(Template):
    """A failure with a text filled in with arguments; declared."""

    label = "flunk"

    @override
    def answer(self, text: str) -> NoReturn:
        raise Fail(text)

    @override
    def result_type(self, name: str) -> Any:
        return Any
