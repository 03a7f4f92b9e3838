"""The benchmarks run, and say what they promise to say.  How fast anything is, is not asserted."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.__main__ import main
from benchmarks.catalogue import BENCHMARKS, BY_NAME
from benchmarks.measuring import Row

SLOW_TO_DECLARE = {"chain-1000", "fanout-1000"}
BY_HAND = {"parked-million"}
NOT_INSTALLED = {"hop-power-100"}
DIFFERENCES = {"store-share-1", "store-share-20", "store-share-200"}
"""What may come out below nothing when it is measured once, for a moment."""
QUICK = [name for name in BY_NAME if name not in SLOW_TO_DECLARE | BY_HAND | NOT_INSTALLED]


def test_it_lists_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [benchmark.name for benchmark in BENCHMARKS]
    assert len(set(listed)) == len(listed)


def test_all_but_those_for_a_long_afternoon_run_by_default() -> None:
    assert {benchmark.name for benchmark in BENCHMARKS if not benchmark.by_default} == BY_HAND | NOT_INSTALLED


def test_a_wrong_name_is_refused_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hop-memry"]) == 2
    assert "hop-memory" in capsys.readouterr().err


def test_what_is_installed_by_hand_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", missing)
    assert main(["hop-power-100", "--quick"]) == 2
    assert "pip install dbos" in capsys.readouterr().err


def test_there_is_nothing_to_profile_in_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "parked-100k", "--quick"]) == 2
    assert "parked-100k" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUICK)
def test_each_row_has_a_value_a_floor_and_their_ratio(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["quick"] is True
    assert {"cpu", "cores", "python", "loop"} <= document["machine"].keys()
    rows = document["rows"]
    assert rows[0]["name"] == name
    for row in rows:
        assert set(row) == set(Row._fields)
        assert row["name"].partition(":")[0] == name
        assert row["unit"] == BY_NAME[name].unit
        assert row["floor"] > 0
        assert row["value"] > 0 or name in DIFFERENCES
        assert math.isclose(row["ratio"], row["value"] / row["floor"])
        assert row["low"] <= row["value"] <= row["high"]


def test_the_table_names_value_floor_and_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chain-10", "--quick"]) == 0
    heading, row, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:7] == ["name", "value", "unit", "goal", "floor", "ratio", "best"]
    assert row.split()[0] == "chain-10"


def test_a_profile_shows_where_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "hop-memory", "--quick"]) == 0
    assert "tottime" in capsys.readouterr().out
