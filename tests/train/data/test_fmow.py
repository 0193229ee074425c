"""The restricted FMoW: whose images are in which split, and what is said when a tree is not as it should be."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fmow import CATEGORIES, FMoWDataset, read_image
from fmow.dataset import WILDSFMoW

REPO = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("DATAMODELS_TEST_DATA", REPO.parent / "shared" / "data"))
YEARS = range(2005, 2018)
SCHEMES = [*(f"time_after_{year}" for year in YEARS), "official", "mixed-to-test"]
IN_DISTRIBUTION = {"train": "train", "id_val": "val", "id_test": "test"}
ID_VAL_NAMES = {True: {}, False: {"id_val": "val", "val": "ood_val"}}

EDGES = [
    "2011-12-31T23:59:59.999Z",
    "2012-01-01T00:00:00Z",
    "2012-02-29T12:00:00.5Z",
    "2012-12-31T23:59:59.999Z",
    "2012-12-31T23:59:59Z",
    "2013-01-01T00:00:00Z",
    "2013-01-01T00:00:00.000Z",
    "2013-01-01T01:30:00+02:00",  # 2012 in UTC
    "2012-12-31T22:30:00-02:00",  # 2013 in UTC
    "2012-01-01T00:30:00+01:00",  # 2011 in UTC
    "2015-12-31T23:59:59.999999Z",
    "2016-01-01T00:00:00Z",
]


def write_tree(root, table, images=()):
    """A WILDS tree under `root` with this metadata and tiny images for some of its rows."""
    tree = root / "fmow_v1.1"
    (tree / "images").mkdir(parents=True)
    (tree / "RELEASE_v1.1.txt").touch()
    table.to_csv(tree / "rgb_metadata.csv", index=False)
    countries = {"alpha-3": ["FRA", "IDN", "ATA"], "region": ["Europe", "Asia", None], "alpha-2": ["FR", "ID", "AQ"]}
    pd.DataFrame(countries).to_csv(tree / "country_code_mapping.csv", index=False)
    for row in images:
        Image.fromarray(pixels(row)).save(tree / "images" / f"rgb_img_{row}.png")
    return root


def pixels(row):
    return np.random.default_rng(row).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def rows_at(timestamps, seed=0):
    """Metadata rows with these times; split, category and country are drawn."""
    rng, n = np.random.default_rng(seed), len(timestamps)
    return pd.DataFrame(
        {
            "split": rng.choice(["train", "train", "val", "test", "seq"], n),
            "img_filename": [f"a_{i}_rgb.jpg" for i in range(n)],
            "category": rng.choice(CATEGORIES, n),
            "country_code": rng.choice(["FRA", "IDN", "ATA", "XXX"], n),
            "timestamp": timestamps,
        }
    )


def any_times(n, seed=0):
    """Whole seconds, 2002-2017, as WILDS can parse them; the first is of 2002, which its groupers like."""
    seconds = np.random.default_rng(seed).integers(1_009_843_200, 1_514_764_800, n)
    seconds[0] = 1_009_843_200
    return list(pd.to_datetime(seconds, unit="s").strftime("%Y-%m-%dT%H:%M:%SZ"))


def times_with_edges(n):
    """Every boundary time once under each split, and times of every kind between them."""
    times = [t if i % 3 else f"{t[:-1]}.{i:03d}Z" for i, t in enumerate(any_times(n))]
    table = rows_at(times)
    for split in ("train", "val", "test", "seq"):
        table = pd.concat([table, rows_at(EDGES).assign(split=split)])
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


def ood_year(scheme):
    return int(scheme[-4:]) if scheme.startswith("time_after") else 2016


def expected_rows(table, scheme, split, seed=111):
    """The rule, said again: the metadata rows of a split (names of `use_ood_val=True`)."""
    year = pd.to_datetime(table["timestamp"], utc=True, format="ISO8601").dt.year
    ood = ood_year(scheme)
    if split == "test":
        return table.index[(table["split"] == "test") & (year >= ood)]
    val = table.index[(table["split"] == "val") & (year >= ood - 3) & (year < ood)]
    if split == "val":
        return val
    pool = table.index[(table["split"] == IN_DISTRIBUTION[split]) & (year == ood - 4)]
    if scheme != "mixed-to-test" or split != "train":
        return pool
    half = len(pool) // 2
    later = table.index[(table["split"] != "test") & (year >= ood - 3)]
    drawn = pd.Index(shuffled(later, seed + 2)[:half]).difference(val)  # WILDS assigns `val` after `train`
    mixed = drawn.union(shuffled(pool, seed + 3)[:half])
    return mixed[table["split"][mixed] != "seq"]


def shuffled(rows, seed):
    rows = np.array(rows)
    np.random.default_rng(seed + 541433).shuffle(rows)
    return rows


def rows_of(ds, split):
    return ds.full_idxs[ds.get_subset(split).indices]


@pytest.fixture(scope="module")
def edge_table():
    return times_with_edges(600)


@pytest.fixture(scope="module")
def edge_root(tmp_path_factory, edge_table):
    return write_tree(tmp_path_factory.mktemp("edges"), edge_table, images=range(0, 648, 9))


@pytest.fixture(scope="module")
def whole_second_root(tmp_path_factory):
    """A tree that WILDS' own class can read under today's pandas."""
    return write_tree(tmp_path_factory.mktemp("whole"), rows_at(any_times(800)))


@pytest.fixture(scope="module")
def real_root():
    if not (DATA / "fmow_v1.1" / "rgb_metadata.csv").exists():
        pytest.skip(f"no FMoW images under {DATA} (DATAMODELS_TEST_DATA)")
    return DATA


# Splits


@pytest.mark.parametrize("use_ood_val", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_splits_follow_the_rule(edge_root, edge_table, scheme, use_ood_val):
    ds = FMoWDataset(root_dir=edge_root, split_scheme=scheme, use_ood_val=use_ood_val)
    for split in ("train", "id_val", "id_test", "val", "test"):
        name = ID_VAL_NAMES[use_ood_val].get(split, split)
        np.testing.assert_array_equal(rows_of(ds, name), expected_rows(edge_table, scheme, split), err_msg=split)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_year_begins_and_ends_at_midnight_utc(tmp_path, split):
    table = rows_at(EDGES).assign(split=split)
    ds = FMoWDataset(root_dir=write_tree(tmp_path, table))
    kept = [EDGES[row] for row in rows_of(ds, {"val": "id_val", "test": "id_test"}.get(split, split))]
    assert kept == [EDGES[i] for i in (1, 2, 3, 4, 7)]


@pytest.mark.parametrize("use_ood_val", [True, False])
@pytest.mark.parametrize("scheme", ["official", "time_after_2008", "time_after_2013", "time_after_2017"])
def test_only_the_year_differs_from_wilds(whole_second_root, scheme, use_ood_val):
    ours, theirs = (
        cls(root_dir=whole_second_root, split_scheme=scheme, use_ood_val=use_ood_val)
        for cls in (FMoWDataset, WILDSFMoW)
    )
    assert isinstance(ours, WILDSFMoW)
    for name in ("split_dict", "split_names", "split_scheme", "metadata_fields", "n_classes", "data_dir", "version"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.metadata_map["year"] == theirs.metadata_map["year"]
    np.testing.assert_array_equal(ours.full_idxs, theirs.full_idxs)
    assert torch.equal(ours.y_array, theirs.y_array)
    pd.testing.assert_frame_equal(ours.metadata, theirs.metadata)

    in_year = theirs.metadata_array[:, 1].numpy() == ood_year(scheme) - 4 - 2002
    in_distribution = np.isin(theirs.split_array, [0, 1, 2])
    np.testing.assert_array_equal(ours.split_array, np.where(in_distribution & ~in_year, -1, theirs.split_array))
    assert ours.split_array.dtype == theirs.split_array.dtype
    assert torch.equal(ours.metadata_array[:, :3], theirs.metadata_array[:, :3])
    np.testing.assert_array_equal(ours.metadata_array[:, 3], np.isin(ours.split_array, [0, 1, 2]))


def test_the_constructor_takes_wilds_arguments():
    ours, theirs = (
        [(p.name, p.default) for p in inspect.signature(cls.__init__).parameters.values()]
        for cls in (FMoWDataset, WILDSFMoW)
    )
    assert ours == theirs


def test_mixed_to_test_depends_on_the_seed(edge_root, edge_table):
    ds = FMoWDataset(root_dir=edge_root, split_scheme="mixed-to-test", seed=5)
    np.testing.assert_array_equal(rows_of(ds, "train"), expected_rows(edge_table, "mixed-to-test", "train", seed=5))
    assert ds.oracle_training_set


def test_examples_are_the_subsets_without_their_images(edge_root, edge_table, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    ds = FMoWDataset(root_dir=edge_root)
    for split in ("train", "id_test"):
        examples, subset = ds.examples(split), ds.get_subset(split)
        np.testing.assert_array_equal(examples.rows, expected_rows(edge_table, "official", split))
        assert examples.labels.dtype == np.int64
        np.testing.assert_array_equal(examples.labels, subset.y_array)
        assert [CATEGORIES[label] for label in examples.labels] == list(edge_table["category"][examples.rows])
        assert examples.paths == [edge_root / f"fmow_v1.1/images/rgb_img_{row}.png" for row in examples.rows]


def test_eval_averages_over_groups_without_torch_scatter(edge_root):
    subset = FMoWDataset(root_dir=edge_root).get_subset("test")
    labels, years = subset.y_array, subset.metadata_array[:, 1]
    predicted = torch.where(torch.arange(len(labels)) % 3 == 0, (labels + 1) % 62, labels)
    results, text = subset.eval(predicted, labels, subset.metadata_array)
    right = (predicted == labels).float()
    assert f"Average acc: {right.mean():.3f}" in text
    for year in range(2002, 2018):
        of_year = right[years == year - 2002]
        assert results[f"count_year:{year}"] == len(of_year)
        assert results[f"acc_year:{year}"] == pytest.approx(float(of_year.mean()) if len(of_year) else 0.0)
    assert "torch_scatter" not in sys.modules


def test_real_images(real_root):
    ds = FMoWDataset(root_dir=real_root, split_scheme="time_after_2016")
    assert [len(ds.get_subset(split)) for split in IN_DISTRIBUTION] == [43, 4, 31]
    x, y, metadata = ds.get_subset("train")[0]
    assert (x.size, x.mode, CATEGORIES[y], len(metadata)) == ((224, 224), "RGB", "crop_field", 4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_real_metadata_follows_the_rule(real_root, scheme):
    test_splits_follow_the_rule(real_root, pd.read_csv(real_root / "fmow_v1.1" / "rgb_metadata.csv"), scheme, True)


# Where and how it runs

WORKER = """
import sys
if __name__ == "__main__":  # a worker learns of fmow by unpickling alone
    import torch
    from fmow import FMoWDataset
    from torchvision import transforms
    assert "outdated" not in sys.modules and "torch_scatter" not in sys.modules
    train = FMoWDataset(root_dir=sys.argv[1]).get_subset("train", transform=transforms.ToTensor())
    train.indices = [i for i in train.indices if train.dataset.full_idxs[i] % 9 == 0]
    loader = torch.utils.data.DataLoader(train, 2, num_workers=1, multiprocessing_context="spawn")
    torch.save([(x, y) for x, y, _ in loader], sys.argv[2])
