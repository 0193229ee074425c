"""One self-contained HTML page about a setting: what was run, how good the datamodels are, and what they point at."""

from html import escape
from pathlib import Path

from datamodels.lasso import Evaluation, Progress, silent
from datamodels.launch.report import html
from datamodels.launch.report.cost import work_of
from datamodels.launch.report.fingerprint import basis_of, beside, is_up_to_date, tag
from datamodels.launch.report.fit import fit
from datamodels.launch.report.gallery import behind, moved
from datamodels.launch.report.models import accuracy_of, models
from datamodels.launch.report.quality import quality
from datamodels.launch.report.report_data import Subject, gather
from datamodels.launch.report.run import what_was_run
from datamodels.launch.report.suspects import duplicates, harmful
from datamodels.launch.report.weights import Fitted
from datamodels.launch.status import report_path
from datamodels.launch.text import counted
from datamodels.train import READ_ONLY, UserError, WorkError, write_file
from datamodels.train.data import Dataset
from datamodels.train.store import ReadableStore

__all__ = ["is_up_to_date", "refuse_unfitted", "write_report"]


def refuse_unfitted(store: ReadableStore, split: str) -> None:
    """Raises UserError where there are no datamodels to report on."""
    Fitted(store, split)


def write_report(
    store: ReadableStore,
    split: str,
    dataset: Dataset | None,
    found: Evaluation | None = None,
    progress: Progress = silent,
    price: float | None = None,
) -> Path:
    """Write ROOT/{dataset}/report_{split}_{pct}pct.html and return its path. Raises UserError, WorkError.

    dataset: for the images; None where they are not at hand. found: what `evaluate` gives, where that is known already.
    price: of an hour of a GPU, or of a CPU core where no GPU trained, for what training cost.
    """
    subject = gather(store, split, dataset, found, progress, price)
    images = [behind(subject, dataset), moved(subject, dataset)] if dataset else []
    suspects = [duplicates(subject), harmful(subject)]
    sections = [quality(subject), *images, *suspects, fit(subject), models(subject), what_was_run(subject)]
    title = f"{store.setting.dataset}, alpha {store.setting.pct}%, {split} targets"
    beneath = _notes(subject) + _links(subject) + html.figures(_headline(subject))
    head = tag(basis_of(store, split, subject.fitted, dataset))
    page = html.page(title, "Datamodels", _lead(subject), beneath, sections, head)
    path = report_path(store, split)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, page.encode())
    except OSError as error:
        kind = UserError if error.errno in READ_ONLY else WorkError
        raise kind(f"cannot write {path}: {error.strerror}") from None
    return path


def _lead(subject: Subject) -> str:
    store, recipe = subject.store, subject.store.setting.recipe
    network = "" if work_of(store) is None else f" ({recipe.network}, {recipe.epochs} epochs)"
    targets = len(subject.fitted.targets)
    each = f"each of {targets:,} {subject.kind} examples" if targets > 1 else f"one {subject.kind} example"
    used = subject.fitted.report.get("rows", {}).get("used")
    origin = "of unknown origin (no record of a fit)" if used is None else f"fitted by LASSO to {used:,} of the models"
    return (
        f"{int(store.completed().sum()):,} models{network} were trained on random subsets of {store.setting.pct}% of "
        f"{store.n_train:,} training examples. For {each} a "
        f"linear datamodel, {origin}, predicts the margin from which training examples a model has seen."
    )


def _notes(subject: Subject) -> str:
    """What speaks against taking the page's figures as they are."""
    notes = [f"{text}." for text in subject.quality.notices] if subject.quality else []
    if subject.fitted.stale and not notes:
        notes.append("The datamodels are of other rows or options than the store's today: run `datamodels fit`.")
    return "".join(html.paragraph(text, "note") for text in notes)


def _headline(subject: Subject) -> list[tuple[str, str, str]]:
    store, found, accuracy = subject.store, subject.quality, accuracy_of(subject.store)
    entries = []
    if found is None:
        entries.append(("LDS", "–", "not evaluated"))
    else:
        entries.append(("LDS", f"{found.lds:.3f}", _uncertainty(found)))
        if found.ceiling is not None:
            share = f"; LDS is {found.lds / found.ceiling:.0%} of it" if found.ceiling > 0 else ""
            entries.append(("Ceiling of LDS", f"{found.ceiling:.3f}", f"perfect predictions{share}"))
    done = store.completed()
    fitting, judging = int(done[: store.models].sum()), int(done[store.models :].sum())
    missing = f"; {store.rows - fitting - judging:,} not done" if fitting + judging < store.rows else ""
    entries.append(("Models", f"{fitting + judging:,}", f"{fitting:,} to fit, {judging:,} to judge{missing}"))
    if len(accuracy):
        entries.append(("Test accuracy", f"{accuracy.mean():.1%}", f"± {accuracy.std():.1%} over models"))
    if work := work_of(store):
        entries.append(work.headline(subject.price))
    return entries


def _uncertainty(found: Evaluation) -> str:
    n = f"{counted(found.targets, 'target')}, {counted(found.masks, 'mask')}"
    interval = found.lds_interval
    return f"{interval.level:.0%} interval {interval.low:.3f} to {interval.high:.3f}; {n}" if interval else n


def _links(subject: Subject) -> str:
    """To the reports of other alphas and of the other split that lie beside this one."""
    others = beside(subject.store, subject.split)
    if not others:
        return ""
    links = []
    for path in others:
        split, _, pct = path.stem.removeprefix("report_").rpartition("_")
        text = f"alpha {pct.removesuffix('pct')}%, {split} targets"
        links.append(f'<a href="{escape(path.name)}">{escape(text)}</a>')
    return f'<p class="links">Beside this page: {", ".join(links)}</p>'
