"""The section about held-out quality: LDS, predictions against what came out, and what more models would bring."""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Curve, Evaluation
from datamodels.lasso.evaluation import FITTED
from datamodels.launch.report import html, plots
from datamodels.launch.report.gallery import unseen
from datamodels.launch.report.html import Section
from datamodels.launch.report.report_data import Subject, spread
from datamodels.launch.text import counted

_BEST = 8
"""Targets of the largest and of the smallest LDS that are shown."""
_PLOTTED_ROWS = 200
"""Evaluation rows whose predictions are plotted."""


def quality(subject: Subject) -> Section:
    found = subject.quality
    if found is None:
        return Section("quality", "Quality", html.paragraph(subject.unjudged))
    body = html.paragraph(
        "LDS (linear datamodeling score) is Spearman's rank correlation, over masks that no datamodel was fitted on, "
        "between the margin that a datamodel predicts and the one that the trained models have; here its mean over "
        "targets."
    )
    body += html.table("Quality", _rows(subject, found))
    growth = subject.growth
    if isinstance(growth, Curve):
        body += html.plots([_lds(found), _growth(growth), *_predictions(subject)])
        body += html.paragraph(f"{growth.answer()}.", "small")
    else:
        body += html.plots([_lds(found), *_predictions(subject)]) + html.paragraph(growth, "small")
    return Section("quality", "Quality", body + _extremes(subject, found))


def _rows(subject: Subject, found: Evaluation) -> list[tuple[str, str]]:
    runs = subject.store.setting.runs_per_mask
    lds = f"{found.lds:.4f} over {counted(found.targets, 'target')}"
    if interval := found.lds_interval:
        lds += (
            f"; {interval.level:.0%} interval {interval.low:.4f} to {interval.high:.4f}, from {interval.replicates:,} "
            "bootstrap samples of the masks"
        )
    averaged = f", the {runs} runs of a mask averaged" if runs > 1 else ""
    rows = [
        ("LDS", lds),
        ("Evaluated on", f"{counted(found.models, 'model')} on {counted(found.masks, 'mask')}{averaged}"),
    ]
    if found.ceiling is not None:
        text = f"{found.ceiling:.4f}: what perfect predictions could reach, from how {runs} runs of a mask differ"
        rows.append(("Ceiling of LDS", text))
    rows += [
        ("Pearson", f"{found.pearson:.4f}, mean over targets" + averaged),
        ("R²", f"{found.r2:.4f}, mean over targets, each run by itself"),
        ("MSE", f"{found.mse:.4g} squared logits, each run by itself"),
    ]
    if found.undefined:
        rows.append(("Undefined", f"{counted(found.undefined, 'target')} without a rank correlation, counted as 0"))
    return rows


def _lds(found: Evaluation) -> str:
    quarter, median, three = np.quantile(found.target_lds, (0.25, 0.5, 0.75))
    caption = (
        f"Half of the targets lie between {quarter:.3f} and {three:.3f}, median {median:.3f}. Each is a correlation "
        f"over {counted(found.masks, 'mask')}; without any relation it would be 0 ± {1 / np.sqrt(found.masks - 1):.3f}."
    )
    svg = plots.histogram("lds", found.target_lds, "LDS", "targets", mark=(f"mean {found.lds:.3f}", found.lds))
    return html.plot("LDS of each target", f"n = {counted(found.targets, 'target')}", svg, caption)


def _growth(growth: Curve) -> str:
    models = np.array([point.models for point in growth.points], np.float64)
    lds = np.array([point.lds for point in growth.points])
    levels = {} if growth.ceiling is None else {"ceiling": growth.ceiling}
    caption = f"Fits to the first so many models, all judged on the same {counted(growth.targets, 'target')} and masks."
    line = None
    if growth.law is not None:
        reach = np.geomspace(models[-FITTED:][0], 4 * models[-1], 60)
        line = reach, growth.law.at(reach)
        levels["limit of the law"] = growth.law.limit
        caption += (
            f" The line is LDS(M) = 1 / √(a + b / M^{growth.law.power:.2g}), fitted to the points it passes, and "
            "continued to four times the models."
        )
    svg = plots.growth("growth", models, lds, line, levels)
    return html.plot("LDS against number of models", f"n = {counted(growth.targets, 'target')} a point", svg, caption)


