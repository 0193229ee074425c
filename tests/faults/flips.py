"""Bit flips anywhere in a store: every one is found, and the row or file named."""

import os
import random
from pathlib import Path

import numpy as np

from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.store import Store
from datamodels.train.store.verify import verify
from tests.faults.stores import filled, layout, setting
from tests.stores import flip


def flip_bits(root: Path, count: int, seed: int) -> dict[str, int]:
    """Flip `count` random bits of a store, one at a time, its files and their headers by turns.

    Returns how many in each kind of place; fails where one is not found, or not named.
    """
    rng = random.Random(seed)
    store = filled(root)
    place = layout(root)
    journals = sorted(place.journals.iterdir())
    arrays = [place.array(name) for name in store.arrays]
    kinds = {
        "array": lambda: (path := rng.choice(arrays), HEADER_BYTES, path.stat().st_size),
        "array header": lambda: (rng.choice([*arrays, place.completed]), 0, HEADER_BYTES),
        "flags": lambda: (place.completed, HEADER_BYTES, HEADER_BYTES + store.rows),
        "journal": lambda: (path := rng.choice(journals), HEADER_BYTES, path.stat().st_size),
        "journal header": lambda: (rng.choice(journals), 0, HEADER_BYTES),
        "manifest": lambda: (place.manifest, 0, place.manifest.stat().st_size),
    }
    seen = dict.fromkeys(kinds, 0)
    for index in range(count):
        kind = list(kinds)[index % len(kinds)]
        path, start, stop = kinds[kind]()
        bit = rng.randrange(8 * start, 8 * stop)
        flip(path, bit)
        told = _told(root)
        names = [str(path)]
        if kind in ("array", "flags"):
            names.append(f"row {_row(store, path, bit // 8)}:")
        assert all(name in told for name in names), f"bit {bit} of {path.name}: {told or 'nothing was found'}"
        if kind != "flags":  # those are put right when the store is opened
            flip(path, bit)
        seen[kind] += 1
    assert _told(root) == ""
    return seen


def _row(store: Store, path: Path, byte: int) -> int:
    rows = np.load(path, mmap_mode="r")
    return (byte - HEADER_BYTES) // rows[0].nbytes


def _told(root: Path) -> str:
    """All that opening and verifying a store says about damage."""
    try:
        store = Store.open(layout(root), setting())
    except (UserError, WorkError) as error:
        return str(error)
    finding = verify(store)
    arrays = {name: str(store.layout.array(name)) for name in store.arrays}
    rows = [f"row {row}: {arrays[text.split()[0]]} {text}" for row, text in finding.reasons.items()]
    flags = [f"row {row}: {store.layout.completed}" for row in store.mended_flags]
    return os.linesep.join([*rows, *finding.files, *flags])
