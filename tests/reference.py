"""`python -m tests.reference`: write into `docs/reference/` what the docstrings of the public face say.

A page is written by hand, but for the places between `<!-- made: MODULE NAME … -->` and `<!-- end -->`.  There stand
these names of that module, a section each; `table:` in place of `made:` gives each a row.  `*` stands for all names
of the module that no other place has.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from typing_extensions import is_protocol

from tests.public_face import GIVEN, MODULES, PACKAGES, listed_members, listed_names

PAGES: Final = Path(__file__).parents[1] / "docs" / "reference"
_PLACE: Final = re.compile(r"(?ms)^<!-- (made|table): (\S+) ([^\n]*?) -->\n(.*?)^<!-- end -->$")
_SECTION: Final = re.compile(r"(?m)^(Args|Raises|Options|Guarantees)\b([^\n:]*):[ \t]*")
_ITEM: Final = re.compile(r"(?m)^ {4}(?=\w[\w, .*…]*(?::|$))")
_ELSEWHERE: Final = re.compile(r"[;.] [Ss]ee `(?:bitactor|mesh)\.[\w.]+`(?: for [\w ]+)?(?=[.;,]|$)")
"""Where the source says more; a reader of these pages has other ones."""
_MANY: Final = 3
"""More options than these stand in a list of their own."""


class Doc(NamedTuple):
    """A docstring, taken apart."""

    text: str
    """Its first paragraph, on one line."""
    more: tuple[str, ...] = ()
    """Its other paragraphs, but for code."""
    items: Mapping[str, str] = {}
    """Name → what is said of it, of its arguments or options."""
    raises: tuple[str, ...] = ()


class Undocumented(Exception):
    """Something public says nothing of itself."""


def doc_of(docstring: str) -> Doc:
    """The parts of a docstring."""
    head, *sections = _SECTION.split(inspect.cleandoc(docstring))
    paragraphs = [part for part in re.split(r"\n\s*\n", head.strip()) if not part.startswith((" ", "│", "├"))]
    prose = [_line(part) for part in paragraphs]
    items: dict[str, str] = {}
    raises: list[str] = []
    for name, beside, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True):
        if not body.startswith("\n"):
            prose.append(_line(body if name == "Guarantees" else f"{name}{beside}: {body}"))
            continue
        if beside:
            prose.append(f"{name}{beside}:")
        for item in filter(str.strip, _ITEM.split(body)):
            named, _, said = _line(item).partition(": ")
            if name == "Raises":
                errors = [f"`{one}`" if one.isidentifier() else f"w{one[1:]}" for one in named.split(", ")]
                raises.append(": ".join(filter(None, (", ".join(errors), said))))
            else:
                items |= dict.fromkeys(named.split(", "), said)
    return Doc(prose[0] if prose else "", tuple(prose[1:]), items, tuple(raises))


def _line(text: str) -> str:
    return _ELSEWHERE.sub("", " ".join(text.split()))


def attribute_docs(kind: type) -> Mapping[str, str]:
    """Attribute → what a class, or one that it is below of, says of it."""
    return {name: said for base in reversed(kind.__mro__) for name, said in _own_docs(base).items()}


@cache
def _own_docs(kind: type) -> Mapping[str, str]:
    """Attribute → the text behind it in the class or its constructor, or what is said of the argument."""
    if kind.__module__.split(".")[0] not in PACKAGES:
        return {}
    [body] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {**doc_of(kind.__doc__ or "").items, **_texts_behind(body.body)}
    for made in body.body:
        if isinstance(made, ast.FunctionDef) and made.name == "__init__":
            found |= {**doc_of(ast.get_docstring(made) or "").items, **_texts_behind(made.body)}
    return found


def _texts_behind(body: Iterable[ast.stmt]) -> dict[str, str]:
    statements = list(body)
    return {
        name: _line(text.value.value)
        for statement, text in pairwise(statements)
        for name in _assigned(statement)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _assigned(statement: ast.stmt) -> Iterator[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Attribute):
            yield target.attr


@cache
def constant_docs() -> Mapping[str, Mapping[str, str]]:
    """Each of our modules → constant → the text behind it there."""
    for name in MODULES:
        importlib.import_module(name)
    return {
        name: _texts_behind(ast.parse(inspect.getsource(module)).body)
        for name, module in sorted(sys.modules.items())
        if name.split(".")[0] in PACKAGES and getattr(module, "__file__", None)
    }


def _constant_doc(module: str, name: str) -> str:
    """What is said of a constant where it is, or else where it comes from."""
    docs = constant_docs()
    return next(filter(None, (docs[one].get(name) for one in (module, *docs))), "")


def call_of(name: str, function: Any) -> str:
    """How a function is called: its parameters with their defaults."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return name
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    shown, keyword = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            shown.append("*")
        keyword = keyword or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
        shown.append(f"{star}{parameter.name}{default}")
    return f"{name}({', '.join(shown)})"


