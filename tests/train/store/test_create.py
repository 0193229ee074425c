"""Stores that are created and lengthened, and what is refused."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from datamodels.launch.plan.sizes import store_as_it_is
from datamodels.train.config import Outputs, Recipe
from datamodels.train.errors import UserError, WorkError
from datamodels.train.store.create import create_store, grow
from datamodels.train.store.layout import temporary
from datamodels.train.store.locks import LockFile
from datamodels.train.store.manifest import read_manifest
from datamodels.train.store.store import Store, open_store
from tests.faults.power import Recorder
from tests.faults.stores import GROWN, check, content, create, fill, filled, layout, setting, workplace, writing
from tests.stores import made_up_data


def lengthen(root: Path, models: int = GROWN) -> Store:
    return grow(layout(root), setting(), models, lambda text: None)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_new_store_is_all_zeros_and_missing(tmp_path: Path) -> None:
    store = create(tmp_path)
    assert len(store.missing()) == store.rows == 14
    for array in store.arrays.values():
        found = np.load(store.layout.array(array.name), mmap_mode="r")
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert not found.any()
    assert np.load(store.layout.completed).tolist() == [False] * 14


def test_creating_a_store_again_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    before = layout(tmp_path).manifest.read_bytes()
    assert create(tmp_path).completed().all()
    assert layout(tmp_path).manifest.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"mask": "bernoulli"},
        {"tta": "none"},
        {"eval_models": 6},
        {"runs_per_mask": 1},
        {"models": 12},
        {"outputs": Outputs(test_logits=True)},
        {"recipe": Recipe(network="convnet", group=4, lr=0.1)},
    ],
)
def test_another_identity_is_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    create(tmp_path)
    with pytest.raises(UserError, match=rf"^{next(iter(changes))}(\.\w+)? is .*store_50pct\.json"):
        create(tmp_path, setting(**changes))


def test_what_is_no_identity_may_differ(tmp_path: Path) -> None:
    create(tmp_path)
    other = setting(outputs=Outputs(train_logits=True, test_logits=True, preallocate=False))
    other.data.root, other.recipe.device, other.fit.share = "elsewhere", "cpu", 0.2
    create(tmp_path, other)


def test_two_alphas_share_a_root(tmp_path: Path) -> None:
    for alpha in (0.5, 0.25):
        create(tmp_path, setting(alpha=alpha))
    assert {path.name for path in layout(tmp_path).data.glob("store_*")} == {"store_50pct.json", "store_25pct.json"}


def test_published_files_are_never_overwritten(tmp_path: Path) -> None:
    folder = layout(tmp_path).data
    folder.mkdir(parents=True)
    np.save(folder / "train_masks_50pct.npy", np.zeros((3, 4), bool))
    before = everything(tmp_path)
    with pytest.raises(UserError, match="published files are never overwritten"):
        create(tmp_path)
    with pytest.raises(UserError, match="published files are never overwritten"):
        store_as_it_is(setting(), layout(tmp_path))  # of `plan` and `submit --dry-run`
    with pytest.raises(UserError, match=r"test_margins_50pct\.npy does not exist beside .*train_masks_50pct\.npy"):
        open_store(layout(tmp_path), setting())
    assert everything(tmp_path) == before


@pytest.mark.parametrize("call", ["os.pwrite", "os.fsync", "os.link", "os.replace", "os.ftruncate"])
def test_a_failure_leaves_the_disk_as_it_was(tmp_path: Path, call: str) -> None:
    real, calls = getattr(os, call.removeprefix("os.")), 0

    def fail_third(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == min(3, 1 if call == "os.replace" else 3):
            names = [str(each) for each in arguments[:1] if isinstance(each, Path)]
            raise OSError(errno.ENOSPC, "No space left on device", *names)
        return real(*arguments)

    with (
        mock.patch(call, fail_third),
        pytest.raises(UserError, match=r"cannot create \S+/made-up/data\S*: No space left"),
    ):
        create(tmp_path, setting(outputs=Outputs(preallocate=False)))
    assert everything(tmp_path) == set()
    create(tmp_path)


def test_a_disk_that_is_too_small_is_told_with_numbers(tmp_path: Path) -> None:
    small = mock.patch("shutil.disk_usage", return_value=mock.Mock(free=1000))
    with small, pytest.raises(UserError, match=r"needs [\d,]+ bytes .* has 1,000 free"):
        create(tmp_path)
    assert everything(tmp_path) == set()


def test_another_settings_lock_survives_a_failure(tmp_path: Path) -> None:
    folder = layout(tmp_path).data

    def meanwhile(*_: object) -> None:
        (folder / "_lock_25pct").touch()
        raise KeyboardInterrupt

    with mock.patch("datamodels.train.store.create.write_file", meanwhile), pytest.raises(KeyboardInterrupt):
        create(tmp_path)
    assert everything(folder) == {"_lock_25pct"}


def test_init_killed_at_any_step_is_told_and_done_again() -> None:
    steps = 0

    def look(recorder: Recorder) -> None:
        nonlocal steps
        steps += 1
        place = folder / "killed"
        shutil.copytree(folder / "root", place)
        assert check(place) == 0
        create(place)
        assert len(Store.open(layout(place), setting()).missing()) == 14
        assert not [name for name in everything(place) if name.endswith((".tmp", ".init"))]
        shutil.rmtree(place)

    with workplace() as folder:
        (folder / "root").mkdir()
        with Recorder(folder / "root", look).recording():
            create(folder / "root")
    print(f"init killed at {steps} steps")
    assert steps > 40


def test_clearing_up_after_a_killed_init_may_be_killed_too() -> None:
    def look(recorder: Recorder) -> None:
        shutil.copytree(folder / "root", folder / "killed")
        create(folder / "killed")
        shutil.rmtree(folder / "killed")

    with workplace() as folder:
        place = create(folder / "root").layout
        os.rename(place.manifest, temporary(place.manifest, "x"))  # as a kill before the last step leaves it
        with Recorder(folder / "root", look).recording():
            create(folder / "root")


def test_what_an_init_left_is_not_removed_without_locks(tmp_path: Path) -> None:
    place = create(tmp_path).layout
    os.rename(place.manifest, temporary(place.manifest, "x"))  # killed, or still at work on another node
    before = everything(tmp_path)
    with mock.patch.object(LockFile, "_probe", return_value=False):
        with pytest.raises(UserError, match=r"x\.init is of an `init` that was interrupted or is still running"):
            create(tmp_path)
        assert everything(tmp_path) == before
        create(tmp_path / "elsewhere")


def test_two_inits_that_meet_without_locks_leave_one_store(tmp_path: Path) -> None:
    """The second creates and fills a store while the first is about to give its files their names."""
    real = os.link

    def meanwhile(*names: Any) -> None:
        os.link = real
        filled(tmp_path)
        real(*names)

    locks_of_no_use = mock.patch.object(LockFile, "acquire", return_value=True)
    with locks_of_no_use, mock.patch("os.link", meanwhile), pytest.raises(UserError, match="cannot create"):
        create(tmp_path)
    assert check(tmp_path) == 14


def test_a_name_that_another_init_took_first_is_left_to_it(tmp_path: Path) -> None:
    real = os.link

    def meanwhile(source: Path, target: Path) -> None:
        if "test_margins" in target.name:
            target.write_bytes(b"another's")
        real(source, target)

    told = pytest.raises(UserError, match=r"test_margins_50pct\.npy is being created by another process")
    with mock.patch("os.link", meanwhile), told:
        create(tmp_path)
    assert layout(tmp_path).array("test_margins").read_bytes() == b"another's"
    assert not layout(tmp_path).array("train_masks").exists()


def test_init_goes_on_where_there_are_no_links(tmp_path: Path) -> None:
    with mock.patch("os.link", side_effect=PermissionError(errno.EPERM, "Operation not permitted")):
        create(tmp_path)
    assert len(create(tmp_path).missing()) == 14


def test_a_store_that_memory_does_not_hold_is_not_created(tmp_path: Path) -> None:
    with mock.patch("numpy.zeros", side_effect=MemoryError), pytest.raises(UserError, match=r"^14 rows \(models"):
        create(tmp_path)
    assert everything(tmp_path) == set()


def older(root: Path) -> None:
    """The manifest of before a `grow`, as an old copy restores it."""
    before = create(root).manifest
    lengthen(root)
    layout(root).manifest.write_bytes(before.encode())


def test_an_older_manifest_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    older(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for opening in (create, lengthen, lambda root: lengthen(root, 12)):
        with pytest.raises(UserError, match=r"had 18 rows, but .*store_50pct\.json has 14 rows: it is older"):
            opening(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_record_beyond_the_rows_tells_of_an_older_manifest(tmp_path: Path) -> None:
    before = create(tmp_path).manifest
    store = lengthen(tmp_path)
    with writing(store) as writer:
        fill(store, writer)
    store.layout.manifest.write_bytes(before.encode())
    for array in [*store.arrays.values(), store.flags]:  # all headers are damaged
        with open(store.layout.array(array.name), "r+b") as file:
            file.write(bytes(100))
    with pytest.raises(UserError, match=r"\.bin records row 1\d, but .*store_50pct\.json has 14 rows"):
        create(tmp_path)


def test_growth_meanwhile_is_no_older_manifest(tmp_path: Path) -> None:
    old = create(tmp_path).manifest
    lengthen(tmp_path)
    real, answers = read_manifest, [old]
    with mock.patch(
        "datamodels.train.store.store.read_manifest", lambda path: answers.pop() if answers else real(path)
    ):
        assert Store.open(layout(tmp_path), setting()).rows == 18


def test_growth_killed_at_any_step_is_the_old_store_or_the_new() -> None:
    steps = 0

    def look(recorder: Recorder) -> None:
        nonlocal steps
        steps += 1
        place = folder / "killed"
        shutil.copytree(folder / "root", place)
        check(place)
        store = Store.open(layout(place), setting())
        assert store.rows in (14, 18)
        assert np.flatnonzero(store.completed()).tolist() == list(range(14))
        assert np.load(store.layout.array("test_margins"), mmap_mode="r").shape[0] == store.rows
        lengthen(place)
        assert check(place) == 14
        assert np.load(store.layout.completed).tolist() == [True] * 14 + [False] * 4
        shutil.rmtree(place)

    with workplace() as folder:
        _grown_for(folder / "root")
        with Recorder(folder / "root", look).recording():
            lengthen(folder / "root")
    print(f"grow killed at {steps} steps")
    assert steps > 20


def _grown_for(root: Path) -> None:
    """A full store, with row 1 in its second generation as the script leaves it."""
    store = filled(root)
    with writing(store) as writer:
        writer.invalidate([1])
        fill(store, writer)


def test_growth_keeps_rows_and_turns_evaluation_rows_into_estimation_rows(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = {name: np.load(store.layout.array(name)) for name in store.arrays}
    masks = [content(store, row)["train_masks"] for row in range(14)]
    store = lengthen(tmp_path)
    assert (store.models, store.eval_models, store.rows) == (14, 4, 18)
    assert store.missing().tolist() == [14, 15, 16, 17]
    for name, rows in before.items():
        assert np.array_equal(np.load(store.layout.array(name))[:14], rows)
    assert [content(store, row)["train_masks"].tolist() for row in range(14)] == [mask.tolist() for mask in masks]
    assert open_store(layout(tmp_path), setting()).rows == 18, "a config with the old length still opens it"


def test_a_store_never_shrinks(tmp_path: Path) -> None:
    create(tmp_path)
    lengthen(tmp_path)
    with pytest.raises(UserError, match="models is 10, but the store already has 14"):
        lengthen(tmp_path, 10)


def test_growth_does_not_divide_rows_that_share_a_mask(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(UserError, match="divides evaluation rows that share a mask"):
        lengthen(tmp_path, 11)


def test_growth_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path)
    full = mock.patch(
        "datamodels.train.npy_file._fallocate", side_effect=OSError(errno.ENOSPC, "No space left on device")
    )
    with full, pytest.raises(WorkError, match=r"cannot lengthen .*_50pct\.npy: No space left .* unchanged"):
        lengthen(tmp_path)
    assert Store.open(layout(tmp_path), setting()).rows == 14


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    create(tmp_path)
    other = replace(made_up_data(setting(), 5, 5), sha256="f" * 64, where="the data set in elsewhere")
    with pytest.raises(UserError, match="data set in elsewhere has sha256 ffff"):
        create_store(layout(tmp_path), setting(), other, print)


@pytest.mark.parametrize("link", ["made-up", "made-up/data"])
def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path: Path, link: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "root" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads to .*elsewhere"):
        create(tmp_path / "root")
    assert everything(tmp_path / "elsewhere") == set()


@pytest.mark.parametrize(
    "name", ["data/train_masks_50pct.npy", "datamodels", "_slurm_50pct", "report_test_50pct.html", "datamodels/x.pt"]
)
def test_nothing_in_a_store_is_a_link_out_of_the_root(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "root").layout.folder / name
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    for opening in (Store.open, open_store):
        with pytest.raises(UserError, match=rf"{path.name} leads to .*elsewhere"):
            opening(layout(tmp_path / "root"), setting())


@pytest.mark.parametrize("name", ["store_25pct.json", "train_masks_50pct.npy"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    path = create(tmp_path).layout.data / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name} is neither a file nor a folder"):
        create(tmp_path)


def test_a_root_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    create(tmp_path / "runs")
    assert (tmp_path / "scratch" / "made-up").is_dir()


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        filled(tmp_path)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o640}
