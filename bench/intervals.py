"""How often intervals of the LDS hold the truth, and what they cost: `python -m bench.intervals`.

Predictions are sums of 20 normal factors; margins add noise, of which all targets of a mask share 30 % of the variance.
The truth is the mean LDS of 3,000 samples of as many masks, and its bias the distance to that of 200,000 masks. Plain
percentiles of the same replicates stand beside our intervals.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.evaluation.correlation import spearman
from datamodels.lasso.evaluation.intervals import Bootstrap, Interval

Columns = NDArray[np.float64]
TARGETS, LEVEL, REPLICATES = 40, 0.95, 1000


def sample(rng: np.random.Generator, masks: int, pearson: float) -> tuple[Columns, Columns]:
    """Predictions and margins [masks, TARGETS] that correlate by `pearson`."""
    factors = np.random.default_rng(5).normal(size=(20, TARGETS))
    predicted = rng.normal(size=(masks, 20)) @ factors / np.sqrt((factors**2).sum(axis=0))
    noise = np.sqrt(0.3) * rng.normal(size=(masks, 1)) + np.sqrt(0.7) * rng.normal(size=(masks, TARGETS))
    return predicted, predicted + np.sqrt(1 / pearson**2 - 1) * noise


def coverage(masks: int, pearson: float, trials: int) -> str:
    rng = np.random.default_rng(0)
    bias = -spearman(*sample(rng, 200_000, pearson)).mean()
    truth = np.mean([spearman(*sample(rng, masks, pearson)) for _ in range(3000)], axis=0)
    bias += truth.mean()
    held = np.zeros(3)
    for trial in range(trials):
        predicted, margins = sample(rng, masks, pearson)
        bootstrap, estimate = Bootstrap(masks, REPLICATES, LEVEL, trial), spearman(predicted, margins)
        low, high, total = bootstrap.targets(estimate, predicted, margins)
        interval = Interval.of(float(estimate.mean()), total / TARGETS, LEVEL, REPLICATES)
        first, last = np.quantile(total[:REPLICATES] / TARGETS, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        held[0] += interval.low <= truth.mean() <= interval.high
        held[1] += first <= truth.mean() <= last
        held[2] += ((low <= truth) & (truth <= high)).mean()
    mean, percentile, each = held / trials
    return f"{masks:6} {truth.mean():6.3f} {bias:7.4f} {mean:7.1%} {percentile:12.1%} {each:9.1%}"


def cost(masks: int, targets: int) -> str:
    """CPU nanoseconds for each mask, target and resample, compilation excluded."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(masks, targets))
    margins = (predicted + rng.normal(size=predicted.shape)).astype(np.float16).astype(np.float64)
    bootstrap, estimate = Bootstrap(masks, REPLICATES, LEVEL, 0), spearman(predicted, margins)
    bootstrap.targets(estimate[:1], predicted[:, :1], margins[:, :1])
    start = time.process_time()
    bootstrap.targets(estimate, predicted, margins)
    return f"{masks:6} {(time.process_time() - start) * 1e9 / (masks * targets * bootstrap.resamples):6.2f} ns"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="samples of which the intervals are counted")
    trials = parser.parse_args().trials
    print(f"{'masks':>6} {'LDS':>6} {'bias':>7} {'mean':>7} {'percentiles':>12} {'targets':>9}")
    for masks in (50, 100, 200):
        for pearson in (0.3, 0.65, 0.9):
            print(coverage(masks, pearson, trials), flush=True)
    for masks, targets in ((100, 2000), (500, 1000), (10_000, 50)):
        print(cost(masks, targets), flush=True)


if __name__ == "__main__":
    main()
