"""What a page was made from, as a digest that it carries: a page whose digest is today's need not be made again."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np

from datamodels.launch.lds_curve import kept
from datamodels.launch.report.weights import Fitted
from datamodels.launch.status import report_path
from datamodels.train.data import Dataset
from datamodels.train.store import ReadableStore, Store

_HEAD_BYTES = 2000
"""The digest is among the first bytes of a page."""


def basis_of(store: ReadableStore, split: str, fitted: Fitted, dataset: Dataset | None) -> str:
    """Digest of rows, setting, datamodels, kept curve, whether there are images, and of the pages that lie beside.

    Images themselves are those of the manifest wherever they are shown; those of published files are not looked at.
    """
    content = {
        "version": importlib.metadata.version("datamodels-harness"),
        "rows": [store.row_stamp(np.flatnonzero(store.completed())), int(store.failed().sum()), str(store.layout.data)],
        "manifest": store.manifest.id if isinstance(store, Store) else None,
        "setting": store.setting.to_dict(),
        "datamodels": [part.made for part in fitted.parts],
        "curve": repr(kept(store, split)),
        "images": dataset and dataset.classes,
        "beside": [path.name for path in beside(store, split)],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def beside(store: ReadableStore, split: str) -> list[Path]:
    """The reports of other alphas and of the other split that lie in the page's folder."""
    own = report_path(store, split)
    return sorted(path for path in own.parent.glob("report_*pct.html") if path != own)


def tag(basis: str) -> str:
    """The digest as an element of a page's head."""
    return f'<meta name="datamodels-basis" content="{basis}">'


def is_up_to_date(store: ReadableStore, split: str, dataset: Dataset | None) -> bool:
    """Whether the page that lies there is what `write_report` would make now. Raises UserError without datamodels."""
    path = report_path(store, split)
    return _carries(path, tag(basis_of(store, split, Fitted(store, split), dataset)))


def _carries(path: Path, element: str) -> bool:
    try:
        with open(path, "rb") as file:
            return element.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False
