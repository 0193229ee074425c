"""Small stores with the masks and margins that a test chooses, and what can happen to their rows."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from datamodels.train.config import Recipe, Setting
from datamodels.train.masks import Masks
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.outputs import Declared, image_outputs
from datamodels.train.store import BaseStore, Layout, PublishedStore, RowFailure, RowResult, Store, Writer, create_store

DATASET, TAG = "made-up", "50pct"
"""What stores are called: their files lie in {folder}/made-up/data and end in _50pct."""

AnyStore = TypeVar("AnyStore", bound=BaseStore)


def seeded_masks(rows: int, n_train: int, eval_models: int = 0, **changes: Any) -> np.ndarray:
    """Bernoulli masks [rows, n_train] of the setting that `created_store` makes with these changes."""
    masks = Masks(Setting(models=rows - eval_models, eval_models=eval_models, mask="bernoulli", **changes), n_train)
    return np.stack([masks[row] for row in range(rows)])


def linear_data(rows, n_train, targets, seed=0, alpha=0.5, noise=0.3, sparse=5):
    """Masks [rows, n_train] and float16 margins [rows, targets] that are sparse linear functions of them plus noise.

    Masks with seed 0 and alpha 0.5 are those that `created_store` expects.
    """
    rng = np.random.default_rng(seed)
    masks = seeded_masks(rows, n_train, seed=seed) if alpha == 0.5 else rng.random((rows, n_train)) < alpha
    weights = np.zeros((n_train, targets))
    for target in range(targets):
        chosen = rng.choice(n_train, min(sparse, n_train), replace=False)
        weights[chosen, target] = rng.normal(size=len(chosen))
    margins = masks @ weights + 2 + noise * rng.normal(size=(rows, targets))
    return masks, margins.astype(np.float16)


def published_store(
    folder: Path, masks, test_margins, eval_models=0, train_margins=None, test_logits=None, **changes: Any
) -> PublishedStore:
    """A root with published files alone: any masks, every row done."""
    layout = Layout(folder, DATASET, TAG)
    layout.data.mkdir(parents=True, exist_ok=True)
    np.save(layout.array("train_masks"), np.ascontiguousarray(masks, bool))
    given = {"test_margins": test_margins, "train_margins": train_margins, "test_logits": test_logits}
    for name, values in given.items():
        if values is not None:
            np.save(layout.array(name), np.ascontiguousarray(values, np.float16))
    return PublishedStore(layout, Setting(dataset=DATASET, eval_models=eval_models, **changes), False, None, print)


def made_up_data(setting: Setting, n_train: int, n_test: int, classes: int = 2) -> Declared:
    """What a data set without images declares."""
    outputs = image_outputs(setting.outputs, n_train, n_test, classes)
    return Declared(n_train, n_test, tuple(map(str, range(classes))), outputs, "0" * 64, "the data set in nowhere")


def created_store(
    folder: Path,
    masks,
    test_margins,
    eval_models=0,
    train_margins=None,
    missing: Collection[int] = (),
    failed: Collection[int] = (),
    **changes: Any,
) -> Store:
    """A store with a manifest, journals and checksums, its rows written; masks: see `seeded_masks`, `linear_data`."""
    rows, n_train = masks.shape
    setting = Setting(
        dataset=DATASET,
        models=rows - eval_models,
        eval_models=eval_models,
        mask="bernoulli",
        recipe=Recipe(network="convnet", group=512),
        **changes,
    )
    data = made_up_data(setting, n_train, test_margins.shape[1])
    store = create_store(Layout(folder, DATASET, TAG), setting, data, lambda text: None)
    for _ in range(2):  # a row fails for good at the second time
        write_failures(store, failed)
    write_rows(store, masks, test_margins, train_margins, sorted({*range(rows)} - {*missing, *failed}))
    return store


def write_rows(store: Store, masks, test_margins, train_margins=None, rows: Collection[int] | None = None) -> None:
    """Commit rows (all by default) of arrays that hold every row of the store."""
    if train_margins is None:
        train_margins = np.zeros((store.rows, store.n_train))
    arrays = {"train_masks": masks, "test_margins": test_margins, "train_margins": train_margins}
    arrays = {name: values.astype(store.arrays[name].dtype) for name, values in arrays.items()}
    results = [
        RowResult(row, {name: values[row] for name, values in arrays.items()}, 1.0, 0.5, 0.75)
        for row in (range(store.rows) if rows is None else rows)
    ]
    _commit(store, results)


def write_failures(store: Store, rows: Collection[int]) -> None:
    """Record that rows have failed; twice makes a row failed instead of missing."""
    _commit(store, [RowFailure(row, "test_margins not finite", 1.0) for row in rows])


def _commit(store: Store, results: list[Any]) -> None:
    writer = Writer(store, {"device": "made up"})
    for group in sorted({result.row // store.group for result in results}):
        with writer.leased(group):
            writer.commit([result for result in results if result.row // store.group == group])
    writer.close()
    store.refresh()
    store.sync_flags()


def invalidate(store: Store, rows: Collection[int]) -> None:
    """Make rows missing again, as `repair` does."""
    writer = Writer(store, {"device": "made up"})
    writer.invalidate(list(rows))
    writer.close()
    store.refresh()


def rewrite(store: Store, rows: Collection[int], **changes: np.ndarray) -> None:
    """Make rows once more, with other arrays [M, ...] by name or the same: what was fitted to them before is stale."""
    arrays = {name: np.array(store.array(name)) for name in store.arrays}
    invalidate(store, rows)
    arrays.update(changes)
    write_rows(store, arrays["train_masks"], arrays["test_margins"], arrays["train_margins"], rows)


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file; twice is as before."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ (1 << bit % 8)
        file.seek(bit // 8)
        file.write(bytes([byte]))


def damage(store: BaseStore, name: str, rows: Collection[int]) -> None:
    """Flip a bit of the first value of some rows of an array, which their checksums then do not match; twice undoes."""
    size = store.array(name)[0].nbytes
    for row in rows:
        flip(store.layout.array(name), 8 * (HEADER_BYTES + row * size))


def with_fit(store: AnyStore, **options: Any) -> AnyStore:
    """The same store with other options of its fit."""
    store.setting = replace(store.setting, fit=replace(store.setting.fit, **options))
    return store
