"""Tables of benchmarks: the JSON files that `bench` writes, and which of their rows are of a setting.

A table's row names what it was measured on by some of the setting's keys; what it does not name is as published in the
config of its data set that comes with us. It counts for a setting where all that its training takes time for is equal.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datamodels
from datamodels.launch.progress import notice
from datamodels.train import Setting, UserError, identity, read_setting

CHECKOUT = Path(datamodels.__path__[0]).parent
RESULTS = CHECKOUT / "bench" / "results"

DATA = ["dataset", "train_images", "test_images", "tta"]
NAMED = ("network", "width", "epochs", "batch", "eval_batch", "group", "threads")
"""Keys that a row may name: of its data and views, and of its recipe."""


@dataclass(frozen=True)
class Row:
    """One measured setting."""

    alpha: float
    seconds: float
    """Of the device for a row, with `streams` groups in training at once; on a CPU of one worker."""
    streams: int
    measured: dict[str, Any]
    """Data set, images and recipe, as far as the row names them."""


@dataclass(frozen=True)
class Table:
    path: Path
    device: str
    on_gpu: bool
    torch: str
    date: str
    rows: list[Row]


def read_tables(folder: Path) -> list[Table]:
    """The tables in a folder, the oldest first; miniatures (`--tiny`) are none. Raises UserError."""
    tables = [table for path in folder.glob("*.json") if (table := _read(path))]
    return sorted(tables, key=lambda table: (table.date, table.path))


def _read(path: Path) -> Table | None:
    """Older files do not say `on_gpu`: rows of a CPU name their threads there, and those of a GPU do not."""
    try:
        content = json.loads(path.read_bytes())
        if content.get("tiny"):
            return None
        entries = content["rows"]
        rows = [_row(entry) for entry in entries if entry["seconds_per_row"] is not None]
        if not all(row.seconds > 0 and 0 < row.alpha < 1 for row in rows):
            raise ValueError("seconds or alphas out of range")
        on_gpu = bool(content.get("on_gpu", not any("threads" in entry for entry in entries)))
        date = str(content.get("date", path.name[:10]))
        return Table(path, str(content["device"]), on_gpu, str(content["torch"]), date, rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of benchmarks: {error!r}") from None


def _row(entry: dict[str, Any]) -> Row:
    measured = {key: entry[key] for key in DATA if key in entry}
    measured |= {f"recipe.{key}": entry[key] for key in NAMED if entry.get(key) is not None}
    seconds = entry["seconds_per_row"] * entry.get("workers", 1)
    return Row(entry["alpha"], seconds, entry.get("streams", 1), measured)


def rows_of(
    tables: list[Table], setting: Setting, images: tuple[int, int], device: str
) -> dict[tuple[float, int], tuple[Row, Table]]:
    """By alpha and streams, the newest row that was measured on a device for a setting, whatever its own alpha.

    images: of training and test. Where rows of the data set are there, but none is of the setting, it is told why.
    """
    ours = _speed_of(setting) | {"dataset": setting.dataset, "train_images": images[0], "test_images": images[1]}
    path = CHECKOUT / "configs" / f"{setting.dataset}_50pct.yaml"
    published = _speed_of(read_setting(path)) if path.exists() else {}
    found: dict[tuple[float, int], tuple[Row, Table]] = {}
    departs = dict[str, None]()
    for table in (table for table in tables if table.device == device):
        ignored = {"recipe.threads"} if table.on_gpu else set()
        for row in (row for row in table.rows if row.measured["dataset"] == setting.dataset):
            measured = published | row.measured
            differing = [key for key in sorted(ours.keys() & measured.keys() - ignored) if ours[key] != measured[key]]
            if not differing:
                found[row.alpha, row.streams] = row, table
            departs |= dict.fromkeys(differing[:1])
    if departs and not found:
        keys = " or ".join(departs)
        notice(f"the tables have seconds for {setting.dataset} on {device}, but not of this setting: {keys} differs")
    return found


def _speed_of(setting: Setting) -> dict[str, Any]:
    """What the time of a setting's rows may hang on, besides alpha."""
    return {key: value for key, value in identity(setting.to_dict()).items() if re.match(r"(data|recipe)\.|tta$", key)}
