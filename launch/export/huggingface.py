"""A data set for the Hugging Face Hub, and datamodels back from it; its rows: `datamodels.train.exchange`.

README.md                     the card: what the tables hold, the config, LDS, licence, citation
rows/rows-I-of-K.parquet      a row a model: row, accuracy, seconds, device, train_masks and every output
datamodels/S_weights.parquet  a row a training example: train_index, weight [T] in mask units; S a split such as test
datamodels/S_targets.parquet  a row a target: target, bias, lam, gap and so on
store/                        what `datamodels import` needs besides: manifest, journals, and all else that a fit wrote
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from numpy.typing import NDArray

from datamodels.lasso import (
    VECTORS,
    Evaluation,
    Progress,
    evaluate,
    path_of,
    places,
    read_rows,
    split_and_output,
    split_name,
    target_count,
    write_blocks,
)
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError, write_file
from datamodels.train.exchange import list_values
from datamodels.train.store import Array, BaseStore, Store

BLOCK_BYTES, SHARD_BYTES = 2**25, 2**29
"""Bytes of rows, before they are compressed, in a row group and in a file."""

_OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}


def write(store: BaseStore, folder: Path, progress: Progress, *, license: str = "unknown") -> dict[str, Any]:
    """Raises UserError without completed rows or PyArrow, WorkError for damaged rows."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError("--to huggingface needs PyArrow: run `pip install pyarrow`") from None
    store.check_files()
    for name in ("store", "rows", "datamodels"):
        (folder / name).mkdir()
    layout = store.layout
    # Journals first: a row that ends while this runs must not be done in them alone.
    journals = [*layout.journals.iterdir()] if isinstance(store, Store) else []
    for path in (*journals, layout.manifest, layout.groups, layout.names("train"), layout.names("test")):
        if path.exists():
            target = folder / "store" / path.relative_to(layout.data)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if isinstance(store, Store):
        store.refresh()
    rows = np.flatnonzero(store.completed())
    if not len(rows):
        raise UserError(f"no row of {layout.data} is completed: run `datamodels train`")
    _write_rows(store, rows, folder / "rows", progress)
    fits = [split for split in _splits(store) if any(path.exists() for path in places(store, split))]
    for split in fits:
        _write_datamodels(Weights(store, split, progress), split, folder)
    (folder / "README.md").write_text(_card(store, len(rows), fits, license, progress), "utf-8")
    kinds = {name: (array.shape, array.dtype.newbyteorder("=").str) for name, array in store.arrays.items()}
    kinds["train_masks"] = kinds["train_masks"][0], "|b1"
    return {"config": store.setting.to_dict(), "arrays": kinds, "completed": len(rows), "license": license}


def _splits(store: BaseStore) -> list[str]:
    """What may have datamodels, named as `split_name` does."""
    outputs = [name for name, array in store.arrays.items() if name != "train_masks" and len(array.shape) == 2]
    return [split_name(store.arrays, *name.split("_", 1)) for name in outputs]


