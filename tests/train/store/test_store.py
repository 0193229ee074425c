"""Opening stores, and everything that must be refused in one line."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.train.config import Outputs
from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.journal import RECORD, Kind, encode_header, seal
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import _digest, read_manifest
from datamodels.train.store.open import open as open_anything
from datamodels.train.store.store import Store, open_store
from tests.conftest import DIGITS, PROJECT, TINY, in_process
from tests.faults.full import can_mount, read_only
from tests.faults.stores import N_TEST, N_TRAIN, create, fill, filled, layout, result, setting, workplace, writing
from tests.stores import flip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path)


@pytest.mark.parametrize("left", ["_completed_50pct.npy", "_journal_50pct"])
def test_parts_of_a_store_without_its_manifest_are_an_error(store: Store, left: str) -> None:
    store.layout.manifest.unlink()
    arrays = [] if left == "_journal_50pct" else [store.layout.array(name) for name in store.arrays]
    for path in (*arrays, store.layout.completed, store.layout.journals):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for opening in (open_store, Store.open):
        with pytest.raises(UserError, match=rf"{left} was found without store_50pct\.json"):
            opening(store.layout, setting())


def test_an_empty_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: `datamodels init` creates the store"):
        open_store(layout(tmp_path), setting())


def test_any_bit_of_the_manifest_matters(store: Store) -> None:
    path = store.layout.manifest
    for bit in range(0, 8 * path.stat().st_size, 3):
        flip(path, bit)
        with pytest.raises((UserError, WorkError), match=r"store_50pct\.json"):
            read_manifest(path)
        flip(path, bit)
    read_manifest(path)


def rewritten(store: Store, **changes: Any) -> None:
    """A manifest with other content and a digest that fits it."""
    content = {**json.loads(store.layout.manifest.read_text()), **changes}
    del content["sha256"]
    store.layout.manifest.write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n")


@pytest.mark.parametrize("version", ["datamodels-store-0", "datamodels-store-2", 7, None])
def test_a_manifest_of_another_version_is_told(store: Store, version: object) -> None:
    rewritten(store, format=version)
    with pytest.raises(UserError, match=r"has the format .*, expected 'datamodels-store-1'"):
        Store.open(store.layout, setting())


HOSTILE = [
    *({"history": history} for history in ([], [[10]], [[10, "4"]], [[10, -4]], 7, [[2**50, 4]], [[10, 2**39]])),
    *({"history": [former, [10, 4]]} for former in ([12, 4], [10, 4], [8, 6])),
    {"history": [[10, 4], [10**9, 4]]},
    *({"group": group} for group in (0, 2**70)),
    *({"n_train": count} for count in (-5, 1.5, None, 10**30, 1, N_TRAIN - 1)),
    *({"config": config} for config in ([], [["models", 10]])),
    *({"classes": classes} for classes in (3, [1, 2])),
    *({"id": name} for name in ("f" * 5000, "0" * 31 + "G", 7)),
    {"data_sha256": "0"},
    {"versions": {"numpy": "1" * 10**5}, "n_train": 2**62},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_hostile_manifest_is_told(store: Store, changes: dict[str, Any]) -> None:
    rewritten(store, **changes)
    with pytest.raises((UserError, WorkError)) as told:
        Store.open(store.layout, setting())
    assert str(store.layout.data) in str(told.value)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(2**70)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)


def paths_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in a JSON document."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, value in inside for found in paths_of(value, (*path, key)))][not path :]


@pytest.fixture(scope="module")
def empty() -> Iterator[Store]:
    with workplace() as root:
        yield create(root)


@settings(max_examples=300)
@given(st.data(), VALUES, st.booleans())
def test_no_value_in_a_manifest_breaks_those_who_open_it(
    empty: Store, data: st.DataObject, value: Any, gone: bool
) -> None:
    store, written = empty, empty.layout.manifest.read_bytes()
    try:
        content = json.loads(written)
        del content["sha256"]
        *way, last = data.draw(st.sampled_from(paths_of(content)))
        place = content
        for key in way:
            place = place[key]
        if gone:
            del place[last]
        else:
            place[last] = value
        store.layout.manifest.write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n")
        told, found = "", store
        try:
            found = Store.open(store.layout, setting())
        except (UserError, WorkError) as error:
            told = str(error)
        assert not told or str(store.layout.data) in told
        assert len(told) < 1000
        assert (found.rows, found.group, found.n_train) == (14, 4, N_TRAIN)
    finally:
        store.layout.manifest.write_bytes(written)


def test_a_store_of_0_1_is_trained_on_and_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest says how images were read and datamodels fitted then, which no row depends on."""

    def called(name: str, *options: object) -> int:
        return in_process(capsys, name, DIGITS, "--root", tmp_path, *TINY, "--fit.share=0.3", *options).code

    assert called("init") == called("train", "--rows=0:8") == 0
    store = Store.open(Layout(tmp_path, "digits", "50pct"))
    for form in ("beton-jpeg", "beton-raw"):
        config = store.manifest.config
        config["data"]["form"], config["fit"]["solver"] = form, "fista"
        rewritten(store, config=config)
        assert called("train") == called("fit") == called("verify", "--retrain=1") == 0
        opened = open_anything(tmp_path)
        assert opened.completed().all()
        assert read_manifest(opened.layout.manifest).config["data"]["form"] == form
        if form == "beton-raw":
            assert len(opened.dataset().test.labels) == opened.n_test
        else:
            with pytest.raises(UserError, match=r"data\.form is 'beton-jpeg', expected `beton`, with its two files"):
                opened.dataset()


