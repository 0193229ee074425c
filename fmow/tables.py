"""The two tables of a WILDS FMoW tree, read and checked."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]

METADATA = "rgb_metadata.csv"
COUNTRIES = "country_code_mapping.csv"
NEEDED = {METADATA: ("split", "category", "country_code", "timestamp"), COUNTRIES: ("alpha-3", "region")}
FIRST_YEAR, LAST_YEAR = 2002, 2017
"""The years that WILDS' metadata can express; it drops the sequestered rows (split `seq`) before it looks."""


def read_table(path: Path) -> pd.DataFrame:
    """One of the two tables as published, with every column that WILDS needs (else ValueError naming file and column).

    Columns are typed as a whole: chunk by chunk, pandas warns of columns that are text in one chunk only.
    """
    try:
        table = pd.read_csv(path, low_memory=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV table ({_one_line(error)})") from error
    missing = [column for column in NEEDED[path.name] if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(map(repr, missing))} (found: {', '.join(table.columns)})")
    return table


def check_categories(table: pd.DataFrame, known: Sequence[str], path: Path) -> None:
    """ValueError naming the first row whose category is not one of `known`."""
    unknown = ~table["category"].isin(known)
    if unknown.any():
        row = unknown.idxmax()
        raise ValueError(f"{path}: row {row}: category {table['category'][row]!r} is not one of the {len(known)}")


def times(table: pd.DataFrame, path: Path) -> pd.Series:
    """The timestamps in UTC, with or without fractions of a second, whatever offset they are written with.

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


def splits_from(table: pd.DataFrame, time: pd.Series, first_year: int) -> pd.Series:
    """The column `split`, blank where the image is older than 1 January of `first_year`; `seq` stays."""
    start = datetime.datetime(first_year, 1, 1, tzinfo=datetime.UTC)
    return table["split"].where((time >= start) | (table["split"] == "seq"), "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