"""

NO_NETWORK = """
import pathlib, socket
def refuse(self, address, connect=socket.socket.connect):
    if self.family != socket.AF_UNIX:
        pathlib.Path({marker!r}).write_text(f"connect {{address}}")
        raise OSError("no network in this test")
    return connect(self, address)
socket.socket.connect = refuse
"""

POISON = """
import pathlib
pathlib.Path({marker!r}).write_text("outdated was imported")
def check_outdated(*_): raise RuntimeError
"""


def run_python(*args, path=()):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, REPO]))}
    done = subprocess.run([sys.executable, *map(str, args)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_spawned_workers_read_it_and_no_one_asks_the_network(edge_root, edge_table, tmp_path):
    marker = str(tmp_path / "marker")
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(marker=marker))
    (tmp_path / "outdated.py").write_text(POISON.format(marker=marker))
    (tmp_path / "script.py").write_text(WORKER)
    run_python("-W", "error", tmp_path / "script.py", edge_root, tmp_path / "batches.pt", path=[tmp_path])
    assert not Path(marker).exists(), Path(marker).read_text()

    rows = [row for row in expected_rows(edge_table, "official", "train") if row % 9 == 0]
    batches = torch.load(tmp_path / "batches.pt")
    images = (torch.cat([x for x, _ in batches]) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(images, [pixels(row) for row in rows])
    assert [CATEGORIES[y] for _, ys in batches for y in ys] == list(edge_table["category"][rows])


MEASURE = """
import sys, time
from fmow import FMoWDataset
from tests.memory import peak
start = time.process_time()
ds = FMoWDataset(root_dir=sys.argv[1])
print(time.process_time() - start, peak() / 2**30)
print(*(len(ds.get_subset(split)) for split in ("train", "id_val", "id_test", "val", "test")))
"""


def test_a_tree_of_the_real_size(tmp_path):
    table = pd.concat([rows_at(any_times(47_000))] * 10, ignore_index=True)
    seconds, gib, *sizes = map(float, run_python("-c", MEASURE, write_tree(tmp_path, table)))
    splits = ("train", "id_val", "id_test", "val", "test")
    assert sizes == [len(expected_rows(table, "official", split)) for split in splits]
    assert seconds <= 10
    assert gib <= 1.5


# What is not as it should be


def with_table(root, name, change):
    path = root / "fmow_v1.1" / name
    change(pd.read_csv(path)).to_csv(path, index=False)
    return path


@pytest.fixture
def small_root(tmp_path):
    return write_tree(tmp_path, rows_at(any_times(20)).assign(split="train"), images=range(20))


def refusal(root, **options):
    """The one line that a dataset is refused with."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        FMoWDataset(root_dir=root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_root_without_data_gets_wilds_message_and_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The fmow dataset could not be found in .*/elsewhere/fmow_v1\.1"):
        FMoWDataset(root_dir=tmp_path / "elsewhere")
    assert not list(tmp_path.iterdir())


