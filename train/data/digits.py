"""scikit-learn's 1,797 real 8x8 digits (UCI optdigits): the first 100 for training, the rest for testing."""

import numpy as np

from datamodels.train.config import Data
from datamodels.train.data.images import Examples, Split

MEAN, STD = (77.0,), (96.0,)
N_TRAIN = 100


def read(data: Data) -> Examples:
    """Return the digits, in the order of scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train, test = Split(images[:N_TRAIN], labels[:N_TRAIN]), Split(images[N_TRAIN:], labels[N_TRAIN:])
    return Examples(train, test, tuple("0123456789"), "scikit-learn's own copy")
