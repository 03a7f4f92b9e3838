"""Equal requests have equal digests, in whatever order and by whatever process they were written."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitactor.messages.canonical import request_digest
from tests.amounts import amount, examples
from tests.travellers import KINDS, TEXTS, VALUES

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXTS
REQUESTS = st.dictionaries(
    TEXTS,
    st.recursive(
        SCALARS | VALUES | st.frozensets(TEXTS | st.integers()),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def rewritten(value: Any) -> Any:
    """The same request, written otherwise."""
    if isinstance(value, dict):
        return {key: rewritten(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(map(rewritten, value))
    if isinstance(value, frozenset):
        return set(value)
    if type(value) is int and abs(value) <= 2**53:
        return float(value)
    return value


def normal(value: Any) -> Any:
    """What two requests have in common exactly if they are the same, by another way than digests."""
    if isinstance(value, dict):
        return "mapping", frozenset((key, normal(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(map(normal, value))
    if isinstance(value, set | frozenset):
        return "set", frozenset(map(normal, value))
    if type(value) is float and value.is_integer():
        return int, int(value)
    return type(value), str(value), getattr(value, "fold", 0)


@examples(quick=60, long=3_000)
@given(REQUESTS)
def test_however_it_is_written_it_is_the_same_request(request: dict[str, Any]) -> None:
    assert request_digest(rewritten(request)) == request_digest(request)


@examples(quick=60, long=3_000)
@given(REQUESTS, REQUESTS)
def test_other_requests_have_other_digests(one: dict[str, Any], other: dict[str, Any]) -> None:
    if normal(one) != normal(other):
        assert request_digest(one) != request_digest(other)


DIGESTS = """
import base64, json, pickle, sys
from bitactor.messages.canonical import request_digest
print(json.dumps([request_digest(value) for value in pickle.loads(base64.b64decode(sys.stdin.read()))]))
"""


def test_another_process_with_another_hash_seed_has_the_same_digests() -> None:
    several: list[Any] = []

    @examples(quick=40, long=2_000)
    @given(REQUESTS | KINDS.map(lambda case: {"object": case[1]}))
    def gathers(request: Any) -> None:
        several.append(request)

    gathers()
    data = base64.b64encode(pickle.dumps(several))
    here = [request_digest(request) for request in several]
    for seed in ("1", "77")[: amount(quick=1, long=2)]:
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS], input=data, stdout=subprocess.PIPE, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert json.loads(done.stdout) == here


def test_digests_stay_what_they_are() -> None:
    """A later release, or another Python, must not take a retry for another request."""
    assert [
        request_digest(None),
        request_digest({"b": [1, 2.0, "x"], "a": {"z": None, "y": True}}),
        request_digest({"set": {"one", "two", "three"}}),
    ] == [
        "7e213ba252458efed6efd712e8702c65",
        "923cc802273d0a08869f1482fcaf2695",
        "a1783ed987242f8fb2927c521561e563",
    ]
