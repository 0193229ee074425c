"""Leave-one-out: are a datamodel's weights what happens when an example is removed from the whole training set?

    datamodels run examples/digits.yaml
    python examples/removal.py

The first command fits datamodels to models of random halves of 100 digits. This file trains the same classifier on
all of them and without each one, and compares.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import datamodels as dm


def write_masks(path, n_train, base_runs, runs):
    """Write the masks: the whole training set, then the set without each example, `runs` times each."""
    whole = np.ones((base_runs, n_train), dtype=bool)
    np.save(path, np.concatenate([whole, ~np.eye(n_train, dtype=bool).repeat(runs, axis=0)]))


def compare(digits, removal):
    """Print how the removal effects, of each example on each target, agree with the weights of the datamodels."""
    weight = dm.load(digits).weight  # [N_train, T]
    margins = removal.margins("test").astype(np.float32)
    base, removed = margins[: removal.models], margins[removal.models :]
    effect = base.mean(axis=0) - removed.reshape(len(weight), -1, margins.shape[1]).mean(axis=1)  # [N_train, T]
    found = dm.evaluate(removal, weight)
    low, high = found.lds_interval.low, found.lds_interval.high
    print(f"{len(weight)} removal effects and weights, correlation over examples, mean over {found.targets} targets:")
    print(
        f"Pearson {found.pearson:.2f}, Spearman {found.lds:.2f} ({low:.2f} to {high:.2f}, ceiling {found.ceiling:.2f})"
    )
    example, target = np.unravel_index(np.abs(effect).argmax(), effect.shape)
    names = removal.names("train")[example], removal.names("test")[target]
    print(f"largest: without {names[0]}, the margin of {names[1]} falls by {effect[example, target]:.2f}", end="")
    print(f"; its weight is {weight[example, target]:.2f}")


if __name__ == "__main__":
    Path("runs").mkdir(exist_ok=True)
    write_masks("runs/removal.npy", n_train=100, base_runs=100, runs=10)
    for command in ("init", "train"):
        subprocess.run([sys.executable, "-m", "datamodels", command, "examples/removal.yaml"], check=True)
    compare(dm.open("runs/digits"), dm.open("runs/removal"))
