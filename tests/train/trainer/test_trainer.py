from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split, load
from datamodels.train.errors import Interrupted
from datamodels.train.store.writer import RowFailure, RowResult
from datamodels.train.trainer.trainer import Trainer, margin
from tests.conftest import tiny

CPU = torch.device("cpu")


def trainer(setting: Setting) -> Trainer:
    return Trainer(setting, load(setting), CPU)


def contents(results: list[RowResult | RowFailure]) -> list[bytes]:
    return [b"".join(array.tobytes() for array in result.arrays.values()) for result in results]


def test_a_group_gives_the_same_bytes_whatever_was_trained_before() -> None:
    setting = tiny()
    used = trainer(setting)
    used(0)
    used(2)
    assert contents(used(1)) == contents(trainer(setting)(1))


def test_rows_differ_and_hold_their_own_masks() -> None:
    setting = tiny()
    results = trainer(setting)(0)
    assert [result.row for result in results] == list(range(8))
    assert len(set(contents(results))) == 8
    assert all(result.arrays["train_masks"].sum() == 50 for result in results)
    assert {name: array.shape for name, array in results[0].arrays.items()} == {
        "train_masks": (100,),
        "train_margins": (100,),
        "train_logits": (100, 10),
        "test_margins": (60,),
        "test_logits": (60, 10),
    }


def test_training_learns() -> None:
    setting = tiny()
    longer = replace(setting, recipe=replace(setting.recipe, epochs=20, peak_epoch=4, width=8))
    results = trainer(longer)(0)
    assert np.mean([result.train_accuracy for result in results]) > 0.9
    assert np.mean([result.accuracy for result in results]) > 0.5


def test_margins_are_the_correct_logit_minus_the_largest_other() -> None:
    logits = torch.randn(20, 5)
    labels = torch.arange(20) % 5
    for found, row, label in zip(margin(logits, labels), logits, labels, strict=True):
        others = torch.cat([row[:label], row[label + 1 :]])
        assert found == row[label] - others.max()


def test_margins_match_the_logits_that_are_kept() -> None:
    result = trainer(tiny())(0)[3]
    logits = torch.from_numpy(result.arrays["test_logits"]).float()
    labels = torch.from_numpy(load(tiny()).test.labels)
    np.testing.assert_allclose(result.arrays["test_margins"], margin(logits, labels), atol=0.02)


def test_rows_that_diverge_fail_with_their_reason() -> None:
    setting = tiny()
    wild = trainer(replace(setting, recipe=replace(setting.recipe, lr=1e30)))
    results = wild(0)
    assert all(isinstance(result, RowFailure) for result in results)
    assert {result.reason for result in results} == {"train_margins not finite"}


def test_a_row_that_diverges_changes_no_byte_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    good = trainer(tiny())(0)
    poisoned = trainer(tiny())
    parameters = poisoned.engines[0].parameters
    reset = parameters.reset

    def poison(*given: Any) -> None:
        reset(*given)
        parameters.value[parameters.row == 3] = torch.nan

    monkeypatch.setattr(parameters, "reset", poison)
    results = poisoned(0)
    assert isinstance(results.pop(3), RowFailure)
    assert contents(results) == contents([result for result in good if result.row != 3])


def test_a_value_beyond_float16_is_a_failure_and_never_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    used = trainer(tiny())
    logits = {"train": torch.zeros(8, 100, 10), "test": torch.zeros(8, 60, 10)}
    logits["test"][5, 5, 0] = 65_600.0
    monkeypatch.setattr(used.engines[0], "evaluate", lambda split, stop: logits[split])
    results = used(0)
    failed = results.pop(5)
    assert isinstance(failed, RowFailure)
    assert failed.reason == "test_margins outside float16's range"
    assert all(isinstance(result, RowResult) for result in results)


def test_bernoulli_rows_of_different_sizes_train_together() -> None:
    setting = tiny(mask="bernoulli", alpha=0.25)
    results = trainer(setting)(0)
    sizes = [int(result.arrays["train_masks"].sum()) for result in results]
    assert len(set(sizes)) > 1
    assert contents(results) == contents(trainer(setting)(0))


def test_an_empty_bernoulli_subset_is_a_failure() -> None:
    setting = tiny(mask="bernoulli", alpha=0.01)
    results = [result for group in range(3) for result in trainer(setting)(group)]
    reasons = {result.reason for result in results if isinstance(result, RowFailure)}
    assert reasons == {"empty training subset"}


def test_stopping_leaves_no_result() -> None:
    calls = iter([False, False, True])
    with pytest.raises(Interrupted):
        trainer(tiny())(0, lambda: next(calls))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resnet9_trains_in_every_precision(precision: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 4
    images = (rng.integers(0, 60, (64, 32, 32, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    split = Split(images, labels)
    dataset = Dataset(split, split, tuple("abcd"), (125.0,) * 3, (50.0,) * 3, "here")
    recipe = Recipe(
        width=4, epochs=8, peak_epoch=3, batch=8, lr=0.03, precision=precision, device="cpu", threads=1, cutout=0
    )
    setting = Setting(alpha=0.5, models=2, eval_models=0, recipe=recipe, data=Data())
    result = Trainer(setting, dataset, CPU)(0)[0]
    assert isinstance(result, RowResult)
    assert result.train_accuracy > 0.6
