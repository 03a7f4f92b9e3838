"""Writing a graph: from a workflow to plain data."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from bitactor.declare.options import STEP_OPTIONS
from bitactor.declare.resource import DEFAULT_CHECK_EVERY, Resource
from bitactor.declare.step import Step
from bitactor.errors import DefinitionError, DuplicateName
from bitactor.export.graph.forms import OF_A_WORKFLOW, VERSION
from bitactor.forms.annotations import type_text
from bitactor.forms.keys import OPTION_KEYS
from bitactor.forms.paths import path_of
from bitactor.forms.values import constant, reference
from bitactor.plan.declaration import Declaration
from bitactor.plan.kind import kind_of


def to_dict(workflow: Declaration) -> dict[str, Any]:
    """The graph of a workflow, with all workflows that are nested in it, as plain data.

    Raises:
        DefinitionError: it does not work as it is declared; or something in it has no import path, naming step, option
            and what to do.
    """
    workflow.check()
    return _Writer().graph(workflow)


class _Writer:
    """Writes the workflows of one graph, each once."""

    def __init__(self) -> None:
        self._nested: dict[str, Declaration] = {}

    def graph(self, workflow: Declaration) -> dict[str, Any]:
        """A workflow, and all that are nested in it."""
        own = self._workflow(workflow)
        if workflow.name in self._nested:
            raise DuplicateName(f"workflow {workflow.name!r} nests another one of its name; rename one of them")
        done: dict[str, dict[str, Any]] = {}
        while len(done) < len(self._nested):
            for name, other in list(self._nested.items()):
                if name not in done:
                    done[name] = self._workflow(other)
        return {"version": VERSION, **own, **({"workflows": [*done.values()]} if done else {})}

    def nest(self, workflow: Declaration) -> str:
        """The name under which a nested workflow is written.

        Raises:
            DuplicateName: another has the same.
        """
        if self._nested.setdefault(workflow.name, workflow) is not workflow:
            raise DuplicateName(
                f"two different nested workflows are called {workflow.name!r}; rename one, for in a dict each goes by "
                "its name"
            )
        return workflow.name

    def _workflow(self, workflow: Declaration) -> dict[str, Any]:
        what = f"workflow {workflow.name!r}"
        data: dict[str, Any] = {"name": workflow.name}
        if workflow.input_model.model_fields or not _is_ours(workflow):
            data["input"] = _input(workflow, what)
        data |= {name: value for name in OF_A_WORKFLOW if (value := getattr(workflow, name)) is not None}
        if workflow.errors:
            data["errors"] = [path_of(kind, f"{what}: errors=") for kind in workflow.errors]
        if workflow.resources:
            data["resources"] = [_resource(resource, what) for resource in workflow.resources.values()]
        data["steps"] = [self._step(step) for step in workflow.steps.values()]
        if workflow.returned is not None:
            data["returns"] = workflow.returned
        return data

    def _step(self, step: Step[Any, Any]) -> dict[str, Any]:
        what = f"step {step.name!r} of {step.workflow.name!r}"
        kind, options = kind_of(step), step.options
        data: dict[str, Any] = {"kind": step.label, "name": step.name}
        for name, key in kind.keys.items():
            value = options.bind.get(f"({name})", getattr(kind, name, None))
            if value is not None and value != key.default:
                data[name] = key.write(value, what, name, self)
        if bind := kind.said_bind(options.bind):
            data["bind"] = OPTION_KEYS["bind"].write(bind, what, "bind", self)
        if step.deferred:
            data["deferred"] = True
        for name, key in OPTION_KEYS.items():
            value = getattr(options, name)
            if name in options.given - data.keys() - {"bind"} and not value == () == STEP_OPTIONS[name].default:
                data[name] = key.write(value, what, name, self)
        return data | _undo_options(step, what)


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


def _undo_options(step: Step[Any, Any], what: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if step.undo_function is not None:
        undo = {"function": reference(step.undo_function, f"{what}: its undo"), "retries": step.undo_retries}
        data["undo"] = undo | ({"in_doubt": True} if step.undo_in_doubt else {})
    if step.compensate_function is not None:
        data["compensate"] = path_of(step.compensate_function, f"{what}: its compensate")
    return data
