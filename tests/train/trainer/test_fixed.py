"""`fixed`: what is drawn from row 0's streams for every row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodels.train.config import Setting, identity
from datamodels.train.data import load
from datamodels.train.errors import UserError
from datamodels.train.trainer import Trainer
from tests.conftest import tiny
from tests.train.trainer.test_custom_model import WILD

ALL = ["initialisation", "order", "augmentation"]


def margins(fixed: list[str], number: int = 3, **recipe: Any) -> np.ndarray:
    """Test margins [rows, targets] of a group; rows 24 and 25 of group 3 share a mask, as do 26 and 27."""
    setting = tiny(fixed=fixed)
    setting.recipe = replace(setting.recipe, translate=1, **recipe)
    rows = Trainer(setting, load(setting), torch.device("cpu"))(number)
    return np.stack([row.arrays["test_margins"] for row in rows])


def test_with_all_fixed_rows_differ_by_their_masks_alone() -> None:
    found = margins(ALL)
    assert (found[0] == found[1]).all()
    assert (found[2] == found[3]).all()
    assert (found[0] != found[2]).any()
    np.testing.assert_array_equal(margins(ALL, 0)[0], margins([], 0)[0], "row 0 has its own streams")


@pytest.mark.parametrize("left_out", ALL)
def test_what_is_not_fixed_varies_between_runs_of_a_mask(left_out: str) -> None:
    found = margins([name for name in ALL if name != left_out])
    assert (found[0] != found[1]).any()


def test_a_custom_networks_own_draws_are_fixed_too(tmp_path: Path) -> None:
    (tmp_path / "wild.py").write_text(WILD)
    network = {"network": str(tmp_path / "wild.py"), "group": 1, "width": 64}
    np.testing.assert_array_equal(margins(ALL, 24, **network), margins(ALL, 25, **network))
    assert (margins(ALL[:2], 24, **network) != margins(ALL[:2], 25, **network)).any()


def test_the_order_of_the_list_does_not_matter_and_others_are_refused() -> None:
    assert identity(tiny(fixed=ALL).to_dict()) == identity(tiny(fixed=ALL[::-1]).to_dict())
    assert identity(tiny(fixed=ALL).to_dict()) != identity(tiny().to_dict())
    with pytest.raises(UserError, match=r"fixed is \['mask'\], expected a list out of augmentation, initialisation"):
        Setting(fixed=["mask"])
