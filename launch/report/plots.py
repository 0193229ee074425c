"""The report's plots, as SVG that takes its colours and its font from the page around it.

Bars have tooltips. Titles, numbers of samples and captions are the page's.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

_VARIABLES = {name: f"#0000{place:02x}" for place, name in enumerate(("soft", "line", "paper", "blue", "orange"), 1)}
"""Colours that stand for the variables of the page's style sheet while matplotlib draws."""
_SOFT, _LINE, _PAPER, _BLUE, _ORANGE = _VARIABLES.values()
_MIDDLE_BLUE = (62, 134, 200)
"""Of pixels, which cannot follow the page: seen on light and on dark."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _SOFT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
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


@dataclass
class Plot:
    """Axes to draw on, and what to tell about the bars on them."""

    axes: Axes
    name: str
    """Of the plot among those of its page: makes its references its own."""
    tips: list[str] = field(default_factory=list)

    def bars(self, counts: NDArray, edges: NDArray, what: str, colours: NDArray[np.object_]) -> None:
        """Bars between edges, where there is anything; each with a tooltip."""
        total = int(counts.sum())
        some = np.flatnonzero(counts)
        drawn = self.axes.bar(
            edges[some], counts[some], np.diff(edges)[some] * _FILLED, align="edge", color=colours[some].tolist()
        )
        for bar, at in zip(drawn, some, strict=True):
            bar.set_gid(f"tip{len(self.tips)}")
            self.tips.append(f"{counts[at]:,} of {total:,} {what} from {edges[at]:.4g} to {edges[at + 1]:.4g}")


@contextmanager
def _plot(name: str, xlabel: str, ylabel: str, done: list[str]) -> Iterator[Plot]:
    """Axes that become SVG text, appended to `done`, on exit."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.8, 2.9))
        plot = Plot(figure.add_axes(_PLACE), name)
        yield plot
        plot.axes.set(xlabel=xlabel, ylabel=ylabel)
        done.append(_svg(figure, plot))


def histogram(
    name: str,
    values: NDArray,
    xlabel: str,
    what: str,
    *,
    edges: NDArray | None = None,
    log: bool = False,
    mark: tuple[str, float] | None = None,
    flag_ends: bool = False,
    expected: NDArray | None = None,
) -> str:
    """How many values fall where.

    what: what is counted, in the plural. log: logarithmic x axis, for positive values. mark: a vertical line and its
    name. flag_ends: let the first and the last bar stand out. expected: what counts to expect, as a line.
    """
    done: list[str] = []
    edges = _edges(values, log) if edges is None else edges
    middles = np.sqrt(edges[1:] * edges[:-1]) if log else (edges[1:] + edges[:-1]) / 2
    counts = np.histogram(values, edges)[0]
    colours = np.full(len(counts), _BLUE, object)
    if flag_ends:
        colours[[0, -1]] = _ORANGE
    with _plot(name, xlabel, what, done) as plot:
        if log:
            plot.axes.set_xscale("log")
        ends = [edges[0], edges[-1], *([] if mark is None else [mark[1]])]
        plot.axes.set_xlim(min(ends), max(ends))
        plot.axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        plot.bars(counts, edges, what, colours)
        if expected is not None:
            plot.axes.plot(middles, expected, color=_ORANGE, linewidth=1.5, label="expected")
        if mark is not None:
            plot.axes.axvline(mark[1], color=_ORANGE, linewidth=1.5, linestyle="--", label=mark[0])
        if mark is not None or expected is not None:
            plot.axes.legend()
    return done[0]


def outlines(name: str, groups: dict[str, NDArray], edges: NDArray, xlabel: str, what: str) -> str:
    """How the values of up to three groups are spread, as outlines of histograms: shares of each group."""
    done: list[str] = []
    with _plot(name, xlabel, f"share of {what}", done) as plot:
        for (group, values), colour, style in zip(
            groups.items(), (_BLUE, _ORANGE, _SOFT), ("-", "--", "-"), strict=False
        ):
            shares = np.histogram(values, edges)[0] / max(1, len(values))
            plot.axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.5, label=group)
        if len(groups) > 1:
            plot.axes.legend()
    return done[0]


