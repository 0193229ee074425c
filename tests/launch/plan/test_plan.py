"""`plan`: every figure from rows that were measured, and none where no row was."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.lasso import files, fit_bytes
from datamodels.lasso.evaluation import Curve, Law, Point, write_curve
from datamodels.launch.plan import Terms, describe, plan
from datamodels.train.store import Store
from tests.conftest import DIGITS, PROJECT, TINY, in_process
from tests.faults.stores import create, result, setting, writing

CIFAR = PROJECT / "configs" / "cifar_50pct.yaml"
CPU, LOOM = {"device": "Abacus", "on": "cpu"}, {"device": "Loom", "on": "cuda:0"}


def planned(capsys: pytest.CaptureFixture[str], config: Path, *options: object) -> dict[str, Any]:
    done = in_process(capsys, "plan", config, *options, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def measure(store: Store, rows: range, seconds: float, **made: Any) -> Store:
    """Commit rows, groups of 4, as if an attempt with this record had trained them."""
    with writing(store, **made) as writer:
        for first in rows[::4]:
            with writer.leased(first // 4):
                results = [result(store, row) for row in range(first, min(first + 4, rows.stop))]
                writer.commit([dataclasses.replace(each, seconds=seconds) for each in results])
    store.refresh()
    return store


def test_bytes_are_those_that_init_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--outputs.test_logits=true", "--root", tmp_path / "root"]
    before = planned(capsys, DIGITS, *options)
    assert not (tmp_path / "root").exists()
    assert in_process(capsys, "init", DIGITS, *options).code == 0
    data = tmp_path / "root" / "digits" / "data"
    assert before["bytes"] == {name: (data / f"{name}_50pct.npy").stat().st_size for name in before["bytes"]}
    assert before["total_bytes"] == sum(before["bytes"].values())
    assert planned(capsys, DIGITS, *options)["bytes"] == before["bytes"]


def test_bytes_of_a_fit_are_those_of_its_file(tmp_path: Path) -> None:
    n_train, targets = 300, 170
    vectors = {name: np.zeros(targets, kind) for name, kind in files.VECTORS.items()}
    draft = files.Draft(vectors, {name: np.zeros(n_train) for name in files.EXAMPLES})
    report = {"weight_units": "mask"}
    path = files.write(tmp_path / "test_50pct.pt", draft, np.zeros((n_train, targets), np.float32), report)
    assert 0 <= path.stat().st_size - fit_bytes(n_train, targets) < 8192


def test_published_sizes_need_no_data_and_a_refusal_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--root", tmp_path / "none", "--data.root", tmp_path, "--budget=1"]
    done = in_process(capsys, "plan", CIFAR, *options)
    assert done.err == f"no cifar data in {tmp_path}: sizes are those of the published data set\n"
    assert "2 GB of disk for datamodels of the test examples" in done.out
    assert "`eval --curve` takes 20 GB of disk meanwhile" in done.out
    assert "hours of training buy" in done.out
    assert planned(capsys, CIFAR, *options)["fit"]["bytes"] == fit_bytes(50_000, 10_000)
    assert str(tmp_path) in in_process(capsys, "plan", CIFAR, *options, "--probe=1").error


def test_where_nothing_was_measured_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, DIGITS, *TINY, "--root", tmp_path / "root", "--budget=5", "--price=2")
    assert [found[key] for key in ("seconds_per_row", "hours", "money", "expected")] == [None] * 4
    assert [one["models"] for one in found["budget"]] == [None] * 4
    text = describe(found)
    assert "not measured: `--probe 2` measures them" in text
    assert "run `datamodels eval CONFIG --curve`" in text


def test_rows_that_are_done_give_seconds_hours_and_money_of_the_others(tmp_path: Path) -> None:
    """14 rows in groups of 4 by CPU workers of 2 threads; 4 of the same rows at alpha 0.2 took a second less."""
    recipe = dataclasses.replace(setting().recipe, threads=2)
    store = create(tmp_path, setting(recipe=recipe))
    measure(store, range(4), 3.0, **CPU)
    measure(store, range(4, 8), 5.0, **CPU)
    measure(create(tmp_path, setting(recipe=recipe, alpha=0.2, models=4)), range(4), 3.0, **CPU)
    found = plan(store.setting, store.layout, Terms(price=2.5, money=0.25))

    rate = found["seconds_per_row"]
    assert (found["missing"], rate["seconds"], rate["device"], rate["source"]) == (6, 4.0, "Abacus", "store")
    assert rate["basis"] == f"8 rows in 2 groups, standard deviation 35%, in {store.layout.data}"
    assert found["hours_of"] == "CPU core"
    assert found["hours"] == pytest.approx(6 * 4 * 2 / 3600)
    assert found["hours_in_all"] == pytest.approx(14 * 4 * 2 / 3600)
    assert found["money"] == pytest.approx(2.5 * found["hours"])

    assert found["budget_hours"] == pytest.approx(0.1)  # 360 seconds of a core: 45 rows at alpha 0.5, 60 at 0.2
    assert {one["alpha"]: one["models"] for one in found["budget"]} == {0.1: None, 0.2: 56, 0.5: 40, 0.75: None}
    text = describe(found)
    assert "4 of one worker on Abacus" in text
    assert "   0.2        3         56      -  4 rows in 1 group, no spread known" in text
    assert "  0.75        -          -      -  not measured: `--probe 2` measures it" in text


def test_a_budget_that_does_not_pay_for_the_evaluation_rows_buys_no_models(tmp_path: Path) -> None:
    store = measure(create(tmp_path), range(8), 4.0, **CPU)
    (bought,) = [one for one in plan(store.setting, store.layout, Terms(budget=0.001))["budget"] if one["models"] == 0]
    assert (bought["alpha"], bought["expected"]) == (0.5, None)


def test_seconds_of_another_setting_device_or_number_of_groups_are_not_taken(tmp_path: Path) -> None:
    store = create(tmp_path)
    measure(store, range(4), 3.0, **LOOM, concurrent_groups=1)
    measure(store, range(4, 8), 2.0, **LOOM, concurrent_groups=2)
    measure(store, range(8, 12), 2.5, **LOOM, concurrent_groups=2)
    measure(store, range(12, 14), 9.0, **CPU)
    measure(create(tmp_path, setting(alpha=0.2)), range(4), 9.0, **CPU)
    longer = dataclasses.replace(setting().recipe, epochs=99)
    measure(create(tmp_path, setting(alpha=0.75, recipe=longer)), range(4), 3.0, **LOOM)

    found = {workers: plan(store.setting, store.layout, Terms(workers=workers, budget=1)) for workers in (1, 2, 3)}
    assert [each["seconds_per_row"]["seconds"] for each in found.values()] == [3.0, 2.25, 2.25]
    assert found[3]["seconds_per_row"]["basis"].endswith("measured with 2 groups at a time, not 3")
    assert "measured with" not in found[2]["seconds_per_row"]["basis"]
    assert "2.25 with 2 groups at a time on Loom" in describe(found[2])
    assert found[1]["hours_of"] == "GPU"
    assert [one["alpha"] for one in found[1]["budget"] if one["seconds_per_row"]] == [0.5]


def test_a_probe_measures_each_alpha_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = planned(capsys, DIGITS, *TINY, "--root", tmp_path / "root", "--probe=2", "--budget=1")
    assert found["seconds_per_row"]["source"] == "probe"
    assert found["seconds_per_row"]["basis"] == "8 rows in 1 group, no spread known, trained by --probe"
    assert all(one["seconds_per_row"]["seconds"] > 0 for one in found["budget"])
    assert list(tmp_path.iterdir()) == []
    basis = planned(capsys, DIGITS, *TINY, "--root", tmp_path / "root", "--probe=1")["seconds_per_row"]["basis"]
    assert basis.endswith("trained by --probe, warm-up included")


def test_a_kept_curve_gives_the_lds_to_expect(tmp_path: Path) -> None:
    store = measure(create(tmp_path), range(8), 4.0, **CPU)
    law = Law(limit=0.8, power=1.0, weakening=20.0, error=0.01, enough={})
    write_curve(store, "test", Curve([Point(24, 0.5, 1.0, 0.1)], 60, None, law))
    found = plan(store.setting, store.layout, Terms(budget=0.1))

    expected = float(law.at(np.array([10.0]))[0])
    assert found["expected"] == {"lds": pytest.approx(expected), "error": 0.01, "measured_to": 24, "current": True}
    assert f"{expected:.3f} expected, from the curve of up to 24 models" in describe(found)
    (bought,) = [one for one in found["budget"] if one["expected"]]
    assert bought["alpha"] == 0.5
    assert bought["expected"]["lds"] == pytest.approx(float(law.at(np.array([float(bought["models"])]))[0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget=0"], "--budget is 0.0, expected a finite number above 0"),
        (["--price=-1"], "--price is -1.0, expected"),
        (["--workers=0"], "--workers is 0, expected at least 1"),
        (["--probe=-1"], "--probe is -1, expected at least 0"),
        (["--money=5"], "--money is given without --price"),
        (["--money=5", "--price=1", "--budget=3"], "--budget and --money are both given"),
        (["--probe=many"], "probe"),
    ],
)
def test_terms_that_make_no_sense_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in in_process(capsys, "plan", DIGITS, *TINY, "--root", tmp_path / "none", *options).error
