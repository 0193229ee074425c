"""The section about how the rows came about: setting, recipe, versions, machines, time."""

from datamodels.launch.report import html
from datamodels.launch.report.cost import work_of
from datamodels.launch.report.html import Section
from datamodels.launch.report.report_data import Subject
from datamodels.launch.status import summary
from datamodels.launch.text import counted
from datamodels.train import Recipe, flatten
from datamodels.train.store import Store

_VIEWS = {
    "mirror": "mean logits of the image and its mirror image",
    "none": "logits of the image itself",
    "legacy_fliplr": "mean logits of the image and its channel-reversed copy",
}


def what_was_run(subject: Subject) -> Section:
    store = subject.store
    found = summary(store)
    runs = store.setting.runs_per_mask
    shared = f", {runs} runs of each mask" if store.eval_models and runs > 1 else ""
    rows = [
        ("Models", f"{store.models:,} to fit datamodels, {store.eval_models:,} to judge them{shared}"),
        ("Rows", f"{found['done']:,} done, {found['missing']:,} missing, {found['failed']:,} failed"),
        *((f"Failed, {counted(count, 'row')}", reason) for reason, count in found.get("reasons", {}).items()),
        ("Data", f"{store.n_train:,} training and {counted(store.n_test, 'test example')}"),
        *(_recorded(store, found, subject.price) if isinstance(store, Store) else _UNRECORDED),
        ("Files", f"{found['folder']}, {found['bytes'] / 1e6:,.1f} MB"),
    ]
    body = html.table("What was run", rows)
    if len(found.get("devices", {})) > 1:
        text = "The rows come from several devices or versions, which round differently: see “Made on”."
        body = html.paragraph(text, "note") + body
    setting = [(key, "null" if value is None else str(value)) for key, value in flatten(store.setting.to_dict())]
    return Section("run", "What was run", body + html.folded("The whole setting", html.table("Setting", setting)))


_UNRECORDED = [("Recipe, seed, time", "not recorded: these are published files, without a manifest")]


def _recorded(store: Store, found: dict, price: float | None) -> list[tuple[str, str]]:
    """What manifest and journals tell."""
    setting, manifest, work = store.setting, store.manifest, work_of(store)
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
        *((f"Made on, {counted(count, 'row')}", device) for device, count in found["devices"].items()),
        *(work.table(price, len(found["hosts"])) if work else []),
    ]


def _described(recipe: Recipe) -> str:
    width = f" of width {recipe.width}" if recipe.network in ("resnet9", "convnet") else ""
    return (
        f"{recipe.network}{width}, {recipe.epochs} epochs, batches of {recipe.batch}, SGD with peak "
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
