"""The section about the LASSO: which lambdas were chosen, how exact the solutions are, how sparse."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.progress import duration
from datamodels.launch.report import html, plots
from datamodels.launch.report.html import Section
from datamodels.launch.report.path import path_plot
from datamodels.launch.report.report_data import Subject
from datamodels.launch.text import counted

_SMALLEST_GAP = 1e-12
"""Smaller gaps are drawn there: float64 does not tell them from 0."""
_LEAST_SHARE = -0.5
"""Smaller shares of explained variance are drawn there."""
_BARS = 100
"""Of the path, at most."""


def fit(subject: Subject) -> Section:
    fitted, report = subject.fitted, subject.fitted.report
    body = ""
    if missing := fitted.width - len(fitted.targets):
        body += html.paragraph(
            f"{len(fitted.targets):,} of {counted(fitted.width, 'target')} are fitted so far. This page leaves out the "
            f"other {missing:,}.",
            "note",
        )
    vectors = fitted.vectors()
    if not vectors or not report:
        text = "The weights come without a record of their fit: nothing is known of lambda and duality gaps."
        return Section("fit", "Fit", body + html.paragraph(text) + html.plots([_sparsity(subject)]))
    body += html.table("Fit", _rows(subject, report, vectors))
    shown = [
        *path_plot(subject, vectors),
        _lambdas(vectors["chosen"], report["path"]),
        _gaps(vectors["gap"], report["options"]["tol"]),
        _explained(vectors["validation_mse"], vectors["variance"], report["rows"]["validation"]),
        _sparsity(subject),
    ]
    return Section("fit", "Fit", body + html.plots(shown))


def _rows(subject: Subject, report: dict[str, Any], vectors: dict[str, NDArray[Any]]) -> list[tuple[str, str]]:
    rows, path, tolerance = report["rows"], report["path"], report["options"]["tol"]
    chosen, gap, kkt = vectors["chosen"], vectors["gap"], vectors["kkt"]
    tried = vectors["tried"][chosen >= 0]
    seconds = sum(sum(part.report["seconds"].values()) for part in subject.fitted.parts)
    used = f"{rows['used']:,}: lambda chosen by {rows['validation']:,} of them, then refitted on all"
    if rows["failed"] or rows["missing"]:
        used += f"; {rows['failed']:,} failed and {rows['missing']:,} missing rows left out"
    return [
        ("Rows", used),
        (
            "Path",
            f"{path['k']} lambdas, from the smallest that gives no weight down to {path['eps']:g} of it, ended after "
            f"{path['patience']} without a smaller validation error; {tried.mean() if len(tried) else 0:.1f} tried on "
            "average",
        ),
        (
            "Chosen at the boundary",
            f"{counted((chosen == 0).sum(), 'target')} at the largest lambda, {(chosen == path['k'] - 1).sum():,} at "
            "the smallest (fit.eps moves it)",
        ),
        (
            "Without variance",
            f"{counted((chosen < 0).sum(), 'target')}, {counted(report['zero_variance']['examples'], 'example')}",
        ),
        ("Relative duality gap", f"{gap.max():.2g} at most, median {np.median(gap):.2g}; tolerance {tolerance:g}"),
        ("KKT violation over lambda", f"{kkt.max():.2g} at most, median {np.median(kkt):.2g}"),
        ("Units of weights", "of a mask" if report["weight_units"] == "mask" else "of a standardised mask"),
        ("Took", duration(seconds)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
    ]


def _lambdas(chosen: NDArray[np.int32], path: dict[str, Any]) -> str:
    """Places on the path: every target's lambdas are the same shares of its own largest one."""
    k, places = path["k"], chosen[chosen >= 0]
    step = np.log(path["eps"]) / max(1, k - 1)
    width = -(-k // _BARS)
    edges = np.exp((np.arange(0, k + width, width) - 0.5) * step)[::-1]
    beyond = int(((places == 0) | (places == k - 1)).sum())
    caption = (
        "Each target's lambda as a share of its own largest, at which all weights are 0. The bars at the ends of the "
        f"path (orange) hold the {counted(beyond, 'target')} whose best lambda may lie beyond it."
    )
    xlabel = "chosen lambda / largest lambda"
    svg = plots.histogram("lambdas", np.exp(places * step), xlabel, "targets", edges=edges, log=True, flag_ends=True)
    return html.plot("Chosen lambdas", f"n = {counted(len(places), 'target')}", svg, caption)


def _gaps(gap: NDArray[np.float64], tolerance: float) -> str:
    caption = (
        "Duality gap of each target's solution over the objective at weights 0: no other solution is better by more "
        f"than this share. Largest {gap.max():.2g}, median {np.median(gap):.2g}."
    )
    shown, mark = np.maximum(gap, _SMALLEST_GAP), (f"tolerance {tolerance:g}", tolerance)
    svg = plots.histogram("gaps", shown, "relative duality gap", "targets", log=True, mark=mark)
    return html.plot("Duality gaps", f"n = {counted(len(gap), 'target')}", svg, caption)


def _explained(mse: NDArray[np.float64], variance: NDArray[np.float64], rows: int) -> str:
    varies = variance > 0
    share = 1 - mse[varies] / variance[varies]
    median = float(np.median(share)) if len(share) else 0.0
    caption = (
        f"1 − validation error at the chosen lambda / variance of the margin, on the {counted(rows, 'row')} that chose "
        "lambda: slightly too good for that. Below 0 the mean alone predicts better."
    )
    shown, mark = np.maximum(share, _LEAST_SHARE), (f"median {median:.3f}", median)
    svg = plots.histogram("explained", shown, "share of variance explained", "targets", mark=mark)
    return html.plot("Validation error", f"n = {counted(len(share), 'target')}", svg, caption)


def _sparsity(subject: Subject) -> str:
    nonzero, n_train = subject.found.nonzero, subject.fitted.n_train
    caption = (
        f"Training examples with a weight other than 0, of {n_train:,}: median {np.median(nonzero):,.0f}, from "
        f"{nonzero.min():,} to {nonzero.max():,}."
    )
    edges = plots.whole_edges(nonzero)
    svg = plots.histogram("nonzero", nonzero, "weights other than 0", "targets", edges=edges)
    return html.plot("Sparsity", f"n = {counted(len(nonzero), 'target')}", svg, caption)