def test_a_manifest_from_before_a_key_came_stands_at_its_default(store: Store) -> None:
    content = json.loads(store.layout.manifest.read_text())
    del content["config"]["recipe"]["translate"], content["config"]["tta"]
    rewritten(store, config=content["config"])
    assert Store.open(store.layout, setting()).completed().all()
    with pytest.raises(UserError, match=r"tta is 'none', but .*store_50pct\.json holds a setting with 'mirror'"):
        Store.open(store.layout, setting(tta="none"))


def test_a_key_of_a_newer_version_is_told(store: Store) -> None:
    content = json.loads(store.layout.manifest.read_text())
    content["config"]["recipe"]["warmth"] = 3
    rewritten(store, config=content["config"])
    for of in (None, setting()):
        with pytest.raises(UserError, match=r"recipe\.warmth"):
            Store.open(store.layout, of)


@given(
    st.one_of(st.binary(max_size=60), st.sampled_from([b"[" * 100_000, b"7", b"[]", b'"x"', b"null", b"{}", b'{"a":']))
)
def test_no_content_of_a_manifest_breaks_its_reader(content: bytes) -> None:
    with workplace() as folder:
        (folder / "x.json").write_bytes(content)
        with pytest.raises((UserError, WorkError), match=r"x\.json"):
            read_manifest(folder / "x.json")


def another_manifest(store: Store, folder: Path) -> None:
    """The manifest of a store of the same setting in the place of the true one."""
    other = create(folder, setting())
    shutil.copy(other.layout.manifest, store.layout.manifest)


def test_a_manifest_that_is_not_the_journals_is_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = store.layout.manifest.read_bytes()
    another_manifest(store, tmp_path / "other")
    given = read_manifest(store.layout.manifest).id
    for command in ("status", "train", "verify", "repair", "grow --models=14"):
        name, *options = command.split()
        (tmp_path / "x.yaml").write_text(CONFIG.replace("eval_models: 8", "eval_models: 4"))
        told = in_process(capsys, name, tmp_path / "x.yaml", "--root", store.layout.root, *options).error
        assert f"belongs to the store {store.manifest.id}" in told
        assert given in told
    store.layout.manifest.write_bytes(true)
    assert np.load(store.layout.completed).all()
    assert Store.open(store.layout, setting()).completed().all()


def test_the_journals_decide_and_the_flags_follow(store: Store) -> None:
    for path in store.layout.journals.iterdir():
        path.unlink()
    found = Store.open(store.layout, setting())
    assert not found.completed().any()
    assert not np.load(store.layout.completed).any()


def test_a_digest_of_rows_changes_when_one_is_redone(store: Store) -> None:
    rows = np.arange(14)
    before = store.row_stamp(rows)
    with writing(store) as writer:
        writer.invalidate([3])
        fill(store, writer)
    assert store.row_stamp(rows) != before
    assert store.row_stamp(rows[4:]) != before


def test_a_digest_of_rows_changes_with_their_bytes_at_the_same_generation(tmp_path: Path) -> None:
    stamps = set()
    for salt in (0, 1):
        store = create(tmp_path / "root")
        with writing(store) as writer, writer.leased(0):
            writer.commit([result(store, row, salt) for row in range(4)])
        store.refresh()
        store.manifest = dataclasses.replace(store.manifest, id="")
        assert not store.states.generation.any()
        stamps.add(store.row_stamp(np.arange(4)))
        shutil.rmtree(tmp_path / "root")
    assert len(stamps) == 2


