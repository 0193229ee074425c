"""`status`: rates by host and task, and how long `--watch` goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodels.launch.status import begun, describe
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.faults.stores import create, result, writing
from tests.launch.slurm.fake import FakeSlurm


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(command: str, *options: object) -> Outcome:
        done = in_process(capsys, command, DIGITS, "--root", tmp_path, *TINY, *options)
        assert done.code == 0, done.err
        return done

    return call


def test_rates_are_told_by_host_and_task(run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    run("init")
    found = json.loads(run("status", "--json").out)
    assert (found["rows_per_hour"], found["hosts_per_hour"]) == (None, {})
    for host, task, rows in (("n1", "3", "0:8"), ("n2", "4", "8:32")):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        run("train", "--workers=1", "--rows", rows)
    found = json.loads(run("status", "--json").out)
    assert (found["hosts"], found["jobs"]) == ({"n1": 8, "n2": 24}, {"7_3": 8, "7_4": 24})
    for rates, names in ((found["hosts_per_hour"], ["n1", "n2"]), (found["jobs_per_hour"], ["7_3", "7_4"])):
        assert [rates[name] / found["rows_per_hour"] for name in names] == pytest.approx([0.25, 0.75], abs=0.01)
    (shown,) = [line for line in describe(found).splitlines() if line.startswith("by host")]
    assert shown.startswith("by host: n1 8 rows, ")
    assert shown.endswith(" an hour")


@pytest.mark.parametrize("key", ["concurrent_groups", "streams"])  # the second one in older stores
def test_groups_that_shared_a_gpu_were_begun_as_long_ago_as_each_took(tmp_path: Path, key: str) -> None:
    store = create(tmp_path)
    with writing(store, **{key: 3}) as writer:
        assert writer.lease(1)
        writer.commit([result(store, 5)])
    store.refresh()
    assert begun(store, store.completed()) == store.states.time[5] - 4 * 3 * store.states.seconds[5]


def test_watching_goes_on_while_jobs_are_queued(
    run: Callable[..., Outcome], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("submit", "--slurm.rows=32")
    monkeypatch.setattr("time.sleep", lambda seconds: seconds == 5 and slurm.end(slurm.waiting()[0]))
    run("train", "--workers=1")
    shown = run("status", "--watch").out
    assert shown.count("32 of 32 rows done") == 3
    assert shown.count("gate pending") == 2, "the array ends first, then the gate"