def _default(value: Any) -> str:
    if isinstance(value, type):
        return value.__name__
    text = repr(value)
    return "…" if " at 0x" in text or "<" in text or len(text) > 24 else text


def section(module: str, name: str) -> list[str]:
    """A name with all that belongs to it."""
    thing = getattr(importlib.import_module(module), name)
    if _is_constant(thing):
        return [f"### `{name}`", "", row_text(module, name)]
    doc = doc_of(_docstring(f"{module}.{name}", thing))
    made = name not in GIVEN and not inspect.isabstract(thing) and not is_protocol(thing)
    call = call_of(name, thing) if not isinstance(thing, type) or made else name
    lines = [f"### `{name}`", "", _sentence(doc.text), ""]
    if call != name:
        lines += [f"`{call}`", ""]
    lines += _told(doc)
    if isinstance(thing, type):
        lines += _members(module, thing, set(doc.items))
    return _without_double_blanks(lines)


def _told(doc: Doc) -> Iterator[str]:
    """What a docstring says behind its first paragraph."""
    for paragraph in doc.more:
        yield from (_sentence(paragraph), "")
    yield from (f"- `{item}`: {said}" for item, said in doc.items.items())
    yield from (f"- Raises {said}" for said in doc.raises)
    yield ""


def _members(module: str, kind: type, told: set[str]) -> Iterator[str]:
    """A table of what objects of a class have, attributes before methods, and behind it what has many options."""
    rows: list[str] = []
    behind: list[str] = []
    inherited: dict[str, list[str]] = {}
    names = {*listed_members(kind), *_fields(kind)} - told
    for name in sorted(names, key=lambda name: (_is_method(kind, name), name)):
        if (base := _told_by(kind, name)) is not kind:
            inherited.setdefault(base.__name__, []).append(name)
            continue
        if not _is_method(kind, name):
            rows.append(f"| `{name}` | {_cell(_sentence(_attribute(module, kind, name)))} |")
            continue
        value = getattr(kind, name)
        doc = doc_of(_docstring(f"{module}.{kind.__name__}.{name}", value))
        if len(doc.items) > _MANY:
            behind += ["", f"#### `{call_of(name, value)}`", "", *_told(doc)]
            rows.append(f"| `{name}(…)` | {_cell(_sentence(doc.text))} See below. |")
            continue
        said = [_sentence(doc.text), *map(_sentence, doc.more)]
        said += [f"<br>`{item}`: {_sentence(text)}" for item, text in doc.items.items()]
        said += [f"<br>Raises {_sentence(text)}" for text in doc.raises]
        rows.append(f"| `{call_of(name, value)}` | {_cell(' '.join(said))} |")
    yield from ["", "| | |", "|---|---|", *rows, ""] if rows else []
    for base, given in inherited.items():
        yield from (f"And what each `{base}` has: {', '.join(f'`{name}`' for name in given)}.", "")
    yield from behind


def _fields(kind: type) -> Iterator[str]:
    """What each object has that is no attribute of its class, if something is said of it."""
    if dataclasses.is_dataclass(kind):
        yield from (one.name for one in dataclasses.fields(kind) if one.init and one.name in attribute_docs(kind))
    elif is_protocol(kind) or issubclass(kind, BaseException):
        yield from (name for base in kind.__mro__ for name in _own_docs(base) if not name.startswith("_"))


