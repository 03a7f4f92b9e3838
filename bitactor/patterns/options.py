"""The checks of the options of policies, made when a policy is declared; an error names the policy and the option."""

from __future__ import annotations

import math
from typing import Any, Final

from bitactor.declare.policy import Policy
from bitactor.errors import DefinitionError
from bitactor.messages.duration import duration_rule, is_duration
from bitactor.messages.outcome import Outcome

Exceptions = type[Exception] | tuple[type[Exception], ...]
"""One exception class, or several."""

MAX_NAME: Final = 200


def refuse(policy: Policy, option: str, why: str) -> DefinitionError:
    """A `DefinitionError` that names the policy, the option and its value, and says `why` it is refused."""
    return DefinitionError(f"{_of(policy)}: {option}={getattr(policy, option)!r}; {why}")


def refuse_together(policy: Policy, why: str) -> DefinitionError:
    """A `DefinitionError` for options that are each valid, and not together."""
    return DefinitionError(f"{_of(policy)}: {why}")


def _of(policy: Policy) -> str:
    return f"{type(policy).__name__}({policy.name!r})"


def check_name(policy: Policy) -> None:
    """Raises `DefinitionError` unless the policy's name is a printable string of 1 to 200 characters."""
    name = policy.name
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > MAX_NAME:
        raise DefinitionError(
            f"{type(policy).__name__}: name={name!r}; a name is a string of 1 to {MAX_NAME} printable characters"
        )


def check_seconds(policy: Policy, option: str, *, zero: bool = False, optional: bool = False) -> None:
    """Raises `DefinitionError` unless the option is a number of seconds, more than 0 (with `zero`, 0 too; with
    `optional`, None too)."""
    value = getattr(policy, option)
    if value is None and optional:
        return
    if not is_duration(value, zero=zero):
        raise refuse(policy, option, f"give {duration_rule(zero=zero)}")


def check_count(policy: Policy, option: str, *, least: int = 1, optional: bool = False) -> None:
    """Raises `DefinitionError` unless the option is a whole number, `least` or more (with `optional`, None too)."""
    value = getattr(policy, option)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise refuse(policy, option, f"give a whole number, {least} or more")


def check_flag(policy: Policy, option: str) -> None:
    """Raises `DefinitionError` unless the option is True or False."""
    if not isinstance(getattr(policy, option), bool):
        raise refuse(policy, option, "it is True or False")


def fix_exceptions(
    policy: Policy, option: str, *, without: type[Outcome] | None = Outcome, empty: bool = False
) -> None:
    """Make the option, one exception class or several, a tuple.

    Raises:
        DefinitionError: the option has something else, none at all without `empty`, or a class below `without`, which
            passes through every pattern.
    """
    value = getattr(policy, option)
    classes = tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in classes) or not (classes or empty):
        raise refuse(policy, option, "give an exception class or a tuple of them, each below Exception")
    passed = next((kind for kind in classes if without is not None and issubclass(kind, without)), None)
    if passed is not None:
        raise refuse(
            policy, option, f"{passed.__name__} is what a step decides, no error; it passes through this pattern"
        )
    object.__setattr__(policy, option, classes)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
