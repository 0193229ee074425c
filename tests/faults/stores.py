"""Small stores whose rows have made-up content, and the one check that every fault ends with."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.train.config import Outputs, Recipe, Setting
from datamodels.train.errors import UserError
from datamodels.train.masks import Masks
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.create import create_store, grow
from datamodels.train.store.layout import Layout
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store, open_store
from datamodels.train.store.verify import verify
from datamodels.train.store.writer import RowFailure, RowResult, Writer
from tests.stores import made_up_data

N_TRAIN, N_TEST, CLASSES = 700, 300, 10
"""Several masks share a page, and the logits of one row take several."""

GROWN = 14
"""Estimation rows after the script's `grow`."""

Ack = Callable[[int, int], None]
"""Called with a row and its generation once its commit has returned."""


def setting(**changes: Any) -> Setting:
    """10 + 4 rows in groups of 4, with logits."""
    values: dict[str, Any] = {
        "dataset": "made-up",
        "models": 10,
        "eval_models": 4,
        "runs_per_mask": 2,
        "recipe": Recipe(network="convnet", group=4),
        "outputs": Outputs(train_logits=True, test_logits=True),
    }
    return Setting(**{**values, **changes})


def layout(root: Path, of: Setting | None = None) -> Layout:
    of = of or setting()
    return Layout(root, of.dataset, of.file_tag)


def create(root: Path, of: Setting | None = None) -> Store:
    of = of or setting()
    return create_store(layout(root, of), of, made_up_data(of, N_TRAIN, N_TEST, CLASSES), lambda text: None)


def content(store: Store, row: int, salt: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a row: its mask, and floats that follow from its number (and salt) alone."""
    rng = np.random.default_rng([row, salt])
    masks = Masks(store.setting, store.n_train, list(store.eras))
    arrays = {name: rng.standard_normal(array.shape[1:]).astype(array.dtype) for name, array in store.arrays.items()}
    return {**arrays, "train_masks": masks[row]}


def result(store: Store, row: int, salt: int = 0) -> RowResult:
    return RowResult(row, content(store, row, salt), seconds=1.0, accuracy=0.5, train_accuracy=0.75)


def first_salt(row: int) -> int:
    """Row 1 comes out different the first time, so that a mixture of both times would show."""
    return int(row == 1)


def fill(store: Store, writer: Writer, ack: Ack = lambda row, generation: None) -> int:
    """Commit every missing row, group by group, as far as no one else holds it; returns how many."""
    done = 0
    for group in np.unique(store.missing() // store.group).tolist():
        with writer.leased(group) as held:
            rows = [row for row in store.missing().tolist() if row // store.group == group] if held else []
            generations = [int(store.states.generation[row]) for row in rows]
            if rows:
                writer.commit([_nth_result(store, *each) for each in zip(rows, generations, strict=True)])
                done += len(rows)
            for row, generation in zip(rows, generations, strict=True):
                ack(row, generation)
    store.refresh()
    return done


def _nth_result(store: Store, row: int, generation: int) -> RowResult:
    return result(store, row, first_salt(row) if generation == 0 else 0)


def filled(root: Path, of: Setting | None = None) -> Store:
    """A store with every row done."""
    store = create(root, of)
    with writing(store) as writer:
        fill(store, writer)
    return store


@contextmanager
def writing(store: Store, **provenance: Any) -> Iterator[Writer]:
    writer = Writer(store, {"device": "made up", **provenance})
    try:
        yield writer
    finally:
        writer.close()


def script(root: Path, ack: Ack = lambda row, generation: None, reserve: bool = True) -> None:
    """Everything that happens to a store: init, failures, commits, a retry, an invalidation, growth, more commits.

    Started again after any interruption, it goes on and ends in the same store.
    """
    own = setting(outputs=Outputs(train_logits=True, test_logits=True, preallocate=reserve))
    store = create(root, own)
    with writing(store) as writer:
        for row, times in ((5, 1), (6, 2)):
            _fail(store, writer, row, times)
        fill(store, writer, ack)
        writer.invalidate(np.flatnonzero(store.failed()))  # as --retry-failed does; the trainer would import torch
        store.refresh()
        if store.states.generation[1] == 0:
            writer.invalidate([1])
        fill(store, writer, ack)
    store = grow(layout(root), own, GROWN, lambda text: None)
    with writing(store) as writer:
        fill(store, writer, ack)
    store.sync_flags()


def _fail(store: Store, writer: Writer, row: int, times: int) -> None:
    group = row // store.group
    with writer.leased(group):
        while store.states.state[row] == RowState.MISSING and store.states.failures[row] < times:
            if store.states.generation[row]:
                break
            writer.commit([RowFailure(row, "test_margins not finite", 1.0)])
            store.refresh()


def check(root: Path, acknowledged: dict[int, int] | None = None) -> int:
    """Assert that a store as it lies on the disk holds nothing wrong and has lost nothing; returns its completed rows.

    `acknowledged`: generation by row of the commits that had returned.
    """
    place = layout(root)
    if not place.manifest.exists():
        assert not acknowledged
        _assert_refused(root)
        return 0
    flags = np.fromfile(place.completed, np.uint8, offset=HEADER_BYTES)
    store = Store.open(place, setting())
    for row in np.flatnonzero(flags[: store.rows]).tolist():
        assert _is_right(store, row, 0) or _is_right(store, row, first_salt(row)), f"row {row} has its flag"
    done = np.flatnonzero(store.completed()).tolist()
    for row in done:
        salt = first_salt(row) if store.states.generation[row] == 0 else 0
        assert _is_right(store, row, salt), f"row {row} is wrong"
    finding = verify(store)
    assert finding.fine, (finding.reasons, finding.files)
    assert finding.checked == len(done)
    for row, generation in (acknowledged or {}).items():
        assert store.completed()[row] or store.states.generation[row] > generation, f"row {row} is lost"
    return len(done)


def _assert_refused(root: Path) -> None:
    """A killed `init` is told as such, and never looks like published data."""
    try:
        open_store(layout(root), setting())
    except UserError:
        return
    raise AssertionError("a store without a manifest was opened")


_EXPECTED: dict[tuple[int, int], dict[str, bytes]] = {}
"""Bytes of the rows of `setting()` by number and salt: drawn once, since thousands of stores are checked."""


def _is_right(store: Store, row: int, salt: int) -> bool:
    if (row, salt) not in _EXPECTED:
        _EXPECTED[row, salt] = {name: array.tobytes() for name, array in content(store, row, salt).items()}
    return all(store.read(name, row, row + 1).tobytes() == _EXPECTED[row, salt][name] for name in store.arrays)


def check_end(root: Path) -> None:
    """Run the script to its end, and assert that every row is there and right."""
    script(root)
    rows = GROWN + setting().eval_models
    assert check(root) == rows
    flags = np.load(layout(root).completed)
    assert flags.shape == (rows,)
    assert flags.all()
    for path in layout(root).data.iterdir():
        assert not path.name.endswith((".tmp", ".init")), f"{path} was left over"


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder in memory where there is such a place: thousands of stores are made in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
