"""How fast BitActor is on this machine, each number beside a floor that was measured in the same run.

    python -m benchmarks                    everything but the million parked hops, and DBOS, in about four minutes
    python -m benchmarks hop-memory chain-100 --json
    python -m benchmarks --profile hop-memory

A floor is the least that the same work could cost with the same means and nothing of ours: it drifts with the machine
as the number beside it does, so the ratio says more than the number.
"""