def _write_rows(store: BaseStore, rows: NDArray[np.int64], folder: Path, progress: Progress) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    row_bytes = sum(int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in store.arrays.values())
    height = max(1, BLOCK_BYTES // row_bytes)
    blocks = np.split(rows, np.flatnonzero(np.diff(rows // height)) + 1)
    each = max(1, SHARD_BYTES // (height * row_bytes))
    shards = [blocks[start : start + each] for start in range(0, len(blocks), each)]
    records, done = vars(store.records()), 0
    for number, shard in enumerate(shards):
        writer = None
        for block in shard:
            columns = {"row": pyarrow.array(block)}
            columns |= {name: pyarrow.array(values[block]) for name, values in records.items()}
            columns |= {name: _column(read_rows(store, name, block)) for name in store.arrays}
            table = pyarrow.table(columns)
            path = folder / f"rows-{number:05}-of-{len(shards):05}.parquet"
            writer = writer or ParquetWriter(path, table.schema, **_OPTIONS)
            writer.write_table(table)
            done += len(block)
            progress("rows", done, len(rows))
        if writer:
            writer.close()


def _column(values: NDArray[Any]) -> Any:
    """An Arrow array [n] of (nested) lists from [n, ...]."""
    import pyarrow

    column = pyarrow.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pyarrow.FixedSizeListArray.from_arrays(column, size)
    return column


def _write_datamodels(weights: Weights, split: str, folder: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter, write_table

    fitted, start = weights.datamodels, 0
    kept: dict[str, Any] = {**fitted.arrays, "bias": np.array(fitted.bias)}
    del kept["weight"]
    if "standardised" in kept:
        kept["standardised"] = np.zeros(1, bool)  # the weights written are in mask units
    np.savez(folder / "store" / f"{split}.npz", **kept)
    if fitted.report:
        shutil.copyfile(fitted.path.with_suffix(".json"), folder / "store" / f"{split}.json")
    vectors = {name: kept[name] for name in VECTORS if name in kept}
    targets = pyarrow.table({"target": np.arange(weights.shape[1], dtype=np.int32), **vectors})
    write_table(targets, folder / "datamodels" / f"{split}_targets.parquet", **_OPTIONS)
    kind = pyarrow.list_(pyarrow.float32(), weights.shape[1])
    schema = pyarrow.schema([("train_index", pyarrow.int32()), ("weight", kind)])
    with ParquetWriter(folder / "datamodels" / f"{split}_weights.parquet", schema, **_OPTIONS) as writer:
        for band in weights.bands():
            index = np.arange(start, start := start + len(band), dtype=np.int32)
            writer.write_table(pyarrow.table([pyarrow.array(index), _column(band)], schema=schema))


def read_datamodels(source: Path, store: BaseStore) -> list[Path]:
    """Write the datamodels of an export to an imported root; returns their paths. Raises UserError, WorkError."""
    from pyarrow import ArrowException

    written = []
    for split in _splits(store):
        path, table = path_of(store, split), source / "datamodels" / f"{split}_weights.parquet"
        if not table.exists():
            continue
        shape = store.n_features, target_count(store, split)
        path.parent.mkdir(exist_ok=True)
        try:
            with np.load(source / "store" / f"{split}.npz") as arrays:
                write_blocks(path, shape, _stored_weights(table, *shape), dict(arrays))
            if (report := source / "store" / f"{split}.json").exists():
                write_file(path.with_suffix(".json"), report.read_bytes())
        except (ArrowException, BadZipFile, OSError, ValueError, KeyError) as error:
            raise UserError(f"{table} cannot be read: {' '.join(str(error).split())}") from None
        written.append(path)
    return written


def _stored_weights(table: Path, n_train: int, targets: int) -> Iterator[NDArray[np.float32]]:
    """Yield weight [n, T] for one range of training examples after the other. Raises ValueError for another shape."""
    from pyarrow.parquet import ParquetFile

    array = Array("weight", (n_train, targets), np.dtype(np.float32))
    with ParquetFile(table, page_checksum_verification=True) as file:
        if file.metadata.num_rows != n_train:
            raise ValueError(f"it has {file.metadata.num_rows} rows, expected {n_train}")
        for group in range(file.num_row_groups):
            yield list_values(file.read_row_group(group, ["weight"]), array)


def _card(store: BaseStore, completed: int, fits: list[str], license: str, progress: Progress) -> str:
    tables = {"rows": "rows/*.parquet"}
    for split in fits:
        tables |= {f"{split}_{kind}": f"datamodels/{split}_{kind}.parquet" for kind in ("weights", "targets")}
    about = {
        "license": license,
        "tags": ["datamodels", "data-attribution"],
        "configs": [
            {"config_name": name, "data_files": files, "default": name == "rows"} for name, files in tables.items()
        ],
    }
    quality = []
    for split in fits:
        name, output = split_and_output(split)
        try:
            found: Evaluation = evaluate(store, split=name, output=output, progress=progress)
        except UserError as error:
            quality.append(f"| {split} | not known: {error} | |")
        else:
            interval = found.lds_interval and f" ({found.lds_interval.low:.4f} to {found.lds_interval.high:.4f})"
            ceiling = "not known" if found.ceiling is None else f"{found.ceiling:.4f}"
            quality.append(f"| {split} | {found.lds:.4f}{interval or ''} | {ceiling} |")
    arrays = "\n".join(
        f"| `{name}` | {' x '.join(map(str, array.shape[1:]))} | {'bool' if name == 'train_masks' else array.dtype} |"
        for name, array in store.arrays.items()
    )
    return _CARD.format(
        front=yaml.safe_dump(about, sort_keys=False),
        described=f"{store.setting.dataset}, {store.setting.described}",
        completed=f"{completed:,}",
        rows=f"{store.rows:,}",
        models=store.models,
        arrays=arrays,
        quality="\n".join(quality) or "| none fitted | | |",
        config=yaml.safe_dump(store.setting.to_dict(), sort_keys=False),
    )


_CARD = """\
---
{front}---

# Datamodels: {described}

{completed} of {rows} models, each trained on a random subset of a training set, with what each outputs, and linear
models from the subset to the outputs (*datamodels*, [Ilyas et al. 2022](https://arxiv.org/abs/2202.00622)). Made
with datamodels-harness.

```python
from datasets import load_dataset

rows = load_dataset("THIS/DATASET", "rows", split="train").with_format("numpy")
print(rows[0]["row"], rows[0]["train_masks"].mean())
```

`datamodels import FOLDER --format huggingface --root DST` turns a copy of this folder back into files that can be
fitted, evaluated and reported on.

## Tables

`rows` has a row for each model: its number `row` (from {models} on the models are for evaluation: no datamodel was
fitted to them), its test `accuracy`, the `seconds` that it took, its `device`, and

| column | shape | type |
|---|---|---|
{arrays}

`train_masks` says which training examples the model was trained on. A margin is the correct class's logit minus the
largest other logit: above 0 where the model is right. Logits are means over test-time views.

`S_weights`, S being a split such as `test`, has a row for each training example, with its weight for every target:
`mask @ weight + bias` is the predicted margin, or other output. `S_targets` has a row for each target: `bias`, the
lambda chosen, the duality gap of the fit.

## Quality

LDS (linear datamodeling score) is the rank correlation between predicted and true outputs over the masks of the
evaluation models, averaged over targets, with its bootstrap interval; the ceiling is what perfect predictions would
reach, known where several models share a mask.

| datamodels | LDS | ceiling |
|---|---|---|
{quality}

## How to cite

```bibtex
@inproceedings{{ilyas2022datamodels,
  title = {{Datamodels: Understanding Predictions with Data and Data with Predictions}},
  author = {{Ilyas, Andrew and Park, Sung Min and Engstrom, Logan and Leclerc, Guillaume and Madry, Aleksander}},
  booktitle = {{International Conference on Machine Learning}},
  year = {{2022}}
}}
```

## Config

```yaml
{config}```
"""