def test_a_tree_without_its_release_file_is_read(small_root):
    (small_root / "fmow_v1.1" / "RELEASE_v1.1.txt").unlink()
    assert len(FMoWDataset(root_dir=small_root)) == 20


def test_download_is_wilds_own(tmp_path, monkeypatch, capsys):
    def fetch(url, download_root, **_):
        assert url == WILDSFMoW._versions_dict["1.1"]["download_url"]
        write_tree(Path(download_root).parent, rows_at(any_times(20)))

    monkeypatch.setattr("wilds.datasets.download_utils.download_and_extract_archive", fetch)
    assert len(FMoWDataset(root_dir=tmp_path / "new", download=True).metadata) == 20
    assert "Downloading" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rgb_metadata.csv", "country_code_mapping.csv"])
def test_a_missing_table_is_named(small_root, name):
    (small_root / "fmow_v1.1" / name).unlink()
    assert name in refusal(small_root)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\xff\xfe", b'a,b\n"1'])
def test_a_broken_table_is_named(small_root, content):
    (small_root / "fmow_v1.1" / "rgb_metadata.csv").write_bytes(content)
    assert "rgb_metadata.csv: " in refusal(small_root)


@pytest.mark.parametrize(
    ("name", "column"),
    [("rgb_metadata.csv", column) for column in ("split", "category", "country_code", "timestamp")]
    + [("country_code_mapping.csv", column) for column in ("alpha-3", "region")],
)
def test_a_missing_column_is_named(small_root, name, column):
    path = with_table(small_root, name, lambda table: table.drop(columns=column))
    assert refusal(small_root).startswith(f"{path}: no column '{column}' (found: ")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("timestamp", "yesterday"),
        ("timestamp", None),
        ("timestamp", "2018-01-01T00:00:00Z"),
        ("timestamp", "2001-12-31T23:59:59Z"),
        ("category", "moon_base"),
        ("category", None),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_row(small_root, column, value):
    path = with_table(
        small_root,
        "rgb_metadata.csv",
        lambda table: table.assign(**{column: table[column].where(table.index != 7, value)}),
    )
    told = refusal(small_root)
    assert told.startswith(f"{path}: row 7: {column} ")
    assert str(value or "nan") in told


