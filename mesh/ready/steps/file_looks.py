"""File steps that only look: read, glob, stat."""

from __future__ import annotations

import datetime as dt
import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from bitactor.declare.context import Context
from bitactor.errors import InvalidInput, InvalidOutcome
from bitactor.messages.codec import MAX_TOKEN_BYTES
from mesh.ready.declare import ReadyStep, refuse_bound
from mesh.ready.steps.file_backups import SUFFIX
from mesh.ready.steps.file_paths import FileStep, open_regular, path_within
from mesh.ready.templates import Template

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


class _Pattern(Template):
    """What a field puts into a pattern stands for itself."""

    @override
    def _written(self, value: Any, form: str, field: str, before: str) -> str:
        return glob.escape(super()._written(value, form, field, before))


@dataclass(frozen=True, kw_only=True)
class Read(FileStep):
    """A file's content, as text or, without an encoding, as bytes."""

    encoding: str | None = "utf-8"
    max_bytes: int = 1024 * 1024

    @override
    def __post_init__(self) -> None:
        refuse_bound("max_bytes", self.max_bytes, MAX_TOKEN_BYTES)
        super().__post_init__()

    def __call__(self, *, ctx: Context, **given: Any) -> str | bytes:
        path = self.place(given)
        with open_regular(path) as file:
            content = file.read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise InvalidOutcome(
                f"{str(path)!r} has more than max_bytes={self.max_bytes:,}; map over its lines, or hand on its path"
            )
        return content if self.encoding is None else content.decode(self.encoding)


@dataclass(frozen=True, kw_only=True)
class Glob(ReadyStep):
    """The paths that fit a pattern, in order."""

    _FIELDS = {"root": Template, "pattern": _Pattern}
    pattern: str
    root: str = "."
    max_paths: int = 10_000

    @override
    def __post_init__(self) -> None:
        refuse_bound("max_paths", self.max_paths, 1_000_000)
        super().__post_init__()

    def __call__(self, *, ctx: Context, **given: Any) -> list[str]:
        root = path_within(self._text("root", given), "", follow=True)
        pattern = self._text("pattern", given)
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise InvalidInput(f"the pattern {pattern!r} leads out of root={str(root)!r}")
        if not root.is_dir():
            raise FileNotFoundError(f"no directory {str(root)!r}")
        found: list[str] = []
        for path in _paths(root, pattern):
            if len(found) == self.max_paths:
                raise InvalidOutcome(
                    f"more than max_paths={self.max_paths:,} fit {pattern!r} below {str(root)!r}; look for less at a "
                    "time"
                )
            found.append(str(root / path))
        return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Stat(FileStep):
    """What is known of a file, without its content."""

    FOLLOWS = False

    def __call__(self, *, ctx: Context, **given: Any) -> dict[str, Any]:
        path = self.place(given)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return {"path": str(path), "exists": False}
        return {
            "path": str(path),
            "exists": True,
            "kind": _KINDS.get(stat.S_IFMT(found.st_mode), "other"),
            "size": found.st_size,
            "mode": stat.S_IMODE(found.st_mode),
            "modified": dt.datetime.fromtimestamp(found.st_mtime, dt.UTC),
        }


def _paths(root: Path, pattern: str) -> Iterator[str]:
    found = glob.iglob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - pathlib takes hidden files for others
    return (path for path in found if path and not os.fspath(path).endswith(SUFFIX))
