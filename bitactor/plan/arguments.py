"""Arguments: the sources of their values, and the conversion of tokens to the types that parameters are annotated
with."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import override

from bitactor.declare.answer import plain_answer
from bitactor.errors import DefinitionError, InvalidInput, MalformedSignal
from bitactor.messages.annotations import BY_NAME, VALUES, cause_of, is_object_class, place_of, taking_objects
from bitactor.messages.classes import AnnotatedClasses, first_of, fits
from bitactor.messages.codec import Packed, decode_token, encode_token, pack_tokens, token_bytes
from bitactor.messages.objects import Classes


class Converter(NamedTuple):
    """What makes a parameter's value of a token, as its annotation asks."""

    convert: Callable[[Any], Any]
    classes: Classes | None
    """Classes of objects that are restored before; None: none."""


class Argument(NamedTuple):
    """A parameter with the source of its value, compiled: the slot of a token, and what is done with that token."""

    name: str
    slot: int
    """Index into the saga's tokens: steps first, then input fields; -1 for a constant."""
    path: tuple[str | int, ...]
    transform: Callable[[Any], Any] | None
    converter: Converter | None
    constant: Any
    reference: str
    """The source's name in the journal: `input.name`, a step's path, `step.field`, or `value`."""

    def moved(self, base: int) -> Argument:
        """The argument in a scope whose places begin at `base`; a constant has no place."""
        return self._replace(slot=self.slot + base) if self.slot >= 0 else self


