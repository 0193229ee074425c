"""The page about two settings: where they use the same training examples differently."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from datamodels.lasso import Comparison, Datamodels
from datamodels.launch.report import plots
from datamodels.launch.report.images import Case, case_of, component_cases, thumbnail
from datamodels.launch.report.page import filled, save, told
from datamodels.launch.report.report_data import Examples
from datamodels.train import flatten
from datamodels.train.data import Dataset
from datamodels.train.store import BaseStore


def write_comparison(
    stores: Sequence[BaseStore], split: str, dataset: Dataset | None, fitted: Sequence[Datamodels], found: Comparison
) -> Path:
    """Write ROOT/{dataset}/compare_{split}_{tag}_{root of B}_{tag of B}.html, ROOT being A's, and return its path.

    stores, fitted: A's and B's. dataset: for the images; None leaves them out. Raises UserError, WorkError.
    """
    a, b = stores
    data = Examples(a, split, dataset)
    config, other = (dict(flatten(store.setting.to_dict())) for store in stores)
    mean = float(found.similarity.mean())
    similarity = {
        "plot_svg": plots.histogram(
            "similarity", found.similarity, "cosine of weights in A and B", "targets", mark=(f"mean {mean:.3f}", mean)
        ),
        "cases": _least_similar(data, fitted, found),
    }
    sections: list[tuple[str, str, str, dict[str, Any]]] = [("similarity", "Similarity", "similarity", similarity)]
    for side, residual, without in (("A", found.only_a, "B"), ("B", found.only_b, "A")):
        cases = component_cases(data, residual, np.arange(len(found.similarity)))
        values = {"side": side, "without": without, "residual": residual, "cases": cases}
        sections.append((f"only-{side.lower()}", f"Only in {side}", "residual", values))
    differing = [(key, config[key], other[key]) for key in config if config[key] != other[key]]
    sections.append(("settings", "Settings", "differences", {"stores": stores, "differing": differing}))

    page = filled(
        "comparison",
        title=f"{a.setting.dataset}, {told(split)}: A and B compared",
        data=data,
        stores=stores,
        found=found,
        differing=differing,
        sections=[
            (name, heading, Markup(filled(template, data=data, found=found, **values)))
            for name, heading, template, values in sections
        ],
    )
    name = f"compare_{split}_{a.setting.file_tag}_{b.layout.root.resolve().name}_{b.setting.file_tag}.html"
    return save(a.derived / name, page)


def _least_similar(data: Examples, fitted: Sequence[Datamodels], found: Comparison) -> list[Case]:
    """Each of the least similar targets, with the training images of the largest weights in A, and those in B."""
    cases, targets = [], found.least_similar
    for target, *weights in zip(targets.tolist(), *(each.columns(targets)[0].T for each in fitted), strict=True):
        image = thumbnail(data, data.side, target, [f"cosine {found.similarity[target]:.2f}".replace("-", "−")])
        for each, weight in zip(fitted, weights, strict=True):
            if each.own is not None:
                weight[target] = 0
        numbers = np.arange(len(weights[0]))
        cases.append(
            Case(image, *(case_of(data, None, weight, data.feature_split, numbers).positive for weight in weights))
        )
    return cases
