"""Writing a graph: from a workflow to plain data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from bitactor.declare.backoff import Backoff
from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.resource import DEFAULT_CHECK_EVERY, Resource
from bitactor.declare.source import Element, Input, Result, Source, Value
from bitactor.declare.step import Step, StepKind
from bitactor.errors import DefinitionError, DuplicateName
from bitactor.export.graph.annotations import type_text
from bitactor.export.graph.forms import OF_A_WORKFLOW, VERSION
from bitactor.export.graph.paths import path_of
from bitactor.export.graph.values import constant, data_of, reference
from bitactor.kinds.around import Around
from bitactor.kinds.batch import OVER
from bitactor.kinds.compose import Compose
from bitactor.kinds.group import Group
from bitactor.kinds.iterate import START, Iterate
from bitactor.kinds.map import Map
from bitactor.kinds.recurse import Recurse
from bitactor.kinds.switch import ON, Switch
from bitactor.plan.declaration import Declaration


def to_dict(workflow: Declaration) -> dict[str, Any]:
    """The graph of a workflow, with all workflows that are nested in it, as plain data.

    Raises:
        DefinitionError: it does not work as it is declared; or something in it has no import path, naming step, option
            and what to do.
    """
    workflow.check()
    nested: dict[str, Declaration] = {}
    own = _workflow(workflow, nested)
    if workflow.name in nested:
        raise DuplicateName(f"workflow {workflow.name!r} nests another one of its name; rename one of them")
    done: dict[str, dict[str, Any]] = {}
    while len(done) < len(nested):
        for name, other in list(nested.items()):
            if name not in done:
                done[name] = _workflow(other, nested)
    return {"version": VERSION, **own, **({"workflows": [*done.values()]} if done else {})}


def _workflow(workflow: Declaration, nested: dict[str, Declaration]) -> dict[str, Any]:
    what = f"workflow {workflow.name!r}"
    data: dict[str, Any] = {"name": workflow.name}
    if workflow.input_model.model_fields or not _is_ours(workflow):
        data["input"] = _input(workflow, what)
    data |= {name: value for name in OF_A_WORKFLOW if (value := getattr(workflow, name)) is not None}
    if workflow.errors:
        data["errors"] = [path_of(kind, f"{what}: errors=") for kind in workflow.errors]
    if workflow.resources:
        data["resources"] = [_resource(resource, what) for resource in workflow.resources.values()]
    data["steps"] = [_step(step, nested) for step in workflow.steps.values()]
    if workflow.returned is not None:
        data["returns"] = workflow.returned
    return data


def _is_ours(workflow: Declaration) -> bool:
    """Whether the workflow's input model was made from a mapping of names to types."""
    return workflow.input_model.__name__ == f"{workflow.name} input"


def _input(workflow: Declaration, what: str) -> Any:
    model: type[BaseModel] = workflow.input_model
    if not _is_ours(workflow):
        return path_of(model, f"{what}: input=")
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        where = f"{what}: input field {name!r}"
        if (
            field.metadata
            or field.default_factory is not None
            or not field._attributes_set.keys() <= {"annotation", "default"}
        ):
            raise DefinitionError(
                f"{where} says more than type and default; declare the input as a pydantic model at the top level of a "
                "module"
            )
        text = type_text(field.annotation, where)
        fields[name] = (
            text if field.is_required() else {"type": text, "default": constant(field.default, f"{where}: its default")}
        )
    return {"fields": fields}


def _resource(resource: Resource, what: str) -> Any:
    """The import path of a resource that stands at the top level of a module, the module of its factory first, so that
    all readers share it; else its data."""
    factorys = getattr(resource.factory, "__module__", "")
    for module in (factorys, *sorted(sys.modules)):
        for name, value in list(vars(sys.modules.get(module, object)).items()) if module != "__main__" else ():
            if value is resource:
                return f"{module}:{name}"
    where = f"{what}: resource {resource.name!r}"
    data: dict[str, Any] = {"name": resource.name, "factory": path_of(resource.factory, f"{where}: factory=")}
    for option in ("close", "check", "provides"):
        if getattr(resource, option) is not None:
            data[option] = path_of(getattr(resource, option), f"{where}: {option}=")
    if resource.check_every != DEFAULT_CHECK_EVERY:
        data["check_every"] = resource.check_every
    return data | ({"requires": [*resource.requires]} if resource.requires is not None else {})


def _step(step: Step[Any, Any], nested: dict[str, Declaration]) -> dict[str, Any]:
    what = f"step {step.name!r} of {step.workflow.name!r}"
    data: dict[str, Any] = {"kind": step.label, "name": step.name}
    bind: Mapping[str, Source] = step.options.bind
    if step.kind is not None:
        data |= _kind(step.kind, bind, what, nested)
        bind = {name: source for name, source in bind.items() if name not in (OVER, START, ON)}
        bind |= step.kind.elements if isinstance(step.kind, Map) else {}
    elif step.label == "step":
        data["function"] = reference(step.function, f"{what}: its function")
    else:
        data |= _ready_made(step, bind, what)
        bind = {} if step.label == "collect" else bind
    if bind:
        data["bind"] = _sources(bind, what)
    return data | _options(step, what) | _undo_options(step, what)


