"""The rules by which pulses change a transaction's state; the tables of `bitactor.saga.evolve` say which rule takes in
which pulse.

A rule sees only the pulse and the state before it, so that the live state and the fold of the journal are the same by
construction.
"""
