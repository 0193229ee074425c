"""Rows that are trained in roots apart and merged are those of one root, and the setting goes on from there."""

import json
from pathlib import Path

import numpy as np
import pytest

import datamodels as dm
from datamodels.train.store import Layout, Store, Writer
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.stores import damage, invalidate


def test_roots_trained_apart_come_together_as_one(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: str, root: str, *options: object) -> Outcome:
        return in_process(capsys, command, DIGITS, *options, "--root", tmp_path / root, *TINY)

    for root, rows in (("one", "0:12"), ("two", "10:24")):  # groups of 8 rows
        assert run("init", root).code == 0
        assert run("train", root, "--rows", rows, "--workers=1").code == 0
    one, two = (Store.open(Layout(tmp_path / root, "digits", "50pct")) for root in ("one", "two"))
    damage(two, "train_margins", [20])
    merged = run("merge", "all", one.layout.root, two.layout.root)
    assert merged.code == 1
    assert merged.out.splitlines()[:3] == [
        f"{one.layout.root}: 12 rows merged, 0 there already",
        f"row 20 of {two.layout.root} is left out: train_margins does not match its checksum",
        f"{two.layout.root}: 11 rows merged, 2 there already, 1 bad",
    ]
    assert f"{tmp_path / 'all/digits/data'}: 23 of 32 rows done, 9 missing, 0 failed, " in merged.out

    assert run("train", "all", "--workers=1").code == 0
    assert run("verify", "all", "--retrain=2").out.splitlines()[-1] == "32 rows checked, 0 bad"
    assert run("fit", "all").code == 0
    for path in trained.glob("digits/data/*.npy"):
        assert path.read_bytes() == (tmp_path / "all/digits/data" / path.name).read_bytes(), path.name
    one_fit, whole_fit = (dm.load(dm.open(root)) for root in (tmp_path / "all", trained))
    assert np.array_equal(one_fit.weight, whole_fit.weight)

    damage(two, "train_margins", [20])
    found = json.loads(run("merge", "all", two.layout.root, "--json").out)
    told = {"merged": 0, "present": 14, "failed": 0, "differ": [], "bad": [], "held": []}
    assert found["sources"] == [{"source": str(two.layout.root), **told}]
    assert (found["done"], found["total"], found["hosts"]) == (32, 32, {one.states.readers[0].provenance["host"]: 32})

    store = Store.open(Layout(tmp_path / "all", "digits", "50pct"))
    invalidate(store, [3, 11])
    writer = Writer(store, {})
    assert writer.lease(0)
    waits = run("merge", "all", one.layout.root)
    assert waits.code == 75
    assert "1 row merged, 10 there already, 1 in the hands of another process" in waits.out
    writer.close()
    assert run("merge", "all", one.layout.root).code == 0
    assert np.load(store.layout.completed).all()


def test_calls_that_make_no_sense_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "merge", DIGITS, "--root", tmp_path / "all", *TINY
    assert "SOURCE is missing" in in_process(capsys, *given).error
    told = in_process(capsys, *given, tmp_path / "none").error
    assert (
        told == f"error: {tmp_path / 'none/digits/data/store_50pct.json'} does not exist: expected the root of a store"
    )