def _kind(kind: StepKind, bind: Mapping[str, Source], what: str, nested: dict[str, Declaration]) -> dict[str, Any]:
    function: Callable[..., Any] | None = getattr(kind, "function", None)
    data: dict[str, Any] = {}
    if function is not None:
        data["function"] = reference(function, f"{what}: its function")
    match kind:
        case Compose() | Around() | Recurse() | Group():
            data["workflow"] = _nest(kind.workflow, nested)
        case Map() if kind.workflow is not None:
            data["workflow"] = _nest(kind.workflow, nested)
    match kind:
        case Map():
            data |= _map(kind, bind, what)
        case Iterate():
            data["start"] = _source(bind[START], f"{what}: start=")
        case Switch():
            data |= _switch(kind, bind, what, nested)
        case Group():
            data |= _paths(kind, {"before_all": kind.before, "after_all": kind.after}, what)
    if isinstance(kind, Iterate | Recurse):
        data |= {**_paths(kind, {"until": kind.until}, what), "at_most": kind.at_most}
    return data


def _map(kind: Map, bind: Mapping[str, Source], what: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if kind.factory is not None:
        data["over"] = {"factory": path_of(kind.factory, f"{what}: over=")}
    else:
        data["over"] = _source(bind[OVER], f"{what}: over=")
    data |= {"batch": kind.batch, "ordered": kind.ordered, "on_error": kind.on_error, "keep": kind.keep}
    data |= _paths(kind, {"reduce": kind.reduce}, what)
    if kind.initial is not None:
        data["initial"] = constant(kind.initial, f"{what}: initial=")
    return data | ({"whole": True} if kind.whole else {})


def _switch(kind: Switch, bind: Mapping[str, Source], what: str, nested: dict[str, Declaration]) -> dict[str, Any]:
    def branch(target: Any, where: str) -> dict[str, Any]:
        if isinstance(target, Declaration):
            return {"workflow": _nest(target, nested)}
        return {"function": path_of(getattr(target, "function", target), where)}

    cases = []
    for number, test in enumerate(kind.tests):
        where = f"{what}: case {number + 1}"
        fits = (
            {"test": path_of(test, f"{where}: its predicate")}
            if callable(test)
            else {"value": constant(test, f"{where}: its value")}
        )
        cases.append(fits | branch(kind.targets[number], f"{where}: its branch"))
    data: dict[str, Any] = {"on": _source(bind[ON], f"{what}: on="), "cases": cases}
    if kind.has_default:
        data["default"] = branch(kind.targets[-1], f"{what}: default=")
    return data | ({"optional": True} if kind.optional else {})


def _ready_made(step: Step[Any, Any], bind: Mapping[str, Source], what: str) -> dict[str, Any]:
    """The options that `collect`, `template`, `debug` or `flunk` was declared with."""
    made_from: Mapping[str, Any] = step.function.made_from  # type: ignore[attr-defined]
    data = {name: value for name, value in made_from.items() if value is not None and not callable(value)}
    if step.label == "collect":
        data["sources"] = _sources(bind, what)
    return data | _paths(None, {name: value for name, value in made_from.items() if callable(value)}, what)


def _paths(_: Any, functions: Mapping[str, Callable[..., Any] | None], what: str) -> dict[str, str]:
    return {
        option: path_of(function, f"{what}: {option}=")
        for option, function in functions.items()
        if function is not None
    }


def _nest(workflow: Declaration, nested: dict[str, Declaration]) -> str:
    if nested.setdefault(workflow.name, workflow) is not workflow:
        raise DuplicateName(
            f"two different nested workflows are called {workflow.name!r}; rename one, for in a dict each goes by its "
            "name"
        )
    return workflow.name


def _sources(bind: Mapping[str, Source], what: str) -> dict[str, Any]:
    return {name: _source(source, f"{what}: bind[{name!r}]") for name, source in bind.items()}


def _source(source: Source, what: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    match source:
        case Input(name=name):
            data["input"] = name
        case Result(step=name):
            data["result"] = name
        case Value(value=value):
            data["value"] = constant(value, what)
        case Element():
            data["element"] = True
    if path := getattr(source, "path", ()):
        data["path"] = [*path]
    if source.transform is not None:
        data["transform"] = path_of(source.transform, f"{what}: its transform")
    return data


def _options(step: Step[Any, Any], what: str) -> dict[str, Any]:
    data: dict[str, Any] = {"deferred": True} if step.deferred else {}
    for name, option in STEP_OPTIONS.items():
        value, write = getattr(step.options, name), _WRITERS.get(option.metadata.get("form", "plain"))
        if write is not None and name in step.options.given and not value == () == option.default:
            data[name] = write(value, f"{what}: {name}=")
    return data


def _backoff(backoff: Any, what: str) -> Any:
    if type(backoff) is Backoff:
        return {name: getattr(backoff, name) for name in ("initial", "factor", "cap", "jitter")}
    return path_of(backoff, what)


def _classes(kinds: Any, what: str) -> list[str]:
    return [path_of(kind, what) for kind in ([kinds] if isinstance(kinds, type) else kinds)]


_WRITERS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "plain": lambda value, what: value,
    "names": lambda steps, what: [step if isinstance(step, str) else step.name for step in steps],
    "function": path_of,
    "backoff": _backoff,
    "classes": _classes,
    "objects": lambda objects, what: [data_of(thing, what) for thing in objects],
}
"""What writes an option, by its form in `STEP_OPTIONS`; the name and the sources are written beside them."""


def _undo_options(step: Step[Any, Any], what: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if step.undo_function is not None:
        undo = {"function": reference(step.undo_function, f"{what}: its undo"), "retries": step.undo_retries}
        data["undo"] = undo | ({"in_doubt": True} if step.undo_in_doubt else {})
    if step.compensate_function is not None:
        data["compensate"] = path_of(step.compensate_function, f"{what}: its compensate")
    return data
