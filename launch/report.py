"""One self-contained HTML page about a setting: what was run, how good the datamodels are, and what they point at."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasso import Evaluation, curve, evaluate, load, path_of, read_report
from launch import plots
from launch.progress import duration
from launch.status import report_path, summary
from train.config import flatten
from train.data import Dataset, Split
from train.errors import UserError, WorkError
from train.npy import write_file
from train.store import ReadableStore, Store

GALLERY = 10
"""Target images shown with their training images."""
NEIGHBOURS = 6
"""Training images of each sign shown for a target."""
SAMPLE_ROWS = 256
"""Rows that the margin histogram is drawn from, evenly spaced."""

Columns = Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""From targets to their weight [N_train, t] and bias [t], in mask units."""

_CSS = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; }
th { white-space: nowrap; }
th, td { text-align: left; padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; }
.row { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; padding: .75rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid; }
.images { display: flex; flex-wrap: wrap; gap: .4rem; }
figure { margin: 0; width: 4.2rem; font-size: .7rem; line-height: 1.2; text-align: center; }
img { width: 4.2rem; height: 4.2rem; object-fit: contain; image-rendering: pixelated; background: #8882; }
.helps img { outline: 2px solid #2a9d4a; } .hurts img { outline: 2px solid #d2453a; }
details { margin: 1rem 0; }
"""


def write_report(store: ReadableStore, split: str, dataset: Dataset | None) -> Path:
    """Write ROOT/{dataset}/report_{split}_{pct}pct.html and return its path. Raises UserError, WorkError."""
    columns = _columns_of(path_of(store, split))
    quality = evaluate(store, split) if store.eval_models else None
    body = [_what_was_run(store), _quality(store, split, quality), _plots(store, split, columns, quality)]
    if dataset is not None:
        body.append(_gallery(dataset, split, columns, quality))
    title = f"Datamodels: {store.setting.dataset}, alpha {store.setting.pct} %, {split} targets"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_CSS}</style></head><body><h1>{escape(title)}</h1>{''.join(body)}</body></html>\n"
    )
    path = report_path(store, split)
    try:
        write_file(path, page.encode())
    except PermissionError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror}") from None
    return path


def _columns_of(path: Path) -> Columns:
    datamodels, units = load(path), (read_report(path) or {}).get("weight_units", "mask")
    return lambda targets: datamodels.columns(targets, units)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _what_was_run(store: ReadableStore) -> str:
    found = summary(store)
    rows = [
        ("models", f"{store.models:,} for estimation, {store.eval_models:,} for evaluation"),
        ("rows", f"{found['done']:,} done, {found['missing']:,} missing, {found['failed']:,} failed"),
        ("data", f"{store.n_train:,} training and {store.n_test:,} test examples"),
    ]
    if isinstance(store, Store) and store.completed().any():
        done = store.completed()
        rows.append(("test accuracy", _mean_and_deviation(store.states.accuracy[done])))
        rows.append(("training time", f"{duration(float(store.states.seconds[done].sum()))} of one worker"))
        rows += [("made on", f"{device}: {count:,} rows") for device, count in found["devices"].items()]
    setting = [(key, str(value)) for key, value in flatten(store.setting.to_dict())]
    return f"{_table(rows)}<details><summary>The whole setting</summary>{_table(setting)}</details>"


def _mean_and_deviation(values: NDArray) -> str:
    return f"{values.mean():.2%}, standard deviation {values.std():.2%} over {len(values):,} models"


def _quality(store: ReadableStore, split: str, quality: Evaluation | None) -> str:
    if quality is None:
        return "<h2>Quality</h2><p>The setting has no evaluation models.</p>"
    rows = [("LDS", f"{quality.lds:.4f}, the mean over {quality.targets:,} targets, on {quality.masks:,} masks")]
    if quality.ceiling is not None:
        rows.append(("ceiling of LDS", f"{quality.ceiling:.4f}, from {store.setting.runs_per_mask} runs of each mask"))
    rows += [
        ("MSE", f"{quality.mse:.4f}, over {quality.models:,} evaluation models"),
        ("R²", f"{quality.r2:.4f}"),
        ("undefined", f"{quality.undefined:,} targets have no rank correlation and count as 0"),
    ]
    return f"<h2>Quality</h2>{_table(rows)}"


def _plots(store: ReadableStore, split: str, columns: Columns, quality: Evaluation | None) -> str:
    figures = [_margins(store, split)]
    if quality is not None:
        title = f"LDS of each target (n = {quality.targets:,})"
        figures.append(plots.histogram(quality.target_lds, title, "Spearman correlation", [(quality.lds, "mean")]))
        growth = curve(store, split)
        title = f"LDS against number of models (n = {growth.targets:,} targets)"
        models, lds = [point.models for point in growth.points], [point.lds for point in growth.points]
        figures.append(plots.curve(models, lds, growth.ceiling, title))
        figures.append(_predictions(store, split, columns))
    if isinstance(store, Store) and store.completed().any():
        accuracy = store.states.accuracy[store.completed()]
        figures.append(plots.histogram(accuracy, f"Test accuracy of each model (n = {len(accuracy):,})", "accuracy"))
    return f'<h2>Plots</h2><div class="plots">{"".join(f"<div>{figure}</div>" for figure in figures)}</div>'


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _margins(store: ReadableStore, split: str) -> str:
    rows = _spread(np.flatnonzero(store.completed()), SAMPLE_ROWS)
    margins = store.array(f"{split}_margins")
    values = np.concatenate([margins[row, :: max(1, margins.shape[1] // 2000)] for row in rows]).astype(np.float32)
    title = f"Margins (n = {len(values):,}: {len(rows):,} models, {len(values) // len(rows):,} targets)"
    return plots.histogram(values, title, "correct logit minus largest other logit")


def _predictions(store: ReadableStore, split: str, columns: Columns) -> str:
    rows = _spread(store.models + np.flatnonzero(store.completed()[store.models :]), 50)
    targets = _spread(np.arange(store.array(f"{split}_margins").shape[1]), 40)
    weight, bias = columns(targets)
    masks = np.stack([store.array("train_masks")[row] for row in rows])
    actual = np.stack([store.array(f"{split}_margins")[row, targets] for row in rows]).astype(np.float64)
    predicted = masks @ weight + bias
    title = f"Held-out margins (n = {actual.size:,}: {len(rows)} models, {len(targets)} targets)"
    return plots.scatter(predicted.ravel(), actual.ravel(), title)


def _gallery(dataset: Dataset, split: str, columns: Columns, quality: Evaluation | None) -> str:
    shown: Split = getattr(dataset, split)
    rows = []
    targets = _spread(np.arange(len(shown.labels)), GALLERY)
    for target, weight in zip(targets, columns(targets)[0].T, strict=True):
        order = np.argsort(weight)
        helps = [index for index in order[::-1][:NEIGHBOURS] if weight[index] > 0]
        hurts = [index for index in order[:NEIGHBOURS] if weight[index] < 0]
        lds = f", LDS {quality.target_lds[target]:.2f}" if quality else ""
        rows.append(
            f'<div class="row"><div class="images">{_figure(dataset, shown, int(target), f"{target}{lds}")}</div>'
            f'<div class="images helps">{_neighbours(dataset, weight, helps)}</div>'
            f'<div class="images hurts">{_neighbours(dataset, weight, hurts)}</div></div>'
        )
    return (
        f"<h2>Training images behind a prediction</h2><p>For {len(rows)} {split} images, evenly spaced: the training "
        f"images that raise its margin most (green) and lower it most (red), with their weights in units of "
        f"margin.</p>{''.join(rows)}"
    )


def _neighbours(dataset: Dataset, weight: NDArray, indices: list[np.int64]) -> str:
    return "".join(_figure(dataset, dataset.train, int(index), f"{weight[index]:+.3f}") for index in indices)


def _figure(dataset: Dataset, split: Split, index: int, text: str) -> str:
    name = dataset.classes[split.labels[index]]
    image = plots.thumbnail(split.images[index])
    return f'<figure><img src="{image}" alt="{escape(name)}"><figcaption>{escape(name)}<br>{text}</figcaption></figure>'
