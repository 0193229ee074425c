"""An evaluation as lines of text."""

from datamodels.lasso import Evaluation

Lines = list[tuple[str, str]]
"""(name, figure and what there is to know about it)"""


def headline(found: Evaluation) -> Lines:
    """LDS with its interval, and its ceiling."""
    lds = f"{found.lds:.4f}"
    if interval := found.lds_interval:
        lds += f", {interval.level:.0%} interval {interval.low:.4f} to {interval.high:.4f}"
    lines = [("LDS", lds)]
    if found.ceiling is not None:
        lines.append(("ceiling", f"{found.ceiling:.4f}"))
    return lines


def everything(found: Evaluation) -> Lines:
    """All figures of an evaluation, with n."""
    output = found.protocol["output"]
    return [
        *headline(found),
        ("Pearson", f"{found.pearson:.4f}"),
        ("R2", f"{found.r2:.4f}"),
        ("MSE", f"{found.mse:.4f} squared {'logits' if output == 'margins' else output}"),
        ("targets", f"{found.targets}, {found.undefined} of them without a rank correlation (counted as 0)"),
        ("models", f"{found.models} for evaluation, with {found.masks} masks"),
    ]


def aligned(lines: Lines) -> str:
    """The lines as text in two columns."""
    return "\n".join(f"{name:12} {value}" for name, value in lines)