def _told_by(kind: type, name: str) -> type:
    """The class on whose place in the pages a member is told: a public one below this that says it, or this."""
    for base in kind.__mro__:
        if name in vars(base) and getattr(vars(base)[name], "__doc__", None) and base.__name__ in _public():
            return base
        if name in _own_docs(base) and base.__name__ in _public():
            return base
    return kind


@cache
def _public() -> frozenset[str]:
    return frozenset(name for module in MODULES for name in listed_names(module))


def _is_method(kind: type, name: str) -> bool:
    member = inspect.getattr_static(kind, name, None)
    return callable(getattr(kind, name, None)) and not isinstance(member, property) and not _is_field(member)


def _is_field(member: Any) -> bool:
    """Whether it is an attribute of each object, that a class only keeps a place or a default for."""
    return type(member).__name__ in ("_tuplegetter", "member_descriptor") or not hasattr(member, "__get__")


def _attribute(module: str, kind: type, name: str) -> str:
    properties = (vars(base).get(name) for base in kind.__mro__)  # an implementation's, then its port's
    said = (one.__doc__ for one in properties if isinstance(one, property))
    found = attribute_docs(kind).get(name) or next(filter(None, said), None)
    if not found:
        raise Undocumented(f"{module}.{kind.__name__}.{name}")
    return _line(found)


def _docstring(what: str, thing: Any) -> str:
    said = inspect.getdoc(thing)
    if not said or (isinstance(thing, type) and said.startswith(f"{thing.__name__}(")):
        raise Undocumented(what)
    return said


def _is_constant(thing: Any) -> bool:
    return not isinstance(thing, type) and not inspect.isroutine(thing)


def row_text(module: str, name: str) -> str:
    """What is said of a name in one line."""
    thing = getattr(importlib.import_module(module), name)
    if not _is_constant(thing):
        return _sentence(doc_of(_docstring(f"{module}.{name}", thing)).text)
    said = (f"`{thing!r}`." if isinstance(thing, str | int | float) else "", _constant_doc(module, name))
    if not any(said):
        raise Undocumented(f"{module}.{name}")
    return " ".join(filter(None, said))


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":", "`")) else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _without_double_blanks(lines: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return kept[:-1] if kept and not kept[-1] else kept


def places(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Of each made place of a page: how, the module, and the names, `*` as it stands."""
    for how, module, names, _ in _PLACE.findall(text):
        yield how, module, names.split()


def named() -> dict[str, set[str]]:
    """Module → the names that a place has by itself."""
    found: dict[str, set[str]] = {}
    for page in sorted(PAGES.glob("*.md")):
        for _, module, names in places(page.read_text(encoding="utf-8")):
            found.setdefault(module, set()).update(names)
    return found


def made(text: str) -> str:
    """A page with its places made anew."""
    elsewhere = named()

    def place(match: re.Match[str]) -> str:
        how, module, names = match[1], match[2], match[3].split()
        rest = [name for name in listed_names(module) if name not in elsewhere[module]]
        rest.sort(key=lambda name: _is_constant(getattr(importlib.import_module(module), name)))
        chosen = [name for given in names for name in (rest if given == "*" else [given])]
        if how == "table":
            lines = ["| | |", "|---|---|"]
            lines += [f"| `{_heading(module, name)}` | {_cell(row_text(module, name))} |" for name in chosen]
        else:
            lines = [line for name in chosen for line in (*section(module, name), "")][:-1]
        return "\n".join((f"<!-- {how}: {module} {match[3]} -->", "", *lines, "", "<!-- end -->"))

    return _PLACE.sub(place, text)


def _heading(module: str, name: str) -> str:
    thing = getattr(importlib.import_module(module), name)
    return name if isinstance(thing, type) or not callable(thing) else call_of(name, thing)


def main() -> int:
    """Write all pages."""
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
