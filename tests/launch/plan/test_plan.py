"""`plan`: every figure from what was measured, and none where nothing was."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.lasso import files, fit_bytes
from datamodels.lasso.evaluation.curve import Curve, Law, Point
from datamodels.launch.lds_curve import keep
from datamodels.launch.plan.plan import Plan, Terms
from datamodels.launch.plan.rates import Rate, choose, line
from datamodels.launch.plan.text import describe
from datamodels.train.config import Setting
from datamodels.train.store.layout import Layout
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process

CIFAR = PROJECT / "configs" / "cifar_50pct.yaml"
SMALL = ["--models=1500", "--eval_models=500", "--recipe.network=resnet9"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Benchmarks of two devices that nobody has, one of them measured twice."""
    tables = {
        "2026-01-01-old": ("Abacus", {0.1: 9.0, 0.5: 9.0}),
        "2026-02-01-abacus": ("Abacus", {0.1: 1.0, 0.2: 1.5, 0.5: 3.0, 0.75: 4.25}),
        "2026-02-01-loom": ("Loom", {0.5: 1.0}),
    }
    for name, (device, seconds) in tables.items():
        rows = [{"dataset": "cifar", "alpha": alpha, "seconds_per_row": one} for alpha, one in seconds.items()]
        content = {"device": device, "torch": "2.0", "rows": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], config: Path, *options: object) -> dict[str, Any]:
    done = in_process(capsys, "plan", config, *options, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


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


def test_what_a_fit_writes_is_told_beside_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, CIFAR, "--root", tmp_path / "none", "--budget=1")
    assert found["fit"]["bytes"] == fit_bytes(50_000, 10_000)
    assert found["total_bytes"] == sum(found["bytes"].values())
    told = describe(found)
    assert "2 GB of disk for datamodels of the test examples" in told
    assert "`eval --curve` takes 20 GB of disk meanwhile" in told
    assert "hours of training buy" in told
    assert "Fits, evaluation and the report come on top" in told


def test_where_nothing_was_measured_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--root", tmp_path / "root", "--results", tmp_path, "--budget=5", "--price=2"]
    found = planned(capsys, DIGITS, *options)
    assert [found[key] for key in ("seconds_per_row", "hours", "money", "expected")] == [None] * 4
    assert [one["models"] for one in found["budget"]] == [None] * 4
    told = in_process(capsys, "plan", DIGITS, *options).out
    assert "not known here: `--probe 2` measures it" in told
    assert "`datamodels eval CONFIG --curve` tells it" in told


