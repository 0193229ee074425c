"""The report's plots, as SVG that takes its colours and its font from the page around it.

Bars have tooltips. Titles, numbers of samples and captions are in the templates.
"""

import contextlib
import io
import re
from collections.abc import Callable
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

with contextlib.chdir(Path(__file__).parent):  # away from a matplotlibrc of the user, which may fail the import
    import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from datamodels.lasso import Curve
from datamodels.lasso.evaluation import FITTED
from datamodels.launch.report.lambda_path import LambdaPaths

_VARIABLES = {name: f"#0000{place:02x}" for place, name in enumerate(("soft", "line", "paper", "blue", "orange"), 1)}
"""Colours that stand for the variables of the page's style sheet while matplotlib draws."""
_SOFT, _LINE, _PAPER, _BLUE, _ORANGE = _VARIABLES.values()
_MIDDLE_BLUE = (62, 134, 200)
"""Of pixels, which cannot follow the page: visible on light and on dark."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _SOFT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "legend.facecolor": _PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8.5,
}

_PLACE = (0.135, 0.155, 0.825, 0.825)
"""Left, bottom, width and height of the axes; to let matplotlib find them takes as long as to draw."""
_FILLED = 0.92
"""Share of its bin that a bar fills."""
_BARS = 48
"""Bars of a histogram, at most."""
_CELLS = 90
"""Cells of a density in each direction."""

P = ParamSpec("P")


def _plot(draw: Callable[Concatenate[Axes, P], None]) -> Callable[Concatenate[str, P], Markup]:
    """Turn a function that draws on axes into one that returns SVG; the latter's first argument names the plot.

    Names of a page's plots differ, which makes the ids in their SVG differ. Starts from matplotlib's defaults, whatever
    the user has set, and leaves its settings and its backend alone.
    """

    @wraps(draw)
    def drawn(name: str, *args: P.args, **kwargs: P.kwargs) -> Markup:
        with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
            figure, buffer = Figure(figsize=(4.8, 2.9)), io.StringIO()
            draw(figure.add_axes(_PLACE), *args, **kwargs)
            figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r'<g id="tip: ([^"]*)">', r"<g><title>\1</title>", text)
        text = re.sub(r'(<g|<text|<image) id="[^"]*"', r"\1", text)
        text = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
        text = re.sub(r"font-family: [^;\"]*;?", "", text)
        text = re.sub(r"\s*\n\s*", " ", text)
        for variable, colour in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        return Markup(re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1))

    return drawn


@_plot
def histogram(
    axes: Axes,
    values: NDArray,
    xlabel: str,
    what: str,
    *,
    edges: NDArray | None = None,
    log: bool = False,
    mark: tuple[str, float] | None = None,
    flag_ends: bool = False,
    expected: NDArray | None = None,
) -> None:
    """How many values fall where; every bar has a tooltip.

    what: what is counted, in the plural. log: logarithmic x axis, for positive values. mark: a vertical line and its
    name. flag_ends: the first and the last bar have another colour. expected: the counts to expect, as a line.
    """
    edges = _edges(values, log) if edges is None else edges
    counts, total = np.histogram(values, edges)[0], len(values)
    if log:
        axes.set_xscale("log")
    ends = [edges[0], edges[-1], *([] if mark is None else [mark[1]])]
    axes.set_xlim(min(ends), max(ends))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel=xlabel, ylabel=what)

    some, flagged = np.flatnonzero(counts), (0, len(counts) - 1) if flag_ends else ()
    colours = [_ORANGE if at in flagged else _BLUE for at in some]
    drawn = axes.bar(edges[some], counts[some], np.diff(edges)[some] * _FILLED, align="edge", color=colours)
    for bar, at in zip(drawn, some, strict=True):
        bar.set_gid(f"tip: {counts[at]:,} of {total:,} {what} from {edges[at]:.4g} to {edges[at + 1]:.4g}")

    if expected is not None:
        middles = (edges[1:] + edges[:-1]) / 2
        axes.plot(middles, expected, color=_ORANGE, linewidth=1.5, label="expected")
    if mark is not None:
        axes.axvline(mark[1], color=_ORANGE, linewidth=1.5, linestyle="--", label=mark[0])
    if mark is not None or expected is not None:
        axes.legend()


def whole_edges(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Edges of bins between whole numbers, so that every bin holds equally many of them."""
    low, high = int(counts.min()), int(counts.max())
    step = -(-(high - low + 1) // _BARS)
    return np.arange(low - 0.5, high + step, step)


def _edges(values: NDArray, log: bool) -> NDArray[np.float64]:
    """Edges of bins that hold all values, fewer of them if there are few values."""
    bins = int(np.clip(2 * np.sqrt(len(values)), 8, _BARS))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log:
        return np.geomspace(low / 1.01, high * 1.01, bins + 1)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


@_plot
def outlines(axes: Axes, groups: dict[str, NDArray], edges: NDArray, xlabel: str, what: str) -> None:
    """Outlines of the histograms of up to three groups of values: shares of each group."""
    styles = ((_BLUE, "-"), (_ORANGE, "--"), (_SOFT, "-"))
    for (group, values), (colour, style) in zip(groups.items(), styles, strict=False):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.5, label=group)
    axes.set(xlabel=xlabel, ylabel=f"share of {what}")
    if len(groups) > 1:
        axes.legend()


