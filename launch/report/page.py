"""Make the page: gather report data, let every section compute what it shows, fill in the templates."""

import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from datamodels.lasso import Evaluation, Progress, silent, split_and_output, write_derived
from datamodels.lasso.evaluation import read_curve
from datamodels.launch.counterfactual import read_result
from datamodels.launch.progress import counted, duration
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.images import component_cases, influential_cases, signed, target_cases
from datamodels.launch.report.report_data import ReportData, gather
from datamodels.launch.report.sections import counterfactual, duplicates, fit, harmful, models, quality
from datamodels.launch.status import report_path, summary
from datamodels.train import flatten
from datamodels.train.data import Dataset
from datamodels.train.store import BaseStore, Store

_HEAD_BYTES = 2000
"""The fingerprint is among the first bytes of a page."""


def number(value: float, form: str) -> str:
    """A number in a format such as `.3f`, with a proper minus sign."""
    return re.sub("^-", "−", format(value, form))


def prose(text: str) -> Markup:
    """Plain text as HTML: `code` is set as such, numbers have proper minus signs."""
    marked = re.sub(r"(?<![\w-])-(?=\.?\d)", "−", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", marked))


def told(split: str) -> str:
    """Which targets a split is, for people: `test targets`, or `test targets, loss`."""
    side, output = split_and_output(split)
    return f"{side} targets" + ("" if output == "margins" else f", {output}")


def labelled(svg: Markup, label: str) -> Markup:
    """An SVG with a text alternative."""
    return Markup(str(svg).replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters |= {
    "counted": counted,
    "duration": duration,
    "labelled": labelled,
    "number": number,
    "prose": prose,
    "signed": signed,
}


def refuse_unfitted(store: BaseStore, split: str) -> None:
    """Raises UserError if there are no datamodels to report on."""
    Fitted(store, split)


def is_up_to_date(store: BaseStore, split: str, dataset: Dataset | None) -> bool:
    """Whether `write_report` would make the page that is there. Raises UserError if there are no datamodels."""
    expected = fingerprint(store, split, Fitted(store, split), dataset)
    try:
        with open(report_path(store, split), "rb") as file:
            return expected.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def write_report(
    store: BaseStore,
    split: str,
    dataset: Dataset | None,
    evaluation: Evaluation | None = None,
    progress: Progress = silent,
    price: float | None = None,
) -> Path:
    """Write ROOT/{dataset}/report_{split}_{pct}pct.html and return its path. Raises UserError, WorkError.

    dataset: for the images; None leaves them out. evaluation: what `evaluate` returns, if that is known already.
    price: of an hour of a GPU, or of a CPU core if no GPU trained, for what training cost.
    """
    data = gather(store, split, dataset, evaluation, progress, price)
    notes = [f"{text}." for text in data.evaluation.notices] if data.evaluation else []
    if data.fitted.stale and not notes:
        notes = ["The datamodels were fitted to other rows or with other options than today's: run `datamodels fit`."]
    page = filled(
        "page",
        data=data,
        title=f"{store.setting.dataset}, {store.setting.tag or f'alpha {store.setting.pct}%'}, {told(split)}",
        used=data.fitted.report.get("rows", {}).get("used"),
        notes=notes,
        images=data.dataset.train.images if data.dataset else None,
        sections=_sections(data),
        fingerprint=fingerprint(store, split, data.fitted, dataset),
        other_reports=other_reports(store, split),
    )
    return save(report_path(store, split), page)


def save(path: Path, page: str) -> Path:
    """Write a page and return its path. Raises UserError, WorkError."""
    write_derived(path, page.encode(errors="backslashreplace"))
    return path


def filled(template: str, **values: Any) -> Markup:
    """A template's HTML."""
    return Markup(environment.get_template(f"{template}.html").render(**values))


def _sections(data: ReportData) -> list[tuple[str, str, Markup]]:
    """Name, heading and HTML of each section; a section's template has its name."""
    sections: list[tuple[str, str, dict[str, Any]]] = [("quality", "Quality", quality(data))]
    features = f"{data.feature.removeprefix('training ')}s"
    if data.illustrated:
        sections += [
            ("targets", "Largest weights", {"cases": target_cases(data)}),
            ("influential", f"Most influential {features}", {"cases": influential_cases(data)}),
        ]
        if (found := data.components) and len(found.shares):
            cases = component_cases(data, found, data.fitted.targets)
            sections.append(("components", "Components", {"found": found, "cases": cases}))
    if removed := counterfactual(data):
        sections.append(("counterfactual", "Counterfactuals", removed))
    run = {
        "status": summary(data.store),
        "manifest": data.store.manifest if isinstance(data.store, Store) else None,
        "settings": flatten(data.store.setting.to_dict()),
    }
    if data.output == "margins":  # of other outputs, it is not known that more is better
        sections += [
            ("duplicates", "Suspected duplicates", duplicates(data)),
            ("harmful", f"Harmful {features}", harmful(data)),
        ]
    sections += [("fit", "Fit", fit(data)), ("models", "Models and masks", models(data)), ("run", "What was run", run)]
    return [(name, heading, filled(name, data=data, **values)) for name, heading, values in sections]


def fingerprint(store: BaseStore, split: str, fitted: Fitted, dataset: Dataset | None) -> str:
    """Digest of rows, setting, datamodels, LDS curve and counterfactuals on disk, images or not, and other reports.

    Images are those of the manifest, which does not change; images beside published files are not looked at.
    """
    content = {
        "version": importlib.metadata.version("datamodels-harness"),
        "rows": [store.row_stamp(np.flatnonzero(store.completed())), int(store.failed().sum()), str(store.layout.data)],
        "manifest": store.manifest.id if isinstance(store, Store) else None,
        "setting": store.setting.to_dict(),
        "datamodels": [part.file for part in fitted.parts],
        "curve": repr(read_curve(store, split)),
        "counterfactual": read_result(store, split),
        "images": dataset and dataset.classes,
        "other_reports": [path.name for path in other_reports(store, split)],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def other_reports(store: BaseStore, split: str) -> list[Path]:
    """The reports of other alphas and of the other split in the page's folder."""
    own = report_path(store, split)
    return sorted(path for path in own.parent.glob("report_*.html") if path != own)
