"""quanda's LinearDatamodelingMetric on our subsets and checkpoints."""

import numpy as np
import pytest
from conftest import ROWS
from scipy.special import logsumexp
from scipy.stats import spearmanr


def trak_margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The correct logit minus the log-sum-exp of the others, for logits [S, T, C]."""
    correct = labels[None, :, None] == np.arange(logits.shape[2])
    return logits[:, correct[0]] - logsumexp(np.where(correct, -np.inf, logits), axis=2)


def test_quandas_lds_is_that_of_the_stored_logits(block, stored) -> None:
    names = block("LinearDatamodelingMetric")
    rows = slice(*ROWS)
    predicted = stored("train_masks")[rows].astype(float) @ names["weight"].numpy()
    margins = trak_margins(stored("test_logits")[rows].astype(float), names["labels"][100:300].numpy())
    expected = [spearmanr(predicted[:, j], margins[:, j]).statistic for j in range(200)]
    assert names["lds"] == pytest.approx(np.nan_to_num(expected).mean(), abs=5e-3)  # logits are stored as float16
    assert names["lds"] > 0.2


def test_every_checkpoint_is_a_model_of_its_own(block, stored) -> None:
    names = block("LinearDatamodelingMetric")
    metric, labels = names["metric"], names["labels"][100:300].numpy()
    for place in (0, 1, 39):
        logits = metric.load_counterfactual_model(place)(names["images"][100:300]).detach().numpy()
        np.testing.assert_allclose(logits, stored("test_logits")[ROWS[0] + place], atol=0.02, rtol=2e-3)
        assert ((logits.argmax(1) == labels) == (stored("test_margins")[ROWS[0] + place] > 0)).mean() > 0.99