def test_sequestered_rows_may_be_of_any_year(small_root):
    with_table(
        small_root,
        "rgb_metadata.csv",
        lambda table: pd.concat([table, rows_at(["2018-06-01T00:00:00Z"]).assign(split="seq")]),
    )
    assert len(FMoWDataset(root_dir=small_root)) == 20


@pytest.mark.parametrize("change", [lambda table: table[:0], lambda table: table.assign(split="seq")])
def test_a_table_without_usable_rows_is_refused(small_root, change):
    path = with_table(small_root, "rgb_metadata.csv", change)
    assert refusal(small_root).startswith(f"{path}: no rows outside the sequestered split")


@pytest.mark.parametrize("scheme", ["time_after_1999", "time_after_2019", "time_after_", "time_before_2016", "", None])
def test_an_unknown_scheme_is_refused_before_anything_is_read(tmp_path, scheme):
    assert refusal(tmp_path / "nowhere", split_scheme=scheme).startswith(f"split_scheme {scheme!r} is unknown")


def test_an_unknown_version_and_split_are_refused_as_by_wilds(small_root):
    assert "Version 1.0 not supported" in refusal(small_root, version="1.0")
    with pytest.raises(ValueError, match="Split ood_val not found"):
        FMoWDataset(root_dir=small_root).get_subset("ood_val")


@pytest.mark.parametrize("keep", [None, 0, 1, 30, 60, -20])
def test_a_missing_or_truncated_image_is_named_when_it_is_opened(small_root, keep):
    path = small_root / "fmow_v1.1" / "images" / "rgb_img_3.png"
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    ds = FMoWDataset(root_dir=small_root)
    with pytest.raises(OSError, match="no such image" if keep is None else "cannot be read as an image") as error:
        ds[3]
    assert isinstance(error.value, FileNotFoundError) == (keep is None)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_flipped_byte_never_gives_another_image(small_root):
    path = small_root / "fmow_v1.1" / "images" / "rgb_img_3.png"
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            np.testing.assert_array_equal(read_image(path), pixels(3))
        except OSError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0.9 * len(whole)
