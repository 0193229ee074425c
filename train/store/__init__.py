"""The store of a setting: its files, their durability, and the state of every row."""

from datamodels.train.store.base_store import ReadableStore, Records
from datamodels.train.store.create import create_store, grow
from datamodels.train.store.layout import Layout
from datamodels.train.store.locks import LockFile
from datamodels.train.store.manifest import Array, array_list, check_data, check_identity, read_manifest, versions
from datamodels.train.store.open import open
from datamodels.train.store.published import PublishedStore
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store, open_own, open_store, refuse_orphans, refuse_published
from datamodels.train.store.verify import repair, verify
from datamodels.train.store.writer import RowFailure, RowResult, Writer

__all__ = [
    "Array",
    "Layout",
    "LockFile",
    "PublishedStore",
    "ReadableStore",
    "Records",
    "RowFailure",
    "RowResult",
    "RowState",
    "Store",
    "Writer",
    "array_list",
    "check_data",
    "check_identity",
    "create_store",
    "grow",
    "open",
    "open_own",
    "open_store",
    "read_manifest",
    "refuse_orphans",
    "refuse_published",
    "repair",
    "verify",
    "versions",
]
