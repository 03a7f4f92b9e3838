"""The arrows between packages and rooms, held by looking at every import statement: those inside functions and those
for types only too."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bitactor", "registry", "mesh")

IMPURE = frozenset(
    (
        "asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "ftplib", "glob", "http", "imaplib", "io", "mmap",
        "multiprocessing", "os", "pathlib", "pickle", "platform", "poplib", "queue", "random", "resource", "sched",
        "secrets", "select", "selectors", "shelve", "shutil", "signal", "smtplib", "socket", "socketserver",
        "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "xmlrpc",
    )
)  # fmt: skip
"""What a pure core must not know: sockets, threads, loops, clocks, randomness, files, the environment, pickle."""

ON_THE_LOOP = frozenset(("asyncio", "contextvars"))
"""What `bitactor.patterns`, and the batch of a map, which awaits its elements side by side, may know besides: calls
wait for each other there (a turn, a batch, an answer), which takes futures and tasks of the loop they run on, and tasks
that belong to no hop.  Time still comes from the
`Clock` port, and there are no sockets and threads."""

COMMAND = frozenset(("bitactor.launcher", "bitactor.__main__"))
"""What the `bitactor` command runs first; it stands in `bitactor` because a user's `mesh.py` would hide ours."""

FACE = "bitactor.face"
"""Imports what a face shows when it is first asked for, by the name that stands in the face's table."""

MAY_IMPORT = {
    "bitactor": frozenset(("bitactor", "msgpack", "pydantic", "typing_extensions")),
    "registry": frozenset(("registry", "bitactor", "msgpack", "pydantic", "typing_extensions", "zmq")),
}


