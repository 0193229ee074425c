"""The arrays of a setting's store and the bytes of a fit, before there is a store. Nothing on disk changes."""

from collections.abc import Sequence

from datamodels.train import Masks, Setting, UserError, image_outputs
from datamodels.train.data import load
from datamodels.train.exchange import PUBLISHED_SIZES
from datamodels.train.own import declared
from datamodels.train.store import Array, Layout, Store

_PUBLISHED_SCHEMES = ("official", "time_after_2016")


def store_as_it_is(setting: Setting, layout: Layout) -> Store | None:
    """The store, without any repair, or None if there is none. Raises UserError, WorkError."""
    if not layout.manifest.exists():
        layout.refuse_orphans()
        layout.refuse_published()
        return None
    return Store.open(layout, setting, mend=False)


def arrays_of(setting: Setting, notices: list[str]) -> Sequence[Array]:
    """The arrays that `init` would create. Adds a line to `notices` if their sizes are not those of data found here.

    Raises UserError if `init` would refuse the setting, or if its data set is missing and of unknown size.
    """
    if setting.trainer:
        found = declared(setting)
        Masks(setting, found.n_train)
        return Array.of(setting.rows, found.n_train, found.outputs)
    try:
        dataset = load(setting)
        sizes = len(dataset.train.labels), len(dataset.test.labels), len(dataset.classes)
    except UserError:
        if setting.dataset not in PUBLISHED_SIZES or setting.data.split_scheme not in _PUBLISHED_SCHEMES:
            raise
        train, test, classes = PUBLISHED_SIZES[setting.dataset]
        sizes = min(setting.data.train or train, train), min(setting.data.test or test, test), classes
        notices.append(f"no {setting.dataset} data in {setting.data.root}: sizes are those of the published data set")
    Masks(setting, sizes[0])  # raises UserError for masks that do not fit
    return Array.of(setting.rows, sizes[0], image_outputs(setting.outputs, *sizes))