@_plot
def lds_curve(axes: Axes, curve: Curve) -> None:
    """LDS against the number of models: points, the fitted law, its limit, and the ceiling."""
    models = np.array([point.models for point in curve.points], np.float64)
    lds = [point.lds for point in curve.points]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.set(xlabel="estimation models", ylabel="LDS")
    levels = {} if curve.ceiling is None else {"ceiling": curve.ceiling}
    if curve.law is not None:
        reach = np.geomspace(models[-FITTED:][0], 4 * models[-1], 60)
        axes.plot(reach, curve.law.at(reach), color=_BLUE, linewidth=1.2, label="fitted law")
        levels["limit of the law"] = curve.law.limit
    axes.plot(models, lds, "o", color=_BLUE, markersize=5, label="measured")
    for (level, height), style in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(height, color=_ORANGE, linewidth=1.5, linestyle=style, label=f"{level} {height:.3f}")
    heights = [0.0, *lds, *levels.values()]
    beyond = 0.08 * (max(heights) - min(heights)) or 0.1
    axes.set_ylim(min(heights) - (beyond if min(heights) < 0 else 0), max(heights) + beyond)
    axes.legend(loc="lower right")


@_plot
def lambda_paths(axes: Axes, found: LambdaPaths, split: str) -> None:
    """Validation errors along the path, a line a target, and a dot for what the fit recorded."""
    axes.set_xscale("log")
    styles = [(colour, style) for style in ("-", "--", ":") for colour in (_BLUE, _ORANGE)]
    for place, (colour, style) in zip(range(len(found.targets)), styles, strict=False):
        label = f"{split} {found.targets[place]}"
        axes.plot(found.ratios, found.errors[place], color=colour, linestyle=style, linewidth=1.3, label=label)
        axes.plot(found.ratios[found.chosen[place]], found.recorded[place], "o", color=colour, markersize=5)
    axes.set_ylim(0, 1.15 * max(1.0, float(found.errors[:, 0].max()), float(found.recorded.max())))
    axes.set(xlabel="lambda / largest lambda", ylabel="validation error")
    axes.legend(ncols=2, fontsize=7.5)


@_plot
def density(axes: Axes, predicted: NDArray, actual: NDArray, what: str) -> None:
    """How many pairs of a predicted and an actual value fall where, with the diagonal."""
    low, high = np.quantile(np.concatenate([predicted, actual]), [0.001, 0.999])
    margin = 0.02 * (high - low) or 0.5
    ends = float(low - margin), float(high + margin)
    counts = np.histogram2d(actual, predicted, _CELLS, (ends, ends))[0]
    cells = np.empty((*counts.shape, 4), np.uint8)
    cells[..., :3] = _MIDDLE_BLUE
    cells[..., 3] = np.where(counts > 0, 55 + 200 * np.log1p(counts) / np.log1p(max(1, counts.max())), 0)
    axes.imshow(cells, extent=(*ends, *ends), origin="lower", aspect="auto", interpolation="nearest")
    axes.plot(ends, ends, color=_ORANGE, linewidth=1.2, linestyle="--", label="predicted = actual")
    axes.set(xlabel=f"predicted {what}", ylabel=f"actual {what}")
    axes.legend(loc="upper left")


_WAYS = ((_BLUE, "o"), (_ORANGE, "s"), (_SOFT, "^"))
"""Colour and marker of each way of choosing what is removed, in turn."""


@_plot
def changes(axes: Axes, groups: dict[str, NDArray], what: str) -> None:
    """Predicted against measured changes of groups [3, n]: predicted, measured, standard error; and the diagonal."""
    for (group, (x, y, error)), (colour, marker) in zip(groups.items(), cycle(_WAYS)):
        axes.errorbar(x, y, error, color=colour, fmt=marker, markersize=3, linewidth=0.7, alpha=0.7, label=group)
    predicted = np.concatenate([group[0] for group in groups.values()])
    ends = float(predicted.min()), float(predicted.max())
    axes.plot(ends, ends, color=_SOFT, linewidth=1.2, linestyle="--", label="predicted = measured")
    axes.set(xlabel=f"predicted change of the {what}", ylabel="measured change")
    axes.legend()


@_plot
def flips(axes: Axes, curves: dict[str, dict[str, dict[str, list]]]) -> None:
    """Share of targets that flip, by way of choosing, against the number of examples removed."""
    most = max(k for curve in curves.values() for part in curve.values() for k in [1, *part["k"]])
    for (by, curve), (colour, marker) in zip(curves.items(), cycle(_WAYS)):
        predicted, measured = curve["predicted"], curve["measured"]
        edges = [0.8, *predicted["k"], 1.2 * most]
        axes.stairs([0.0, *predicted["share"]], edges, baseline=None, color=colour, linewidth=1.5, label=by)
        axes.plot(measured["k"], measured["share"], marker, color=colour, markersize=5)
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set(xlabel="examples removed", ylabel="share of targets that flip")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.legend()