class Import(NamedTuple):
    """One imported module, where it is imported, and how."""

    importer: str
    module: str
    line: int
    in_function: bool
    for_types_only: bool


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL_MODULES = {module_name(path): path for package in PACKAGES for path in sources(package)}


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of ours, parsed once for all tests."""
    return {name: ast.parse(path.read_text()) for name, path in ALL_MODULES.items()}


def in_package(module: str, package: str) -> bool:
    return module.partition(".")[0] == package


def imports(importer: str) -> Iterator[Import]:
    is_package = ALL_MODULES[importer].name == "__init__.py"

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), inside, True)
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), inside, for_types)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(importer, alias.name, child.lineno, inside, for_types)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = importer.split(".") if is_package else importer.split(".")[:-1]
                    parts = parts[: len(parts) - child.level + 1]
                    base = ".".join([*parts, base] if base else parts)
                for alias in child.names:
                    inner = f"{base}.{alias.name}"
                    yield Import(importer, inner if inner in ALL_MODULES else base, child.lineno, inside, for_types)
            yield from walk(child, inside, for_types)

    yield from walk(trees()[importer], False, False)


@cache
def every_import() -> list[Import]:
    return [found for importer in trees() for found in imports(importer)]


def all_imports(package: str) -> list[Import]:
    return [found for found in every_import() if in_package(found.importer, package)]


def test_this_test_sees_something() -> None:
    for package in PACKAGES:
        assert sources(package), package
    seen = {found.module for found in all_imports("bitactor")}
    assert {"msgpack", "bitactor.messages.codec", "bitactor.saga.state"} <= seen


@pytest.mark.parametrize("package", ["bitactor", "registry"])
def test_packages_import_only_what_they_may(package: str) -> None:
    wrong = [
        f"{found.importer}:{found.line} imports {found.module}"
        for found in all_imports(package)
        if (top := found.module.partition(".")[0]) not in MAY_IMPORT[package] and top not in sys.stdlib_module_names
    ]
    assert not wrong


def test_the_core_is_pure() -> None:
    wrong = [
        f"{found.importer}:{found.line} imports {found.module}"
        for found in all_imports("bitactor")
        if (top := found.module.partition(".")[0]) in IMPURE
        and found.importer not in COMMAND
        and (top, found.importer) != ("pathlib", "bitactor.messages.objects")  # whose paths are values
        and not (
            top in ON_THE_LOOP
            and (found.importer.startswith("bitactor.patterns.") or found.importer == "bitactor.kinds.batch")
        )
    ]
    assert not wrong


def test_the_command_is_no_part_of_the_core() -> None:
    users = {
        found.importer
        for package in ("bitactor", "registry")
        for found in all_imports(package)
        if found.module in COMMAND
    }
    assert users <= COMMAND


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_pickles(package: str) -> None:
    forbidden = ("pickle", "cloudpickle", "dill", "shelve", "marshal")
    wrong = [
        f"{found.importer}:{found.line}"
        for found in all_imports(package)
        if found.module.partition(".")[0] in forbidden
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_at_the_top(package: str) -> None:
    wrong = [
        f"{found.importer}:{found.line} imports {found.module} inside a function"
        for found in all_imports(package)
        if found.in_function
    ]
    assert not wrong


def last_name(called: ast.expr) -> str:
    """`c` of `a.b.c(…)` and of `c(…)`; a call of anything else has no name."""
    match called:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ""


@cache
def every_call() -> list[tuple[str, str, int]]:
    """Who calls, what, and in which line."""
    found = (
        (caller, node) for caller, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.Call)
    )
    return [(caller, last_name(node.func), node.lineno) for caller, node in found]


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_imported_by_call(package: str) -> None:
    wrong = []
    for caller, called, line in every_call():
        hidden = called == "import_module" and package != "mesh" and caller not in (*COMMAND, FACE)
        if in_package(caller, package) and (called in ("__import__", "exec", "eval") or hidden):
            wrong.append(f"{caller}:{line} calls {called}")
    assert not wrong


def test_faces_show_what_they_say() -> None:
    faces = {found.importer for found in every_import() if found.module == FACE}
    assert faces == {"bitactor", "registry", "mesh", "mesh.cli.work"}
    for face in faces:
        shown = importlib.import_module(face)
        for statement in ast.walk(trees()[face]):
            if isinstance(statement, ast.ImportFrom) and statement.module not in (FACE, "bitactor.launcher", "typing"):
                home = importlib.import_module(str(statement.module))
                assert {alias.name for alias in statement.names} <= set(shown.__all__)
                assert all(getattr(shown, alias.name) is getattr(home, alias.name) for alias in statement.names), face
        assert set(shown.__all__) <= set(dir(shown))
        assert not [name for name in shown.__all__ if f"{face}.{name}" in ALL_MODULES]
        with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'nothing'"):
            _ = shown.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_no_import_cycles(package: str) -> None:
    graph: dict[str, set[str]] = {name: set() for name in ALL_MODULES if in_package(name, package)}
    for found in all_imports(package):
        if found.module in graph and found.module != found.importer:
            graph[found.importer].add(found.module)
    assert find_cycle(graph) is None


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle of modules, or None."""
    done: set[str] = set()
    for start in sorted(graph):
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in done else []
        path.append(start)
        while stack:
            name, rest = stack[-1]
            following = next((other for other in rest if other not in done), None)
            if following is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            else:
                path.append(following)
                stack.append((following, iter(sorted(graph[following]))))
    return None


def test_cycles_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


# Rooms

