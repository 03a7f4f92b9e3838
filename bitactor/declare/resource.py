"""Resources: objects with a lifecycle that steps use, such as a client, a pool, a cache.

    database = Resource("database", open_database, close=close_database, check=ping, provides=AsyncEngine)
    orders = Workflow("orders", input={...}, resources=[database])

    @orders.step
    async def load(order: str, database: AsyncEngine) -> dict: ...       # by name, or by the annotation alone

A resource is declared here and lives in a mesh: created once, when first needed; checked; recreated when the check
fails; closed in reverse order when the mesh closes.  `Mesh(..., replace={"database": fake})` puts another in its place,
for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, get_origin

from typing_extensions import override

from bitactor.declare.functions import called, is_generator_function, refuse_uncallable
from bitactor.errors import DefinitionError
from bitactor.messages.duration import duration_rule, is_duration
from bitactor.messages.values import shown

DEFAULT_CHECK_EVERY: Final = 30.0


class Resource:
    """A declared resource.

    Args:
        name: what a parameter is called that takes it; unique in a mesh.
        factory: makes it: a function, an async function, or one made by `@contextmanager` or `@asynccontextmanager`,
            which is entered, and left at the end.  Its parameters are other resources, by name, which are made first
            and closed last.
        close: called with it at the end; without it, what a plain factory made is let go of and not closed.
        check: called with it, at most every `check_every` seconds, before it is given out; false, or an error, has it
            closed and made anew.
        check_every: seconds between two checks.
        provides: the class of what it is; a parameter annotated with that class takes it, whatever its name.

    Raises:
        DefinitionError: the name is no identifier or reserved, or one of the functions is not one.
    """

    __slots__ = ("check", "check_every", "close", "factory", "name", "provides", "requires")

    def __init__(
        self,
        name: str,
        factory: Callable[..., Any],
        *,
        close: Callable[[Any], Any] | None = None,
        check: Callable[[Any], Any] | None = None,
        check_every: float = DEFAULT_CHECK_EVERY,
        provides: type[Any] | None = None,
        requires: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise DefinitionError(
                f"a resource's name is an identifier, for parameters are called like it; not {name!r}"
            )
        if not callable(factory):
            raise DefinitionError(f"resource {name!r}: factory={factory!r} cannot be called")
        if is_generator_function(factory):
            raise DefinitionError(
                f"resource {name!r}: factory={called(factory)} has a `yield`; decorate it with @contextmanager, or "
                "@asynccontextmanager, of contextlib"
            )
        for role, function in (("close", close), ("check", check)):
            if function is not None:
                refuse_uncallable(f"resource {name!r}: {role}=", function, ("resource",), may_await=True)
        if not is_duration(check_every, zero=True):
            raise DefinitionError(f"resource {name!r}: check_every={check_every!r}; give {duration_rule(zero=True)}")
        if check is None and check_every != DEFAULT_CHECK_EVERY:
            raise DefinitionError(f"resource {name!r}: check_every= says how often to check, but there is no check=")
        if provides is not None and not isinstance(provides, type) and get_origin(provides) is None:
            raise DefinitionError(f"resource {name!r}: provides={shown(provides)}; give the class of what it is")
        if requires is not None and (isinstance(requires, str) or not isinstance(requires, Sequence)):
            raise DefinitionError(f"resource {name!r}: requires={shown(requires)}; give a list of resources' names")
        self.name = name
        self.factory = factory
        self.close = close
        self.check = check
        self.check_every = check_every
        self.provides = provides
        self.requires = None if requires is None else tuple(requires)
        """Names of the resources that the factory takes; None: its parameters are those names."""

    @override
    def __repr__(self) -> str:
        return f"<Resource {self.name!r}>"