def _predictions(subject: Subject) -> list[str]:
    predicted, actual = _pairs(subject)
    n = f"n = {actual.size:,}: {counted(actual.shape[1], 'target')} in {counted(actual.shape[0], 'model')}"
    raw = plots.density("predictions", predicted.ravel(), actual.ravel(), "predicted margin", "actual margin")
    x, y = ((values - values.mean(axis=0)).ravel() for values in (predicted, actual))
    within = plots.density("deviations", x, y, "predicted deviation", "actual deviation")
    return [
        html.plot(
            "Predicted and actual margins",
            n,
            raw,
            "On evaluation models; darker where more pairs fall. Most of what is seen here is that some targets are "
            "easier than others.",
        ),
        html.plot(
            "The same, around each target's mean",
            n,
            within,
            "What the mask changes: predicted and actual margins, each minus its target's mean over these models. "
            f"Pearson correlation of all pairs {_correlation(x, y):.3f}, each run by itself.",
        ),
    ]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of centred values; 0 where either side is constant."""
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _pairs(subject: Subject) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and actual margins [rows, targets] of evaluation rows and targets that are evenly spaced."""
    store, plotted = subject.store, subject.plotted
    done = store.models + np.flatnonzero(store.completed()[store.models :])
    rows = done[spread(len(done), _PLOTTED_ROWS)]
    columns = subject.found.columns[:, : len(plotted)]
    if subject.found.own is not None:  # left out of the columns
        columns = columns.copy()
        columns[subject.fitted.targets[plotted], np.arange(len(plotted))] = subject.found.own[plotted]
    masks, margins = store.array("train_masks"), store.array(f"{subject.split}_margins")
    targets = subject.fitted.targets[plotted]
    predicted = np.stack([masks[row] for row in rows]).astype(np.float32) @ columns
    actual = np.stack([margins[row, targets] for row in rows]).astype(np.float64)
    return predicted + subject.fitted.bias[plotted], actual


def _extremes(subject: Subject, found: Evaluation) -> str:
    """The targets of largest and of smallest LDS, where there are two."""
    order = np.argsort(-found.target_lds, kind="stable")
    if len(order) < 2:
        return ""
    count = min(_BEST, len(order) // 2)
    groups = {"Predicted best": order[:count], "Predicted worst": order[: -count - 1 : -1]}
    if subject.dataset is None:
        rows = [(title, _named(subject, found, places)) for title, places in groups.items()]
        return html.heading("Best and worst targets") + html.table("Best and worst targets", rows)
    own = "“max” is a target's own ceiling: how well perfect predictions could do."
    note = ("" if found.target_ceiling is None else own) + unseen(subject.dataset)
    return "".join(
        html.heading(title) + f'<div class="thumbs">{_thumbnails(subject, found, places)}</div>'
        for title, places in groups.items()
    ) + (html.paragraph(note.strip(), "small") if note else "")


def _named(subject: Subject, found: Evaluation, places: NDArray[np.int64]) -> str:
    return ", ".join(f"{subject.fitted.targets[place]} ({found.target_lds[place]:.3f})" for place in places)


def _thumbnails(subject: Subject, found: Evaluation, places: NDArray[np.int64]) -> str:
    assert subject.dataset is not None
    entries = []
    for place in places:
        target = int(subject.fitted.targets[place])
        name = subject.dataset.classes[subject.targets.labels[target]]
        lines = [name, f"LDS {found.target_lds[place]:.2f}"]
        if found.target_ceiling is not None:
            lines.append(f"max {found.target_ceiling[place]:.2f}")
        image = subject.targets.images[target]
        entries.append(html.thumbnail(image, f"{subject.kind} image {target}, {name}", [*lines, f"#{target}"]))
    return "".join(entries)
