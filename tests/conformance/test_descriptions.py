"""What a workflow tells of its input and its result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretBytes, SecretStr

from bitactor import Workflow
from mesh.ingress.openapi import describe_api
from tests.conformance.claims import claim

PASSWORD = "correct horse battery"


class Login(BaseModel):
    user: str
    password: SecretStr


class Unshowable:
    """An object of which nothing can be had."""

    def _gone(self, *_: Any) -> Any:
        raise SystemExit("gone")

    __repr__ = __str__ = __eq__ = __iter__ = __reduce_ex__ = _gone  # type: ignore[assignment]
    __hash__ = object.__hash__


class Branch(BaseModel):
    child: Branch | None = None
    token: SecretStr | None = None


class WithDefaults(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    plain: int = 5
    nothing: int | None = None
    many: list[str] = ["a"]
    made: str = Field(default_factory=lambda: PASSWORD)
    secret: SecretStr = SecretStr(PASSWORD)
    text: SecretStr = PASSWORD  # type: ignore[assignment]
    perhaps: SecretStr | None = PASSWORD  # type: ignore[assignment]
    some: list[SecretBytes] = [PASSWORD.encode()]  # type: ignore[list-item]
    generic: Secret[str] = PASSWORD  # type: ignore[assignment]
    nested: Login = Login(user="ada", password=SecretStr(PASSWORD))
    as_data: Branch = Field(default={"child": {"token": PASSWORD}})  # type: ignore[assignment]
    untyped: Any = SecretStr(PASSWORD)
    within: dict[str, Any] = {"token": SecretStr(PASSWORD)}
    no_json: Any = object()
    no_number: float = float("inf")
    unshowable: Any = Unshowable()


@claim("Values", "The default of a secret is left out of what a workflow tells of its input, over HTTP too.")
def test_defaults_of_secrets() -> None:
    workflow = Workflow("defaults", input=WithDefaults)

    @workflow.step
    async def it(plain: int) -> WithDefaults:
        return WithDefaults(plain=plain)

    told, api = workflow.describe(), describe_api([workflow], 1_000)
    schemas = (told["input"], told["result"], api["components"]["schemas"]["WithDefaults"])
    for schema in schemas:
        defaults = {name: field["default"] for name, field in schema["properties"].items() if "default" in field}
        masked = {"untyped": "**********", "within": {"token": "**********"}}
        assert defaults == {"plain": 5, "nothing": None, "many": ["a"], **masked}
    assert PASSWORD not in json.dumps([told, api], allow_nan=False)
    assert told["input"]["properties"].keys() == WithDefaults.model_fields.keys()


@claim(
    "Values",
    "An input whose model raises when it is asked for its schema is described as any object; the other workflows of "
    "the mesh are described as ever.",
)
def test_an_input_that_cannot_be_described(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseModel):
        x: int = 1

        @classmethod
        def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
            raise SystemExit("no schema")

    odd, good = Workflow("odd", input=Odd), Workflow("good", input={"x": int})
    for workflow in (odd, good):
        workflow.step(name="it", spawn="inline")(lambda x: x)
    api = describe_api([odd, good], 1_000)
    assert odd.describe()["input"] == {}
    body = api["paths"]["/stimuli/odd"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"type": "object"}
    assert api["paths"]["/stimuli/good"]["post"]["requestBody"]["content"]["application/json"]["schema"] != body
    assert "the input of odd cannot be described: SystemExit: no schema" in caplog.text