def test_opening_a_store_often_keeps_no_files_open(store: Store) -> None:
    def read() -> int:
        other = Store.open(store.layout, setting())
        other.read("train_masks", 0, 1)
        return len(list(Path("/proc/self/fd").iterdir()))

    assert read() == read() == read()


def test_rows_made_on_two_kinds_of_device_are_told(tmp_path: Path) -> None:
    from datamodels.launch.status import describe, summary

    store = create(tmp_path)
    for device in ("one GPU", "another GPU"):
        with writing(store, device=device) as writer, writer.leased(0 if device == "one GPU" else 1) as held:
            assert held
            rows = store.missing()[:4].tolist()
            writer.commit([result(store, row) for row in rows])
        store.refresh()
    told = describe(summary(store))
    assert "this store mixes devices or versions" in told
    assert "one GPU" in told
    assert "another GPU" in told


CONFIG = """\
dataset: made-up
models: 10
eval_models: 8
runs_per_mask: 2
recipe: {network: convnet, group: 4}
outputs: {train_logits: true, test_logits: true}
"""


_SEVERAL = """
import contextlib, io, json, sys
from datamodels.launch.cli import main
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        code = main(command)
    print(json.dumps([code, told.getvalue()]))
"""


def several(*commands: list[object]) -> list[tuple[int, str]]:
    """Run commands in one process, which holds no file of a mount when it has ended: their exit codes and errors."""
    arguments = [sys.executable, "-c", _SEVERAL, json.dumps([list(map(str, command)) for command in commands])]
    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_read_only_store_can_be_read(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("mounting is not permitted here")
    root, config, elsewhere = tmp_path / "root", tmp_path / "x.yaml", tmp_path / "elsewhere"
    store = filled(root, setting(eval_models=8))
    with open(store.layout.completed, "r+b") as file:  # as a crash leaves it
        file.seek(HEADER_BYTES)
        file.write(b"\0")
    config.write_text(CONFIG)
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).standard_normal((N_TRAIN, N_TEST)).astype(np.float32))

    def command(name: str, *options: object) -> list[object]:
        return [name, config, "--root", root, *options]

    with read_only(root):
        reading = several(
            command("status"),
            command("status", "--json"),
            command("verify"),
            command("eval", "--weights", tmp_path / "scores.npy"),
            command("fit", "--out", elsewhere, "--fit.share=0.4"),
            command("eval", "--out", elsewhere),
            command("report", "--out", elsewhere),
        )
        assert [code for code, _ in reading] == [0] * 7, reading
        for code, told in several(command("repair"), command("grow", "--models=14"), command("fit", "--fit.share=0.4")):
            assert (code, "Read-only file system" in told) == (2, True), told
        with read_only(elsewhere):
            ((code, told),) = several(command("report", "--out", elsewhere))
            assert (code, "Read-only file system" in told.splitlines()[-1]) == (2, True)
    assert (elsewhere / "made-up" / "datamodels" / "test_50pct.pt").exists()
    assert (elsewhere / "made-up" / "report_test_50pct.html").exists()


_STATUS = """
import sys
from datamodels.launch.cli import main
from tests.memory import peak
code = main(sys.argv[1:])
print(peak(), file=sys.stderr)
sys.exit(code)
"""


def test_1_510_000_rows_are_sparse_and_their_status_takes_less_than_200_mb(tmp_path: Path) -> None:
    lengths = {"models": 1_500_000, "eval_models": 10_000}
    store = create(tmp_path, setting(**lengths, outputs=Outputs(preallocate=False)))
    assert len(store.missing()) == store.rows == 1_510_000
    assert store.layout.array("train_masks").stat().st_blocks * 512 < 2 * HEADER_BYTES
    records = np.zeros(store.rows, RECORD)
    records["row"], records["kind"], records["time"] = np.arange(store.rows), Kind.DONE, 1.0
    seal(records)
    head = encode_header({"store": store.manifest.id})
    (store.layout.journals / "x.bin").write_bytes(head + records.tobytes())
    (tmp_path / "x.yaml").write_text(
        "dataset: made-up\nmodels: 1500000\neval_models: 10000\nruns_per_mask: 2\n"
        "recipe: {network: convnet, group: 4}\n"
    )
    command = [sys.executable, "-c", _STATUS, "status", tmp_path / "x.yaml", "--root", tmp_path, "--json"]
    done = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["done"] == store.rows
    assert int(done.stderr) <= 200 * 10**6
