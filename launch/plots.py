"""The report's plots, as SVG text that fits light and dark pages. Every plot's title says n."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_GREY, _BLUE, _ORANGE = "#808080", "#3b7dd8", "#d9822b"

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "datamodels",
    "font.family": "sans-serif",
    "text.color": _GREY,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.titlecolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


def histogram(values: NDArray, title: str, label: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """How often values fall where; `marks` are vertical lines with their names."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.hist(values, bins=60, color=_BLUE)
        for place, name in marks:
            axes.axvline(place, color=_ORANGE, linewidth=1.5, label=f"{name} {place:.3f}")
        if marks:
            axes.legend(frameon=False)
        axes.set(title=title, xlabel=label, ylabel="count")
        return _svg(figure)


def curve(models: Sequence[int], lds: Sequence[float], ceiling: float | None, title: str) -> str:
    """LDS against the number of models, with the ceiling where there is one."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.plot(models, lds, "o-", color=_BLUE, label="LDS")
        if ceiling is not None:
            axes.axhline(ceiling, color=_ORANGE, linestyle="--", label=f"ceiling {ceiling:.3f}")
        axes.set_xscale("log")
        axes.set_ylim(bottom=min(0.0, *lds))
        axes.set(title=title, xlabel="estimation models", ylabel="LDS")
        axes.legend(frameon=False)
        return _svg(figure)


def scatter(predicted: NDArray, actual: NDArray, title: str) -> str:
    """Predicted against actual margins, with the diagonal."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        axes.plot(actual, predicted, ".", markersize=2, alpha=0.4, color=_BLUE, rasterized=True)
        ends = [float(min(actual.min(), predicted.min())), float(max(actual.max(), predicted.max()))]
        axes.plot(ends, ends, color=_ORANGE, linewidth=1)
        axes.set(title=title, xlabel="actual margin", ylabel="predicted margin")
        return _svg(figure)


def _figure() -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def thumbnail(image: NDArray[np.uint8]) -> str:
    """An image [H, W, C] as a data URL of a PNG."""
    import base64

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