ROOMS: dict[str, dict[str, str]] = {
    "bitactor": {
        "errors": "",
        "messages": "errors",
        "ports": "errors messages",
        "declare": "errors messages ports",
        "forms": "declare errors messages",
        "plan": "declare errors forms messages",
        "kinds": "declare errors forms messages plan",
        "patterns": "declare errors messages ports",
        "saga": "declare errors messages plan",
        "export": "declare errors forms kinds messages plan saga",
        "workflow": "declare errors export kinds messages plan",
        "testing": "declare errors export messages plan saga workflow",
        "face": "",
        "launcher": "",
        "__main__": "launcher",
        "__init__": "declare errors face messages plan workflow",
    },
    "registry": {
        "entry": "",
        "limits": "entry",
        "table": "entry limits",
        "watches": "entry limits",
        "wire": "entry limits",
        "port": "entry watches",
        "support": "entry",
        "protocol": "entry support table watches wire",
        "server": "protocol support table wire",
        "client": "entry limits port protocol support watches wire",
        "local": "entry limits port table watches",
        "__init__": "client entry local port protocol server support table watches",
    },
    "mesh": {
        "limits": "",
        "stores": "",
        "sinks": "",
        "ready": "",
        "network.transports": "",
        "hops": "limits sinks",
        "spawners": "hops limits network.transports sinks",
        "runtime": "hops limits sinks spawners stores",
        "transaction": "hops limits runtime",
        "network": "hops limits network.transports runtime sinks transaction",
        "mesh": "network runtime sinks transaction",
        "ingress": "mesh sinks transaction",
        "demo": "stores",
        "cli": "demo hops ingress mesh network network.transports sinks stores",
        "testing": "hops mesh runtime transaction",
        "__init__": "hops mesh transaction",
    },
}
"""Package → room → the rooms of the same package that it may import, and does.  A new room is a new row."""

LIKE_THINGS = ("bitactor/kinds", "bitactor/patterns", "mesh/cli", "mesh/ready/steps", "mesh/sinks")
"""Rooms that hold one file for each of many like things, and may have as many as there are."""

MOST_ENTRIES, MOST_LINES, MOST_FUNCTION_LINES = 14, 450, 60

LONG_FILES: dict[str, str] = {}
"""Exceptions from `MOST_LINES` and `MOST_FUNCTION_LINES`, at most five, each with its reason."""


def room_of(module: str) -> str:
    package, _, inner = module.partition(".")
    if not inner:
        return "__init__"
    return max((room for room in ROOMS[package] if f"{inner}.".startswith(f"{room}.")), key=len, default=inner)


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_what_the_table_says(package: str) -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS[package]}
    for found in all_imports(package):
        if found.module in ALL_MODULES and found.module.partition(".")[0] == package:
            here, there = room_of(found.importer), room_of(found.module)
            if here != there:
                used.setdefault(here, set()).add(there)
    assert used == {room: set(allowed.split()) for room, allowed in ROOMS[package].items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_arrows_between_rooms_make_no_circle(package: str) -> None:
    assert find_cycle({room: set(allowed.split()) for room, allowed in ROOMS[package].items()}) is None


def test_no_room_is_crowded() -> None:
    aside = ("__init__.py", "__main__.py", "py.typed", "__pycache__")
    entries: dict[str, set[str]] = {}
    for path in ALL_MODULES.values():
        parts = path.relative_to(ROOT).parts
        for depth in range(1, len(parts)):
            entries.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for folder, names in entries.items():
        names |= {entry.name for entry in (ROOT / folder).iterdir() if entry.is_file()}
    crowded = {folder for folder, names in entries.items() if len(names.difference(aside)) > MOST_ENTRIES}
    assert crowded <= set(LIKE_THINGS)


def test_files_and_functions_are_short() -> None:
    long = set()
    for path in ALL_MODULES.values():
        name = str(path.relative_to(ROOT))
        if path.read_text().count("\n") > MOST_LINES:
            long.add(name)
        for node in ast.walk(trees()[module_name(path)]):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES:
                long.add(name)
    assert long == set(LONG_FILES)
    assert len(LONG_FILES) <= 5


def test_files_are_nouns_or_plain_verbs() -> None:
    of_the_field = ("testing",)
    names = {module.rpartition(".")[2] for module in ALL_MODULES}
    assert not {name for name in names if name.endswith("ing") and name not in of_the_field}


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:bitactor|registry|mesh|tests)/[\w/.]*)`", page))
    assert named
    assert not {path for path in named if not (ROOT / path).exists()}
    rooms = {room.rpartition(".")[2] for rooms in ROOMS.values() for room in rooms if not room.startswith("__")}
    assert not {room for room in rooms if not re.search(rf"\b{room}\b", page)}