def argument_values(
    arguments: Sequence[Argument], tokens: Sequence[Any], owner: str, evaluated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments as values, each freshly decoded, with the objects of classes that their annotations name, not yet
    converted to these.

    Transformed ones come from `evaluated`, tokens that were recorded when the transforms were evaluated.

    Raises:
        InvalidInput: a path leads nowhere.
    """
    values: dict[str, Any] = {}
    for name, slot, path, transform, converter, constant, reference in arguments:
        classes = converter.classes if converter is not None else None
        if transform is not None:
            values[name] = decode_token((evaluated or {})[name], classes)
            continue
        try:
            value = decode_token(tokens[slot] if slot >= 0 else constant, classes)
        except MalformedSignal as error:
            raise InvalidInput(
                f"argument {name!r} of {owner}, from {reference}: {error}", [(name, str(error))]
            ) from None
        values[name] = value_at(value, path, f"argument {name!r} of {owner}, from {reference}") if path else value
    return values


class BoundArguments(NamedTuple):
    """The arguments of one step of one transaction, decoded at each call: no two calls share a mutable value."""

    arguments: Sequence[Argument]
    tokens: Sequence[Any]
    owner: str
    evaluated: Mapping[str, Any] | None = None

    def raw(self) -> dict[str, Any]:
        """The arguments not yet converted to their annotations: values that can be carried."""
        return argument_values(*self)

    def __call__(self) -> dict[str, Any]:
        """The arguments converted to their annotations: what the step's function is called with."""
        arguments, tokens, owner, _ = self
        values: dict[str, Any] = {}
        for name, slot, path, transform, converter, _, _ in arguments:
            if slot < 0 or path or transform is not None:
                return convert_arguments(arguments, self.raw(), owner)
            value = tokens[slot]
            if converter is None:
                values[name] = decode_token(value) if type(value) is Packed else value
                continue
            convert, classes = converter
            try:
                values[name] = convert(decode_token(value, classes) if type(value) is Packed else value)
            except (ValidationError, _WrongType, MalformedSignal):
                return convert_arguments(arguments, self.raw(), owner)  # which says what is wrong
        return values

    def packed(self) -> Packed:
        """The arguments as one mapping of names to values, not yet converted, that a `RemoteArguments` is made of.

        Raises:
            InvalidInput: a path leads nowhere.
        """
        arguments, tokens, owner, evaluated = self
        found: dict[str, Any] = {}
        for argument in arguments:
            name, slot, path, transform, _, constant, _ = argument
            if transform is not None:
                found[name] = (evaluated or {})[name]
            elif path:
                found[name] = encode_token(argument_values((argument,), tokens, owner)[name])
            else:
                found[name] = tokens[slot] if slot >= 0 else constant
        return pack_tokens(found)


class RawArguments(BoundArguments):
    """The arguments of a function that decodes them itself: its one argument, `tokens`, is this object."""

    __slots__ = ()

    @override
    def __call__(self) -> dict[str, Any]:
        """The one argument `tokens`."""
        return {"tokens": self}

    def token(self, name: str) -> Any:
        """The token of one argument."""
        return next(self.tokens[argument.slot] for argument in self.arguments if argument.name == name)

    def values(self, names: Sequence[str], classes: Classes | None = None) -> dict[str, Any]:
        """Some of the arguments, decoded and converted to their annotations; of `classes` if there are none.

        Raises:
            InvalidInput: one of them does not fit.
        """
        wanted = [argument for argument in self.arguments if argument.name in names]
        if classes is not None:
            restored = Converter(lambda value: value, classes)
            wanted = [argument._replace(converter=argument.converter or restored) for argument in wanted]
        return BoundArguments(wanted, self.tokens, self.owner, self.evaluated)()


class RemoteArguments(NamedTuple):
    """The arguments of a step whose transaction is in another process, as the token of a mapping."""

    arguments: Sequence[Argument]
    token: Any
    owner: str

    def raw(self) -> dict[str, Any]:
        """As `BoundArguments.raw`.

        Raises:
            InvalidInput: the token is no mapping of all the arguments.
        """
        classes = first_of(argument.converter.classes for argument in self.arguments if argument.converter is not None)
        try:
            values = decode_token(self.token, classes)
        except MalformedSignal as error:
            raise InvalidInput(f"the arguments of {self.owner}: {error}") from None
        if type(values) is not dict or any(argument.name not in values for argument in self.arguments):
            raise InvalidInput(f"a signal for {self.owner} without all of its arguments")
        return values

    def __call__(self) -> dict[str, Any]:
        """As `BoundArguments.__call__`."""
        return convert_arguments(self.arguments, self.raw(), self.owner)

    def packed(self) -> Packed:
        """The token itself."""
        return Packed(token_bytes(self.token))


def transform_arguments(arguments: Sequence[Argument], tokens: Sequence[Any], owner: str) -> dict[str, Any]:
    """The tokens of all transformed arguments, by calling the transforms; for the supervisor, once.

    Raises:
        InvalidInput: a path leads nowhere.
        Exception: whatever a transform raises.
    """
    made: dict[str, Any] = {}
    for argument in arguments:
        if argument.transform is not None:
            plain = argument._replace(transform=None, converter=None)
            value = argument.transform(argument_values((plain,), tokens, owner)[argument.name])
            made[argument.name] = encode_token(plain_answer(f"the transform for {argument.name!r}", value))
    return made


def convert_arguments(arguments: Sequence[Argument], values: dict[str, Any], owner: str) -> dict[str, Any]:
    """`values`, each converted in place to the annotation of its parameter.

    Raises:
        InvalidInput: a value does not fit; names the parameter, what was there and what was asked for.
    """
    for argument in arguments:
        if argument.converter is not None:
            try:
                values[argument.name] = argument.converter.convert(values[argument.name])
            except ValidationError as error:
                problem = error.errors(include_url=False, include_input=False)[0]
                at = place_of(problem)
                raise InvalidInput(
                    f"argument {argument.name!r} of {owner}, from {argument.reference}: "
                    f"{problem['msg']}{f' at {at}' if at else ''}",
                    [(argument.name, problem["msg"])],
                ) from cause_of(error)
            except _WrongType as error:
                raise InvalidInput(
                    f"argument {argument.name!r} of {owner}, from {argument.reference}: {error}"
                ) from None
    return values


def value_at(value: Any, path: Sequence[str | int], what: str) -> Any:
    """`value` at `path`; where the path leads nowhere, an `InvalidInput` names the path and what was there."""
    here = value
    for at, part in enumerate(path):
        try:
            if isinstance(here, Mapping) or isinstance(part, int):
                here = here[part]
            else:
                found = getattr(here, part)
                if callable(found):
                    raise AttributeError(part)
                here = found
        except (KeyError, IndexError, AttributeError, TypeError):
            there = f"keys {sorted(map(str, here))}" if isinstance(here, Mapping) else f"a {type(here).__name__}"
            done = "".join(f"[{step!r}]" for step in path[:at]) or "the top"
            raise InvalidInput(f"{what}: no {part!r} at {done}; there is {there}") from None
    return here


class _WrongType(Exception):
    pass


_PLAIN: dict[Any, tuple[type, ...]] = {
    dict: (dict,), list: (list,), str: (str,), bytes: (bytes,), bool: (bool,), int: (int,), type(None): (type(None),),
}  # fmt: skip


def converter_for(annotation: Any, owner: str) -> Converter | None:
    """What converts a token to `annotation`: None for Any and no annotation, a type check for plain builtins, else
    pydantic.

    Raises:
        DefinitionError: pydantic has no way to make that type from plain data.
    """
    if annotation is inspect.Parameter.empty or annotation is Any or annotation is object:
        return None
    if isinstance(annotation, str):
        raise DefinitionError(
            f"{owner}: the annotation {annotation!r} names nothing that is known where the function is defined; with "
            "`from __future__ import annotations` a type must stand at module level"
        )
    if is_checked_exactly(annotation):
        return Converter(_checker(_members(annotation), annotation), None)
    _refuse_impossible_set(annotation, owner)
    try:
        adapter = TypeAdapter(taking_objects(annotation, VALUES))
        return Converter(_validator(annotation, adapter), AnnotatedClasses(annotation))
    except (PydanticUserError, NameError) as error:
        raise DefinitionError(
            f"{owner}: no way to make a {annotation!r} from plain data ({str(error).splitlines()[0]}); "
            "annotate with a pydantic model, a dataclass or plain types"
        ) from None


def _refuse_impossible_set(annotation: Any, owner: str) -> None:
    """Raises `DefinitionError` if the annotation is a container with a set in it of what no set can hold, such as
    `set[dict]`, or is such a set."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (set, frozenset):
        member = get_origin(parts[0]) or parts[0]
        if isinstance(member, type) and member.__hash__ is None and not inspect.isabstract(member):
            raise DefinitionError(
                f"{owner}: a {annotation!r} has no members, for a {member.__name__} has no hash; annotate with "
                "list[…], with set, whose objects are plain data then, or with a set of a frozen class"
            )
    if origin in (list, dict, tuple, set, frozenset):
        for part in parts:
            _refuse_impossible_set(part, owner)


def is_checked_exactly(annotation: Any) -> bool:
    """Whether a value for this annotation has to be exactly of one of its types, and is not converted."""
    return all(
        member in _PLAIN or (get_origin(member) in (dict, list) and _all_any(member)) for member in _members(annotation)
    )


def _members(annotation: Any) -> Sequence[Any]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _validator(annotation: Any, adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    """Validates what was carried as plain data; what came back as it was is not validated again.

    A model that is plain data here has the names of its fields, not their aliases.
    """
    validate = adapter.validate_python
    kept = annotation if isinstance(annotation, type) and is_object_class(annotation) else None

    def by_name_too(value: Any) -> Any:
        if kept is not None and fits(type(value), kept):
            return value
        try:
            return validate(value)
        except ValidationError:
            with contextlib.suppress(ValidationError):
                return validate(value, **BY_NAME)
            raise

    return by_name_too


def _all_any(member: Any) -> bool:
    return all(argument is Any for argument in get_args(member))


def _checker(members: Sequence[Any], annotation: Any) -> Callable[[Any], Any]:
    allowed = frozenset(kind for member in members for kind in _PLAIN[get_origin(member) or member])

    def check(value: Any) -> Any:
        if type(value) in allowed:
            return value
        shown = getattr(annotation, "__name__", None) or str(annotation)
        raise _WrongType(f"expected {shown}, got {type(value).__name__} {_short(value)}")

    return check


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def model_fields(model: type[BaseModel]) -> list[str]:
    """The names of a model's fields, as a step's parameters refer to them."""
    return list(model.model_fields)
