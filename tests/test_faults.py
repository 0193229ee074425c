"""What can happen to processes, disks and nodes, in a short form; `make faults` is the long one."""

from pathlib import Path

import pytest

from tests.conftest import in_process
from tests.faults import flips, full, inject, kills, power
from tests.faults.stores import create, setting, workplace


def test_kill_9_at_random_moments_of_training(tmp_path: Path) -> None:
    died, late, stores = kills.kill_training(tmp_path, kills=50, models=160, seed=0)
    print(f"{died} kills of `train`, {late} after a commit, over {stores} stores: 0 wrong rows, byte-equal at the end")
    assert died == 50
    assert late >= 25


def test_faults_of_single_system_calls() -> None:
    if not inject.available():
        pytest.skip("strace is not installed, or not permitted here")
    with workplace() as folder:
        found = inject.points(folder)
        seen = inject.inject(folder, inject.sample(found, 30, seed=0))
    print(f"{seen.total()} of {len(found)} points {dict(seen)}: 0 wrong rows, 0 lost")
    assert len(found) >= 300
    assert seen.total() == 30


def test_power_loss_at_any_moment() -> None:
    with workplace() as folder:
        states, rows = power.power_loss(folder, each=3)
    print(f"{states} disks after a power cut, {rows} completed rows on them: 0 wrong, 0 lost")
    assert states >= 500
    assert rows >= 1000


def test_bit_flips_anywhere() -> None:
    with workplace() as folder:
        seen = flips.flip_bits(folder / "store", count=1002, seed=0)
    print(f"{sum(seen.values())} bit flips {seen}: all found and named")
    assert sum(seen.values()) == 1002


def test_two_processes_train_the_same_rows(tmp_path: Path) -> None:
    kills.train_together(tmp_path, processes=2, models=128)
    merged = kills.merge_beside_training(tmp_path, models=128)
    print("2 `train` processes on 144 rows: every row once, byte-equal to one process alone")
    print(f"a merge beside one of them: {merged} of 144 rows, every row once, byte-equal")
    assert merged > 0


def test_a_merge_that_is_killed_at_20_moments_goes_on(tmp_path: Path) -> None:
    calls, brought = kills.kill_merge(tmp_path, kills=20)
    print(f"20 kills of `merge` over its {calls} calls, {brought} rows brought by then: 0 wrong, byte-equal at the end")
    assert calls >= 60
    assert brought >= 20


def test_twenty_processes_write_one_store(tmp_path: Path) -> None:
    create(tmp_path, setting(models=kills.WRITERS_ROWS))
    kills.write_together(tmp_path, processes=20)
    print("20 writers on 204 rows: every row once")


def test_a_full_disk_is_told_and_training_goes_on_once_there_is_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not full.can_mount(tmp_path):
        pytest.skip("mounting is not permitted here")
    with full.small_disk(tmp_path / "disk", 120_000) as disk:
        root, models = disk / "root", 400
        told = in_process(capsys, *kills.command("init", root, models)).error
        assert "the store needs" in told
        assert list(disk.iterdir()) == []
        lazily = "--outputs.preallocate=false"
        assert in_process(capsys, *kills.command("init", root, models, lazily)).code == 0
        train = kills.command("train", root, models, lazily, "--workers=1")
        stopped = in_process(capsys, *train)
        assert stopped.code == 1
        (line,) = (line for line in stopped.err.splitlines() if line.startswith("error:"))
        assert "No space left on device" in line
        assert " row " in line
        assert str(root) in line
        assert in_process(capsys, *kills.command("verify", root, models)).code == 0
        full.resize(disk, 2_000_000)
        assert in_process(capsys, *train).code == 0
        assert in_process(capsys, *kills.command("verify", root, models)).code == 0
        _full_in_fit(disk, root, models, capsys)


def _full_in_fit(disk: Path, root: Path, models: int, capsys: pytest.CaptureFixture[str]) -> None:
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            pass
    fit = kills.command("fit", root, models)
    stopped = in_process(capsys, *fit)
    assert stopped.code in (1, 2)
    assert stopped.err.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in stopped.err.splitlines()[-1]
    full.resize(disk, 64_000_000)
    assert in_process(capsys, *fit).code == 0
