"""A kind that is right, and kinds made from it that are wrong, each in one way that a newcomer's may be: what the
contract of kinds has to find."""

from __future__ import annotations

from itertools import count
from typing import Any, ClassVar

from typing_extensions import override

from bitactor.kinds.base import Close, ContainerArguments, Declaration, NextAction, Open, Opening, Progress, Site
from bitactor.messages.codec import decode_token, encode_token
from tests.twice_kind import Twice, TwiceContainer

TIMES = 3


class ThriceContainer(TwiceContainer):
    """A nested workflow, run three times; compiled. Its result is the list of the three results."""

    def __init__(self, site: Site, declared: Twice) -> None:
        super().__init__(site, declared)
        self.depth = TIMES * self.bodies[0].depth

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        progress.round_results[int(key)] = token
        return self.next(progress, int(key), list(progress.round_results.values()))

    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        """Once more, or the end."""
        if done < TIMES:
            return Open([Opening(str(done + 1), 0, progress.inputs)])
        return Close(encode_token([decode_token(token) for token in tokens]))


class Thrice(Twice):
    """A nested workflow, run three times; declared."""

    label = "thrice"
    container = ThriceContainer

    @override
    def result_type(self, name: str) -> Any:
        return list[super().result_type(name)]  # type: ignore[misc]


class _Packs(ThriceContainer):
    """Packs tokens as if they were values."""

    @override
    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        return Close(encode_token(tokens)) if done == TIMES else super().next(progress, done, tokens)


class _Lists(ThriceContainer):
    """Closes with a list of tokens, which is no token."""

    @override
    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        return Close(tokens) if done == TIMES else super().next(progress, done, tokens)


class _Keeps(ThriceContainer):
    """Keeps results on itself, which all transactions share."""

    def __init__(self, site: Site, declared: Twice) -> None:
        super().__init__(site, declared)
        self._kept: dict[int, Any] = {}

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        self._kept[int(key)] = token
        return self.next(progress, int(key), [self._kept[number] for number in range(1, int(key) + 1)])


class _Remembers(ThriceContainer):
    """Keeps on itself what it was opened with, which another process does not have."""

    @override
    def open(self, arguments: ContainerArguments) -> Open:
        opened = super().open(arguments)
        self._inputs = opened.scopes[0].inputs
        return opened

    @override
    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        if done < TIMES:
            return Open([Opening(str(done + 1), 0, self._inputs)])
        return super().next(progress, done, tokens)


class _Counts(ThriceContainer):
    """Says another thing each time it is asked, as if it were not asked again when the journal is folded."""

    asked: ClassVar[count[int]] = count()

    @override
    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        number = next(self.asked)
        return Close(number) if done == TIMES else Open([Opening(f"{done + 1}", 0, (number,))])


class _Repeats(ThriceContainer):
    """Opens the same scope again."""

    @override
    def after_scope(self, progress: Progress, key: str, token: Any) -> NextAction:
        progress.rounds += 1
        return Open([Opening("1", 0, progress.inputs)]) if progress.rounds < TIMES else Close(token)


class _Shallow(ThriceContainer):
    """Has more hops than it says."""

    def __init__(self, site: Site, declared: Twice) -> None:
        super().__init__(site, declared)
        self.depth = 1


class _Waits(ThriceContainer):
    """Opens nothing and does not close."""

    @override
    def next(self, progress: Progress, done: int, tokens: list[Any]) -> NextAction:
        return Open([])


class _Untold(Thrice):
    """Does not say that its result is a list."""

    label = "untold"

    @override
    def result_type(self, name: str) -> Any:
        return Twice.result_type(self, name)


class _Unwritten(Thrice):
    """Has an option under another name, where nobody finds it who writes it as data."""

    label = "unwritten"

    def __init__(self, what: str, workflow: Declaration, note: Any = None) -> None:
        super().__init__(what, workflow)
        self._note = note


def _with(container: type[ThriceContainer]) -> type[Thrice]:
    name = container.__name__.strip("_")
    return type(name, (Thrice,), {"label": name.lower(), "container": container})


WRONG: dict[type[Thrice], str] = {
    _with(_Packs): "test_its_result_is_plain_data_of_the_type_it_says",
    _with(_Lists): "test_it_runs_under_run_workflow",
    _with(_Keeps): "test_transactions_side_by_side_on_one_plan_do_not_mix",
    _with(_Remembers): "test_the_fold_of_its_journal_is_its_state_and_another_process_ends_it_alike",
    _with(_Counts): "test_the_fold_of_its_journal_is_its_state_and_another_process_ends_it_alike",
    _with(_Repeats): "test_it_runs_under_run_workflow",
    _with(_Shallow): "test_it_takes_no_more_hops_than_it_says_and_each_is_another",
    _with(_Waits): "test_it_runs_under_run_workflow",
    _Untold: "test_its_result_is_plain_data_of_the_type_it_says",
    _Unwritten: "test_as_data_and_back_it_makes_an_equal_plan",
}
"""Kind → the test of the contract that finds what is wrong with it."""