def test_a_table_gives_hours_money_energy_and_what_a_budget_buys(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--root", tmp_path / "none", "--results", results, "--device=Abacus"]
    found = planned(capsys, CIFAR, *options, "--price=2.5", "--watts=400", "--money=10")
    assert found["seconds_per_row"]["seconds"] == 3.0
    assert found["seconds_per_row"]["basis"] == f"{results}/2026-02-01-abacus.json (torch 2.0)"
    assert found["hours_of"] == "GPU"
    assert found["hours"] == pytest.approx(2000 * 3 / 3600)
    assert found["money"] == pytest.approx(2.5 * found["hours"])
    assert found["kwh"] == pytest.approx(0.4 * found["hours"])
    assert found["budget_hours"] == 4
    expected = {
        alpha: int(4 * 3600 / seconds) - 500 for alpha, seconds in ((0.1, 1), (0.2, 1.5), (0.5, 3), (0.75, 4.25))
    }
    assert {one["alpha"]: one["models"] for one in found["budget"]} == expected


def test_a_budget_that_does_not_buy_the_evaluation_models_buys_none(results: Path, tmp_path: Path) -> None:
    setting = Setting(models=10, eval_models=5000)
    plan = Plan(setting, Layout(tmp_path / "none", "cifar", "50"), Terms(budget=1, device="Loom", results=results))
    (found,) = [one for one in plan.to_json()["budget"] if one["alpha"] == 0.5]
    assert found["models"] == 0


def test_an_alpha_that_was_not_measured_lies_on_a_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--root", tmp_path / "none", "--results", results]
    found = planned(capsys, CIFAR, *options, "--device=Abacus", "--alpha=0.35")["seconds_per_row"]
    assert found["source"] == "line"
    assert found["basis"] == "a line through alpha 0.1, 0.2, 0.5, 0.75, between them"
    assert found["seconds"] == pytest.approx(2.25, rel=0.01)
    assert planned(capsys, CIFAR, *options, "--device=Loom", "--alpha=0.35")["seconds_per_row"] is None


def test_a_line_beyond_what_was_measured_says_so_and_one_point_is_none() -> None:
    known = {0.2: Rate(2.0, "Loom", True, "table", "x"), 0.4: Rate(3.0, "Loom", True, "table", "x")}
    setting = Setting()
    found = line(setting, 50000, known, [0.8])[0.8]
    assert found.basis == "a line through alpha 0.2, 0.4, beyond them"
    assert found.seconds == pytest.approx(5.0, rel=0.02)
    assert line(setting, 50000, {0.2: known[0.2]}, [0.8]) == {}
    assert line(setting, 50000, {0.2: known[0.2], 0.20001: known[0.4]}, [0.8]) == {}


def test_a_table_counts_only_for_the_published_setting(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SMALL, "--root", tmp_path / "none", "--results", results, "--device=Abacus"]
    done = in_process(capsys, "plan", CIFAR, *options, "--recipe.width=16")
    assert "seconds for cifar on Abacus, but not of this setting: recipe.width differs" in done.err
    assert "not known here: `--probe 2` measures it, `--device NAME` takes a table's: Abacus, Loom" in done.out


def test_tables_of_another_data_set_are_not_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--root", tmp_path / "none", "--results", results]
    assert planned(capsys, DIGITS, *TINY, *options)["tables_of"] == []
    assert planned(capsys, CIFAR, *SMALL, *options)["tables_of"] == ["Abacus", "Loom"]


Tabled = Callable[..., dict[str, Any]]


@pytest.fixture
def tabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tabled:
    """`plan --json` of CIFAR-10 on a device that a table has some rows of, of which each names a few keys."""

    def plan(rows: list[dict[str, Any]], *options: object, **content: object) -> dict[str, Any]:
        rows = [{"dataset": "cifar", "alpha": 0.5, **row} for row in rows]
        (tmp_path / "x.json").write_text(json.dumps({"device": "Loom", "torch": "2.0", "rows": rows, **content}))
        given = [*SMALL, "--root", tmp_path / "none", "--results", tmp_path, "--device=Loom", *options]
        return planned(capsys, CIFAR, *given)

    return plan


def test_of_a_table_only_whole_rows_by_the_same_threads_count_and_workers_have_their_own_seconds(
    tabled: Tabled,
) -> None:
    rows = [
        {"seconds_per_row": 3.0, "threads": 2, "workers": 4},
        {"seconds_per_row": 5.0, "threads": 1},
        {"seconds_per_row": None, "threads": 2},
    ]
    found = tabled(rows, "--recipe.threads=2")
    assert found["seconds_per_row"]["seconds"] == 12.0
    assert found["hours_of"] == "CPU core"


def test_a_row_counts_for_the_setting_that_it_was_measured_on(tabled: Tabled) -> None:
    """Whatever the order of the rows: those of a narrower network, of fewer images or epochs are of other settings."""
    published = {"seconds_per_row": 3.0, "network": "resnet9", "width": 64, "train_images": 50_000, "epochs": 24}
    others = [{"width": 16}, {"network": "convnet"}, {"train_images": 500}, {"epochs": 2}, {"group": 8}, {"batch": 8}]
    rows = [published, *({**published, "seconds_per_row": 1.0, **other} for other in others)]
    for order in (rows, rows[::-1]):
        assert tabled(order)["seconds_per_row"]["seconds"] == 3.0
    assert tabled(rows, "--recipe.width=16")["seconds_per_row"]["seconds"] == 1.0
    assert tabled(rows, "--recipe.width=32")["seconds_per_row"] is None
    assert tabled(rows, tiny=True)["seconds_per_row"] is None


def test_seconds_are_those_of_as_many_groups_at_once_and_nothing_is_divided(tabled: Tabled) -> None:
    rows = [{"seconds_per_row": seconds, "streams": streams} for seconds, streams in ((3.0, 1), (2.5, 2), (2.7, 4))]
    found = {workers: tabled(rows, f"--workers={workers}") for workers in (1, 2, 3)}
    assert [found[workers]["seconds_per_row"]["seconds"] for workers in found] == [3.0, 2.5, 3.0]
    assert found[2]["hours"] == pytest.approx(2000 * 2.5 / 3600)
    assert found[3]["seconds_per_row"]["basis"].endswith("measured with 1 group at once, not 3")
    assert "measured with" not in found[2]["seconds_per_row"]["basis"]
    assert "2.5 with 2 groups at once on Loom" in describe(found[2])


def test_a_line_is_drawn_through_seconds_of_as_many_groups_at_once() -> None:
    seconds = {(0.2, 1): 2.0, (0.4, 1): 4.0, (0.2, 2): 1.0}
    known = {key: Rate(value, "Loom", True, "table", "x", key[1]) for key, value in seconds.items()}
    found = choose(Setting(), 50_000, known, [0.2, 0.3], streams=2)
    assert found[0.2].seconds == 1.0
    assert found[0.3].seconds == pytest.approx(3.0, rel=0.02)
    assert "measured with 1 group at once, not 2" in found[0.3].basis


def test_a_table_tells_whether_its_device_is_a_gpu(tabled: Tabled) -> None:
    row = {"seconds_per_row": 3.0}
    assert tabled([row], on_gpu=True)["hours_of"] == "GPU"
    assert tabled([row], on_gpu=False)["hours_of"] == "CPU core"
    assert tabled([row], "--recipe.device=cpu")["hours_of"] == "GPU"


def test_the_newest_table_counts(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, time, seconds in (("2026-02-02-loom", "08:00", 5.0), ("2026-02-02-loom-2", "09:00", 6.0)):
        rows = [{"dataset": "cifar", "alpha": 0.5, "seconds_per_row": seconds}]
        content = {"device": "Loom", "torch": "2.0", "date": f"2026-02-02T{time}Z", "rows": rows}
        (results / f"{name}.json").write_text(json.dumps(content))
    found = planned(capsys, CIFAR, *SMALL, "--root", tmp_path / "none", "--results", results, "--device=Loom")
    assert found["seconds_per_row"]["seconds"] == 6.0


def test_a_damaged_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text('{"device": "Loom", "rows": []}')
    error = in_process(capsys, "plan", DIGITS, *TINY, "--root", tmp_path / "none", "--results", tmp_path).error
    assert error == f"error: {tmp_path}/x.json is not a table of benchmarks: KeyError('torch')"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with half of a setting's rows done, and some of the same at alpha 0.2."""
    from datamodels.launch.cli import main

    root = tmp_path_factory.mktemp("root")
    for options in ([], ["--alpha=0.2", "--models=8"]):
        given = [str(DIGITS), "--root", str(root), *TINY, *options]
        assert main(["init", *given]) == 0
        assert main(["train", *given, "--rows=0:16", "--workers=1"]) == 0
    return root


@pytest.fixture
def same(trained: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`plan --json` of the trained setting."""
    return lambda *options: planned(capsys, DIGITS, *TINY, "--root", trained, *options)


def test_rows_that_are_done_tell_what_the_others_take(trained: Path, same: Any, tmp_path: Path) -> None:
    from datamodels.train.store.open import open as open_store

    found = same("--results", tmp_path, "--budget=0.01")
    store = open_store(trained, alpha=0.5)
    seconds = store.states.seconds[:16]
    assert found["missing"] == 16
    assert found["seconds_per_row"]["seconds"] == pytest.approx(seconds.mean())
    (spread,) = re.fullmatch(
        rf"16 rows in 2 groups, standard deviation (\d+)%, in {trained}/digits/data", found["seconds_per_row"]["basis"]
    ).groups()  # type: ignore[union-attr]
    groups = seconds.reshape(2, 8).mean(axis=1, dtype=np.float64)
    assert int(spread) == round(100 * groups.std(ddof=1) / groups.mean())
    assert found["hours"] == pytest.approx(16 * seconds.mean() / 3600 * store.setting.recipe.threads)
    assert found["hours_of"] == "CPU core"
    by_alpha = {one["alpha"]: one["seconds_per_row"] for one in found["budget"]}
    assert by_alpha[0.2]["source"] == "store"
    assert all(one["models"] % 8 == 0 for one in found["budget"] if one["models"])


def test_rows_of_another_device_tell_nothing_of_the_one_named(same: Any, tmp_path: Path) -> None:
    assert same("--results", tmp_path, "--device=Loom")["seconds_per_row"] is None


def test_a_probe_measures_each_alpha_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = planned(capsys, DIGITS, *TINY, "--root", tmp_path / "root", "--probe=2", "--budget=1")
    assert found["seconds_per_row"]["source"] == "probe"
    assert found["seconds_per_row"]["basis"] == "8 rows in 1 group, no spread known, trained to find out"
    assert all(one["seconds_per_row"]["seconds"] > 0 for one in found["budget"])
    assert list(tmp_path.iterdir()) == []
    basis = planned(capsys, DIGITS, *TINY, "--root", tmp_path / "root", "--probe=1")["seconds_per_row"]["basis"]
    assert basis.endswith("trained to find out, with all that is done for the first time in it")


def test_a_kept_curve_tells_the_lds_to_expect(trained: Path, same: Any, tmp_path: Path) -> None:
    from datamodels.train.store.open import open as open_store

    law = Law(limit=0.8, power=1.0, weakening=20.0, error=0.01, enough={})
    curve = Curve([Point(24, 0.5, 1.0, 0.1)], 60, None, law)
    path = keep(open_store(trained, alpha=0.5), "test", curve)
    try:
        found = same("--results", tmp_path, "--budget=0.01")
        expected = float(law.at(np.array([24.0]))[0])
        assert found["expected"] == {"lds": pytest.approx(expected), "error": 0.01, "measured_to": 24, "current": True}
        (bought,) = [one for one in found["budget"] if one["alpha"] == 0.5]
        assert bought["expected"]["lds"] == pytest.approx(float(law.at(np.array([float(bought["models"])]))[0]))
        assert all(one["expected"] is None for one in found["budget"] if one["alpha"] != 0.5)
        assert "0.646 to be expected, by the curve up to 24 models" in describe(found)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget=0"], "--budget is 0.0, expected a finite number above 0"),
        (["--price=-1"], "--price is -1.0, expected"),
        (["--workers=0"], "--workers is 0, expected at least 1"),
        (["--probe=-1"], "--probe is -1, expected at least 0"),
        (["--money=5"], "--money is given without --price"),
        (["--money=5", "--price=1", "--budget=3"], "--budget and --money are both given"),
        (["--probe=1", "--device=Loom"], "--probe measures the device here"),
        (["--probe=many"], "probe"),
    ],
)
def test_terms_that_make_no_sense_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: Outcome = in_process(capsys, "plan", DIGITS, *TINY, "--root", tmp_path / "none", *options)
    assert said in refused.error
