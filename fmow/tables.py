"""The two tables of a WILDS FMoW tree, read and checked."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

METADATA = "rgb_metadata.csv"
COUNTRIES = "country_code_mapping.csv"
NEEDED = {METADATA: ("split", "category", "country_code", "timestamp"), COUNTRIES: ("alpha-3", "region")}
FIRST_YEAR, LAST_YEAR = 2002, 2017
"""The years that WILDS' metadata can express. Sequestered images (split `seq`) are in no split and may be of any."""


def read_table(path: Path) -> pd.DataFrame:
    """Return one of the two tables as published. Raises ValueError that names the file, and the column it lacks.

    Columns are typed as a whole: chunk by chunk, pandas warns of columns that are text in one chunk only.
    """
    try:
        table = pd.read_csv(path, low_memory=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV table ({' '.join(str(error).split())})") from error
    missing = [column for column in NEEDED[path.name] if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(map(repr, missing))} (found: {', '.join(table.columns)})")
    return table


def labels(table: pd.DataFrame, categories: Sequence[str], path: Path) -> pd.Series:
    """Return each row's position in `categories`. Raises ValueError naming the first row with an unknown category."""
    unknown = ~table["category"].isin(categories)
    if unknown.any():
        row = unknown.idxmax()
        raise ValueError(f"{path}: row {row}: category {table['category'][row]!r} is not one of the {len(categories)}")
    return table["category"].map({category: label for label, category in enumerate(categories)}).astype("int64")


def times(table: pd.DataFrame, path: Path) -> pd.Series:
    """Return the timestamps in UTC, with or without fractions of a second, whatever offset they are written with.

    Raises ValueError naming the first row outside the sequestered split whose time is unreadable or of another year
    than WILDS knows, and where there is no such row at all.
    """
    used = table["split"] != "seq"
    if not used.any():
        raise ValueError(f"{path}: no rows outside the sequestered split 'seq'")
    time = pd.to_datetime(table["timestamp"], format="ISO8601", utc=True, errors="coerce")
    bad = used & ~time.dt.year.between(FIRST_YEAR, LAST_YEAR)
    if bad.any():
        row = bad.idxmax()
        found = table["timestamp"][row]
        raise ValueError(
            f"{path}: row {row}: timestamp {found!r} is not an ISO 8601 time of {FIRST_YEAR}-{LAST_YEAR} (UTC)"
        )
    return time
