import math
from pathlib import Path

import pytest

from datamodels.train.config import Recipe, Setting, from_dict, identity, read_setting
from datamodels.train.errors import UserError
from tests.conftest import PROJECT, tiny

PUBLISHED = {  # README of MadryLab/datamodels-data
    "cifar_10pct": 1_500_000,
    "cifar_20pct": 750_000,
    "cifar_50pct": 300_000,
    "cifar_75pct": 600_000,
    "fmow_20pct": 375_000,
    "fmow_50pct": 150_000,
    "fmow_75pct": 300_000,
}


@pytest.mark.parametrize("alpha", [0, 1, -1, 2, math.nan, math.inf])
def test_alpha_outside_zero_and_one_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha is"):
        Setting(alpha=alpha)


def test_every_alpha_of_up_to_four_digits_is_accepted_and_named_after_itself() -> None:
    for n in range(1, 10_000):
        assert Setting(alpha=n / 10_000).pct == f"{n / 100:g}"


@pytest.mark.parametrize(("alpha", "pct"), [(0.5, "50"), (0.125, "12.5"), (0.1, "10"), (0.35, "35")])
def test_percentages_are_printed_as_published(alpha: float, pct: str) -> None:
    assert Setting(alpha=alpha).pct == pct


def test_an_alpha_that_its_file_name_would_round_is_refused() -> None:
    with pytest.raises(UserError, match=r"12\.3457 % does not"):
        Setting(alpha=0.123456789)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models", 0),
        ("eval_models", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("runs_per_mask", 0),
        *(("dataset", name) for name in ("..", "a/b", "/etc", "A", "", "../x")),
    ],
)
def test_values_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{key} is"):
        Setting(**{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": math.nan},
        {"lr": math.inf},
        {"epochs": 0},
        {"peak_epoch": 24},
        {"momentum": 1},
        {"batch": 0},
        {"group": 2},
    ],
)
def test_recipes_that_cannot_be_trained_are_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.{next(iter(changes))} is"):
        Recipe(**changes)


def test_a_setting_survives_its_dictionary() -> None:
    setting = tiny(alpha=0.25, seed=7)
    assert from_dict(setting.to_dict()) == setting


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fit: {solver: fista}", "fit.solver is 'fista', expected no such key: there is one solver"),
        ("data: {form: beton-raw}", "data.form is 'beton-raw', expected `npy`, which holds the same pixels"),
        (
            "data: {form: beton-jpeg}",
            "data.form is 'beton-jpeg', expected `beton`, with its two files in data.root",
        ),
    ],
)
def test_a_config_with_what_0_1_had_is_told_what_to_use(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        read_setting(tmp_path / "x.yaml")
    assert str(told.value).startswith(f"{tmp_path}/x.yaml: {said}")
    assert "\n" not in str(told.value)


def test_what_may_change_is_not_part_of_the_identity() -> None:
    setting = tiny()
    other = tiny(models=48)
    other.data.root, other.recipe.device, other.outputs.preallocate, other.fit.share = "x", "cuda", False, 0.2
    assert identity(setting.to_dict()) == identity(other.to_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_setting_has_its_file(name: str) -> None:
    setting = read_setting(PROJECT / "configs" / f"{name}.yaml")
    assert (setting.models, setting.eval_models) == (PUBLISHED[name], 10_000)
    assert f"{setting.dataset}_{setting.pct}pct" == name
    assert setting.outputs.test_logits == setting.outputs.train_logits == name.startswith("cifar")


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*_*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_a_valid_setting(path: Path) -> None:
    assert read_setting(path).rows > 0


def test_the_default_recipe_is_the_published_one_of_cifar() -> None:
    recipe = read_setting(PROJECT / "configs" / "cifar_50pct.yaml").recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.5, 0.9, 5e-4, 0.1)
    assert (recipe.batch, recipe.epochs, recipe.peak_epoch, recipe.width) == (512, 24, 5, 64)
    assert (recipe.flip, recipe.translate, recipe.cutout) == (True, 2, 4)