def whole_edges(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Edges between whole numbers, so that every bar holds equally many of them."""
    low, high = int(counts.min()), int(counts.max())
    step = -(-(high - low + 1) // _BARS)
    return np.arange(low - 0.5, high + step, step)


def _edges(values: NDArray, log: bool) -> NDArray[np.float64]:
    """Edges of bins that hold all values, fewer of them where there are few values."""
    bins = int(np.clip(2 * np.sqrt(len(values)), 8, _BARS))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if log:
        return np.geomspace(low / 1.01, high * 1.01, bins + 1)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def growth(
    name: str,
    models: NDArray,
    lds: NDArray,
    law: tuple[NDArray, NDArray] | None,
    levels: dict[str, float],
) -> str:
    """LDS against the number of models: points, the fitted law (models, LDS) and horizontal levels by name."""
    done: list[str] = []
    with _plot(name, "estimation models", "LDS", done) as plot:
        axes = plot.axes
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda models, _: f"{models:,.0f}")
        if law is not None:
            axes.plot(*law, color=_BLUE, linewidth=1.2, label="fitted law")
        axes.plot(models, lds, "o", color=_BLUE, markersize=5, label="measured")
        for (level, height), style in zip(levels.items(), ("--", ":"), strict=False):
            axes.axhline(height, color=_ORANGE, linewidth=1.5, linestyle=style, label=f"{level} {height:.3f}")
        heights = [0.0, *lds.tolist(), *levels.values()]
        beyond = 0.08 * (max(heights) - min(heights)) or 0.1
        axes.set_ylim(min(heights) - (beyond if min(heights) < 0 else 0), max(heights) + beyond)
        axes.legend(loc="lower right")
    return done[0]


def paths(name: str, ratios: NDArray, errors: NDArray, names: list[str], chosen: tuple[NDArray, NDArray]) -> str:
    """Errors [p, k] along shares `ratios` [k] of the largest lambda, and dots at those chosen (shares, errors) [p]."""
    done: list[str] = []
    styles = [(colour, style) for style in ("-", "--", ":") for colour in (_BLUE, _ORANGE)]
    with _plot(name, "lambda / largest lambda", "validation error", done) as plot:
        plot.axes.set_xscale("log")
        for line, label, at, height, (colour, style) in zip(errors, names, *chosen, styles, strict=False):
            plot.axes.plot(ratios, line, color=colour, linestyle=style, linewidth=1.3, label=label)
            plot.axes.plot(at, height, "o", color=colour, markersize=5)
        plot.axes.set_ylim(0, 1.15 * max(1.0, float(errors[:, 0].max()), float(chosen[1].max())))
        plot.axes.legend(ncols=2, fontsize=7.5)
    return done[0]


def density(name: str, x: NDArray, y: NDArray, xlabel: str, ylabel: str) -> str:
    """How many pairs fall where, with the diagonal."""
    done: list[str] = []
    both = np.concatenate([x, y])
    low, high = np.quantile(both, [0.001, 0.999])
    margin = 0.02 * (high - low) or 0.5
    ends = float(low - margin), float(high + margin)
    counts = np.histogram2d(y, x, _CELLS, (ends, ends))[0]
    cells = np.empty((*counts.shape, 4), np.uint8)
    cells[..., :3] = _MIDDLE_BLUE
    cells[..., 3] = np.where(counts > 0, 55 + 200 * np.log1p(counts) / np.log1p(max(1, counts.max())), 0)
    with _plot(name, xlabel, ylabel, done) as plot:
        plot.axes.imshow(cells, extent=(*ends, *ends), origin="lower", aspect="auto", interpolation="nearest")
        plot.axes.plot(ends, ends, color=_ORANGE, linewidth=1.2, linestyle="--", label="predicted = actual")
        plot.axes.legend(loc="upper left")
    return done[0]


def _svg(figure: Figure, plot: Plot) -> str:
    """The figure as one SVG element, its colours and font those of the page, without names of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="tip(\d+)">', lambda match: f"<g><title>{escape(plot.tips[int(match[1])])}</title>", text)
    text = re.sub(r'(<g|<text|<image) id="[^"]*"', r"\1", text)
    text = re.sub(r"font-family: [^;\"]*;?|font: (\d+)px [^;\"]*", _font, text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for name, colour in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}px" if match[1] else ""
