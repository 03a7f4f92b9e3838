"""Tests ask what everybody can ask: none reaches into what is private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent

ALLOWED: Final = frozenset(("os._exit", "_asdict", "_field_defaults", "_fields", "_make", "_replace"))
"""Public in spite of their underscore: how a process dies at once, and what every named tuple has."""

NAMING: Final = frozenset(("attrgetter", "delattr", "getattr", "hasattr", "methodcaller", "object", "patch", "setattr"))
"""Functions that take the name of an attribute, or a path to one, as a string."""


def reaches(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of whatever in `source` is private to somebody else, also in programs that it holds as strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if not _is_own(node.value) and _is_private(node.attr) and ast.unparse(node) not in ALLOWED:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            for path in (f"{module}.{alias.name}".removeprefix(".") for alias in node.names):
                if any(map(_is_private, path.split("."))):
                    yield node.lineno, f"import of {path}"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in NAMING:
            paths = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if any(_is_private(name) for path in paths if isinstance(path, str) for name in path.split(".")):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "._" in node.value:
            yield from ((node.lineno, found) for _, found in _inside(node.value))


def _inside(text: str) -> Iterator[tuple[int, str]]:
    try:
        yield from reaches(dedent(text))
    except SyntaxError:  # prose, or a program in pieces
        return


def _is_own(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ALLOWED


def test_no_test_reaches_into_what_is_private() -> None:
    found = [
        f"{path.relative_to(ROOT.parent)}:{line}: {what}"
        for path in sorted(ROOT.rglob("*.py"))
        if path != Path(__file__)  # which shows what reaches look like
        for line, what in reaches(path.read_text(encoding="utf-8"))
    ]
    assert not found, "ask a public question, or take a fake that fails:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "mesh.node._links",
        "mesh._node.links",
        "made()._count",
        "self.server._thread",
        "super()._count",
        "link._exit",
        "from mesh.node import _nanoseconds",
        "from mesh._hidden import about",
        "import mesh._hidden",
        "monkeypatch.setattr(child, '_BOOT', '')",
        "monkeypatch.setattr('mesh.spawners.process.child._BOOT', '')",
        "getattr(pool, '_taken')",
        "PROGRAM = '''\n    from mesh import Mesh\n    Mesh()._loop\n'''",
    ],
)
def test_a_reach_would_be_found(source: str) -> None:
    assert list(reaches(source))


@pytest.mark.parametrize(
    "source",
    [
        "self._count + cls._all",
        "os._exit(9)",
        "pulse._replace(seq=1)._asdict()",
        "Pulse._fields + Pulse._make([])",
        "made.__class__.__name__",
        "from mesh import __version__",
        "{'_private': int}",
        "'an entry._named so in prose'",
    ],
)
def test_what_is_public_is_not_found(source: str) -> None:
    assert not list(reaches(source))
