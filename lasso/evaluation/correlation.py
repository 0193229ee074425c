"""Correlations of many columns at once."""

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.float64]
"""[n, t]: n observations of t targets"""


def spearman(a: Columns, b: Columns) -> NDArray[np.float64]:
    """Spearman's rank correlation of every column of a with that of b, [n, t] each: [t], nan where one is constant."""
    return pearson(ranks(a), ranks(b))


def pearson(a: Columns, b: Columns) -> NDArray[np.float64]:
    """Pearson's correlation of every column of a with that of b, [n, t] each: [t], nan where one is constant."""
    varies = (a != a[:1]).any(axis=0) & (b != b[:1]).any(axis=0)  # a mean that is rounded would hide it
    a, b = (side - side.mean(axis=0) for side in (a, b))
    scale = np.sqrt((a**2).sum(axis=0)) * np.sqrt((b**2).sum(axis=0))
    product = (a * b).sum(axis=0)
    return np.divide(product, scale, out=np.full_like(product, np.nan), where=varies)


def ranks(values: Columns) -> Columns:
    """Ranks 1 .. n down each column of values [n, t]; equal values share the mean of theirs."""
    order = np.argsort(values, axis=0)
    ascending = np.take_along_axis(values, order, axis=0)
    place = np.arange(1.0, len(values) + 1)[:, None]
    differs = np.ones((1, values.shape[1]), bool)
    step = ascending[1:] != ascending[:-1]
    first = np.maximum.accumulate(np.where(np.vstack([differs, step]), place, 0.0), axis=0)
    last = np.minimum.accumulate(np.where(np.vstack([step, differs]), place, np.inf)[::-1], axis=0)[::-1]
    result = np.empty_like(ascending)
    np.put_along_axis(result, order, (first + last) / 2, axis=0)
    return result
