"""The store of a setting: its files, how rows become durable in them, and the state of every row.

`open` and `open_store` open a store for reading, `create_store` and `grow` make room for rows, `Writer` commits rows.
"""

from datamodels.train.store.base_store import BaseStore
from datamodels.train.store.create import check_space, create_store, grow
from datamodels.train.store.layout import Layout
from datamodels.train.store.locks import LockFile
from datamodels.train.store.manifest import Array, Manifest, check_declared, check_identity, read_manifest, versions
from datamodels.train.store.open import open
from datamodels.train.store.published import PublishedStore, read_flags
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store, open_store
from datamodels.train.store.verify import repair, verify, wrong_rows
from datamodels.train.store.writer import RowFailure, RowResult, Writer

__all__ = [
    "Array",
    "BaseStore",
    "Layout",
    "LockFile",
    "Manifest",
    "PublishedStore",
    "RowFailure",
    "RowResult",
    "RowState",
    "Store",
    "Writer",
    "check_declared",
    "check_identity",
    "check_space",
    "create_store",
    "grow",
    "open",
    "open_store",
    "read_flags",
    "read_manifest",
    "repair",
    "verify",
    "versions",
    "wrong_rows",
]
