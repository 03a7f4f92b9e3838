"""What one does with files, as steps that can be taken back.

    files.make(report, "folder", "{place}/{month}")
    files.write(report, "save", "{place}/{month}/report.txt", Result("render"))
    files.move(report, "publish", "{save.path}", "/srv/www/{month}.txt")

Paths are templates; a field is an input field or another step's result.  Give absolute paths, or `within`: a directory
that no path may lead out of.

A file is written beside its place and put there in one go; nobody ever sees half of one.  On undo what a step has
changed is put back: an old file is kept, under a second name beside it or in the directory `keep`, until the
transaction has been undone, or `forget(transaction)` says that it never will be.  `undoable=False` keeps nothing.  What
somebody else has changed in the meantime is not overwritten: undoing raises `ChangedByOthers`, and the transaction is
stuck until somebody has looked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from bitactor.declare.step import Step
from bitactor.workflow import Workflow
from mesh.ready.declare import ReadyKeywords, TakeBack, declare
from mesh.ready.steps.file_backups import ChangedByOthers, forget, sweep
from mesh.ready.steps.file_changes import Copy, Move, Remove, Write
from mesh.ready.steps.file_directories import Make
from mesh.ready.steps.file_looks import Glob, Read, Stat

__all__ = ["ChangedByOthers", "copy", "forget", "glob", "make", "move", "read", "remove", "stat", "sweep", "write"]

DEFAULT_MAX_BYTES = 1024 * 1024
DEFAULT_MAX_PATHS = 10_000
Where = str | Path


def read(
    workflow: Workflow,
    name: str,
    path: str,
    *,
    encoding: str | None = "utf-8",
    max_bytes: int = DEFAULT_MAX_BYTES,
    within: Where = "",
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step whose result is a file's content.

    Args:
        path: of a regular file.
        encoding: None: the content as bytes.
        max_bytes: a larger file is an `InvalidOutcome`.
        within: the directory that the path must not lead out of.
        options: those of `Workflow.step`.
    """
    shapes = {"path": path, "encoding": encoding, "max_bytes": max_bytes, "within": str(within)}
    return declare(workflow, name, Read, shapes, options)


def write(
    workflow: Workflow,
    name: str,
    path: str,
    content: Any,
    *,
    encoding: str = "utf-8",
    within: Where = "",
    keep: Where = "",
    durable: bool = False,
    undoable: bool = True,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that writes a file; its result has `path`, `size`, and `kept` (where that is noted).

    Args:
        path: an old file there is replaced, and keeps its rights; its directory must exist.
        content: a text with fields; or `Result`, `Input`, `Value` of a text or bytes.
        within: the directory that the path must not lead out of.
        keep: a directory for what an undo needs; by default that is beside the file.
        durable: the step is done when the file is on the disk, and not only with the operating system.
        undoable: False: nothing is kept, and nothing is undone.
        options: those of `Workflow.step`.
    """
    shapes = {"path": path, "content": content, "encoding": encoding, **_kept(within, keep, durable, undoable)}
    return declare(workflow, name, Write, shapes, options, undo=TakeBack if undoable else None)


def copy(
    workflow: Workflow,
    name: str,
    source: str,
    path: str,
    *,
    within: Where = "",
    keep: Where = "",
    durable: bool = False,
    undoable: bool = True,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that copies a file, with its times and rights, to `path`; otherwise as `write`."""
    shapes = {"source": source, "path": path, **_kept(within, keep, durable, undoable)}
    return declare(workflow, name, Copy, shapes, options, undo=TakeBack if undoable else None)


def move(
    workflow: Workflow,
    name: str,
    source: str,
    path: str,
    *,
    within: Where = "",
    keep: Where = "",
    durable: bool = False,
    undoable: bool = True,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that moves a file to `path`, also to another file system; its result has `path`, `from` and
    `kept`; otherwise as `write`."""
    shapes = {"source": source, "path": path, **_kept(within, keep, durable, undoable)}
    return declare(workflow, name, Move, shapes, options, undo=TakeBack if undoable else None)


def remove(
    workflow: Workflow,
    name: str,
    path: str,
    *,
    missing_ok: bool = False,
    within: Where = "",
    keep: Where = "",
    durable: bool = False,
    undoable: bool = True,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that removes a file; its result has `path`, `removed` and `kept`.

    Args:
        missing_ok: that there is no such file is no error.
        within, keep, durable, undoable, options: as for `write`.
    """
    shapes = {"path": path, "missing_ok": missing_ok, **_kept(within, keep, durable, undoable)}
    return declare(workflow, name, Remove, shapes, options, undo=TakeBack if undoable else None)


def make(
    workflow: Workflow,
    name: str,
    path: str,
    *,
    parents: bool = True,
    exist_ok: bool = True,
    within: Where = "",
    undoable: bool = True,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step that makes a directory; its result has `path`, `made` and `kept`.  Undo removes those it made,
    unless something is in them.

    Args:
        parents: whether those above it are made, too.
        exist_ok: that there is one already is no error.
        within, undoable, options: as for `write`.
    """
    shapes = {"path": path, "parents": parents, "exist_ok": exist_ok, "within": str(within), "undoable": undoable}
    return declare(workflow, name, Make, shapes, options, undo=TakeBack if undoable else None)


def glob(
    workflow: Workflow,
    name: str,
    pattern: str,
    *,
    root: str = ".",
    max_paths: int = DEFAULT_MAX_PATHS,
    **options: Unpack[ReadyKeywords],
) -> Step[..., Any]:
    """Declare a step whose result is the sorted list of the paths below `root` that fit a pattern: `*.csv`, `**/*.csv`.

    Args:
        pattern: relative; what a field puts into it stands for itself.
        root: the directory, a template as well.
        max_paths: more of them are an `InvalidOutcome`.
        options: those of `Workflow.step`.
    """
    return declare(workflow, name, Glob, {"pattern": pattern, "root": root, "max_paths": max_paths}, options)


def stat(
    workflow: Workflow, name: str, path: str, *, within: Where = "", **options: Unpack[ReadyKeywords]
) -> Step[..., Any]:
    """Declare a step whose result has `path`, `exists` and, if so, `kind` (file, directory, link, other), `size`,
    `mode`, `modified`."""
    return declare(workflow, name, Stat, {"path": path, "within": str(within)}, options)


def _kept(within: Where, keep: Where, durable: bool, undoable: bool) -> dict[str, Any]:
    return {"within": str(within), "keep": str(keep), "durable": durable, "undoable": undoable}
