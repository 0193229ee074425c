import re
from argparse import Namespace

import pytest

from bench import lasso, lasso_agree
from tests.stores import linear_data


@pytest.mark.parametrize("rows", [60, 600])
def test_scikit_learn_agrees_on_lambda_and_weights(capsys, rows):
    masks, margins = linear_data(rows, 40, 3)
    lasso_agree.run(masks, margins)
    out = capsys.readouterr().out
    assert out.startswith("lambda the same in 3 of 3 targets")
    assert float(re.search(r"weights apart by at most (\S+),", out)[1]) < 1e-6


def test_every_solver_of_the_path_meets_its_gap(capsys):
    options = Namespace(
        examples=40,
        models=600,
        targets=2,
        alpha=[0.5],
        small=[0.05],
        mask="exact",
        empty=0.0,
        limit=10.0,
        skip=["SAGA"],
    )
    lasso.path(options)
    rows = re.findall(r"^(\S.*?) {2,}[\d.]+ +[\d.]+ +2  (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert rows[0][0] == "datamodels"
    assert all(float(gap) <= 1.01e-4 for _, gap in rows), rows
