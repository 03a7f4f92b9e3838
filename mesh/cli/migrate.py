"""`bitactor migrate`"""

from __future__ import annotations

import logging

from mesh.cli import work
from mesh.cli.exits import UsageError
from mesh.cli.options import Json, Store
from mesh.cli.output import err, print_document


def migrate(*, store: Store = "", json: Json = False) -> None:
    """Bring a journal of an earlier release into the form of this one.

    A node that opens the journal does the same; this is for doing it beforehand, or for a journal that is only looked
    at. It is refused while a process of the earlier release uses the journal, and one that is interrupted goes on the
    next time from where it was. The earlier release does not open the journal any more.

    Example: bitactor migrate --store sqlite:///pulses.db
    """
    if not store:
        raise UsageError("which journal? --store was not given", "give it, or set BITACTOR_STORE")
    work.log_to_stderr(logging.WARNING, None)
    pulses = work.migrate_store(store)
    if json:
        print_document({"store": store, "pulses": pulses})
    else:
        done = f"{pulses} pulses were brought over" if pulses else "there was nothing to bring over"
        err().print(f"{store} is in the form of this release: {done}", soft_wrap=True)
