"""The sign-ups to post: rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bitactor.errors import ConfigurationError

SHIPPED: Final = Path(__file__).with_name("signups.csv")
FIELDS: Final = ("name", "email", "country")
UNLUCKY: Final = {
    "name": "Wolfeschlegelsteinhausenbergerdorff (Hubert)",
    "email": "hubert@example.org",
    "country": "US",
}
"""The demo's own row, with a name that the screening step never gets through."""


def read_rows(file: Path, limit: int | None = None) -> list[Mapping[str, str | None]]:
    """The rows as what is posted, whatever is wrong with them; a field that a row lacks is None.

    Raises:
        ConfigurationError: the file cannot be read, is not UTF-8, or has other columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            missing = [field for field in FIELDS if field not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{file} has no column {', '.join(missing)}: its first line is to name {', '.join(FIELDS)}, with "
                    "commas between"
                )
            rows = [{field: row[field] for field in FIELDS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"cannot read {file} as UTF-8 CSV: {error}") from None
    if not rows:
        raise ConfigurationError(f"{file} has no rows below its first line")
    return list(rows[:limit])
