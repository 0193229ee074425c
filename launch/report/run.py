"""The section about how the rows came about: setting, recipe, versions, machines, time."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from launch.progress import duration
from launch.report import html
from launch.report.html import Section
from launch.report.subject import Subject
from launch.status import summary
from train.config import Recipe, flatten
from train.store import ReadableStore, Store

_VIEWS = {
    "mirror": "mean logits of the image and its mirror image",
    "none": "logits of the image itself",
    "legacy_fliplr": "mean logits of the image and its channel-reversed copy",
}


@dataclass(frozen=True)
class Work:
    """What training took, by the journals."""

    seconds: float
    """Of one worker, all rows together."""
    per_row: float
    first: datetime
    """When the first row was begun."""
    last: datetime
    """When the last row was done."""


def work_of(store: ReadableStore) -> Work | None:
    """None for published files, which say nothing of it, and where no row is done."""
    if not isinstance(store, Store) or not store.completed().any():
        return None
    done = store.completed()
    seconds, times = store.states.seconds[done].astype(np.float64), store.states.time[done]
    start, stop = float((times - seconds * store.group).min()), float(times.max())
    total = float(seconds.sum())
    return Work(total, total / len(seconds), datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(stop, UTC))


def what_was_run(subject: Subject) -> Section:
    store = subject.store
    found = summary(store)
    runs = store.setting.runs_per_mask
    shared = f", {runs} runs of each mask" if store.eval_models and runs > 1 else ""
    rows = [
        ("Models", f"{store.models:,} to fit datamodels, {store.eval_models:,} to judge them{shared}"),
        ("Rows", f"{found['done']:,} done, {found['missing']:,} missing, {found['failed']:,} failed"),
        *((f"Failed, {count:,} rows", reason) for reason, count in found.get("reasons", {}).items()),
        ("Data", f"{store.n_train:,} training and {store.n_test:,} test examples"),
        *(_recorded(store, found) if isinstance(store, Store) else _UNRECORDED),
        ("Files", f"{found['folder']}, {found['bytes'] / 1e6:,.1f} MB"),
    ]
    body = html.table("What was run", rows)
    if len(found.get("devices", {})) > 1:
        text = "The rows come from several devices or versions, which round differently: see “Made on”."
        body = html.paragraph(text, "note") + body
    setting = [(key, "null" if value is None else str(value)) for key, value in flatten(store.setting.to_dict())]
    return Section("run", "What was run", body + html.folded("The whole setting", html.table("Setting", setting)))


_UNRECORDED = [("Recipe, seed, time", "not recorded: these are published files, without a manifest")]


def _recorded(store: Store, found: dict) -> list[tuple[str, str]]:
    """What manifest and journals tell."""
    setting, manifest = store.setting, store.manifest
    subsets = {
        "exact": f"{round(setting.alpha * store.n_train):,} of {store.n_train:,} training examples, drawn for each row",
        "bernoulli": f"each training example with probability {setting.alpha:g}, drawn for each row",
    }
    return [
        ("Data, sha256", manifest.data_sha256),
        ("Subsets", subsets[setting.mask]),
        ("Recipe", _described(setting.recipe)),
        ("Augmentation", _augmentation(setting.recipe)),
        ("Margin", f"correct-class logit minus the largest other logit; {_VIEWS[setting.tta]}"),
        ("Seed", f"{setting.seed}; row r draws from the streams (seed, r)"),
        ("Store made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        *((f"Made on, {count:,} rows", device) for device, count in found["devices"].items()),
        *_time(store, len(found["hosts"])),
    ]


def _described(recipe: Recipe) -> str:
    return (
        f"{recipe.network} of width {recipe.width}, {recipe.epochs} epochs, batches of {recipe.batch}, SGD with peak "
        f"learning rate {recipe.lr:g} at epoch {recipe.peak_epoch:g}, momentum {recipe.momentum:g}, weight decay "
        f"{recipe.weight_decay:g}, label smoothing {recipe.label_smoothing:g}"
    )


def _augmentation(recipe: Recipe) -> str:
    parts = [
        "mirrored at random" if recipe.flip else "",
        f"shifted by up to {recipe.translate} px" if recipe.translate else "",
        f"cutout of {recipe.cutout} px" if recipe.cutout else "",
    ]
    return ", ".join(filter(None, parts)) or "none"


def _time(store: Store, machines: int) -> list[tuple[str, str]]:
    work = work_of(store)
    if work is None:
        return []
    threads = store.setting.recipe.threads
    worker = f"one device, with {threads} CPU thread{'s' if threads > 1 else ''}"
    elapsed = duration((work.last - work.first).total_seconds())
    dates = " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in (work.first, work.last))
    where = f"{machines:,} machine{'s' if machines > 1 else ''}"
    return [
        ("Cost", f"{work.seconds / 3600:,.3g} worker-hours, {work.per_row:,.3g} s a model; a worker is {worker}"),
        ("Time", f"{elapsed} from the first row to the last, pauses included; {dates} UTC, on {where}"),
    ]
