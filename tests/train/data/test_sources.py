"""Data sets in the order of the published columns, and what is said where files are not as they should be."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodels.train.config import Data, Setting, identity
from datamodels.train.data import images
from datamodels.train.data.images import LazyImages, Split
from datamodels.train.data.sources import load
from datamodels.train.errors import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """A copy of the real FMoW tree, for tests that damage it."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(real_data / "fmow_v1.1", root / "fmow_v1.1", copy_function=shutil.copyfile)
    for path in (root / "fmow_v1.1", root / "fmow_v1.1" / "images"):
        path.chmod(0o755)
    return root


def fmow(root: Path, **data: Any) -> Setting:
    return Setting(dataset="fmow", data=Data(root=str(root), packed=str(root / "no-packs"), **data))


def refusal(setting: Setting) -> str:
    with pytest.raises(UserError) as error:
        load(setting)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_fmow_has_the_order_of_its_subsets(real_data: Path) -> None:
    from fmow import CATEGORIES, FMoWDataset

    dataset = load(fmow(real_data))
    assert dataset.classes == CATEGORIES
    wilds = FMoWDataset(root_dir=real_data)
    for split, name in ((dataset.train, "train"), (dataset.test, "id_test")):
        subset = wilds.get_subset(name)
        np.testing.assert_array_equal(split.labels, subset.y_array)
        assert split.images.shape == (len(subset), 224, 224, 3)
        for position in range(0, len(subset), 7):
            np.testing.assert_array_equal(split.images[position], subset[position][0])


def test_fmow_can_be_cut_and_resized(real_data: Path) -> None:
    whole, small = load(fmow(real_data)), load(fmow(real_data, size=64, train=5, test=3))
    assert small.train.images.shape == (5, 64, 64, 3)
    assert small.test.images.shape == (3, 64, 64, 3)
    expected = Image.fromarray(whole.train.images[4]).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.train.images[4], expected)
    np.testing.assert_array_equal(small.train.labels, whole.train.labels[:5])


def test_only_the_images_that_are_used_are_read(tree: Path) -> None:
    broken = sorted((tree / "fmow_v1.1" / "images").iterdir())
    position = next(i for i, path in enumerate(broken) if path.name == _train_path(tree, 10).name)
    content = broken[position].read_bytes()
    broken[position].write_bytes(content[:1000])
    try:
        assert len(load(fmow(tree, train=10)).train.images) == 10
        assert refusal(fmow(tree, train=11)).startswith(f"{broken[position]}: cannot be read as an image")
    finally:
        broken[position].write_bytes(content)


def _train_path(tree: Path, position: int) -> Path:
    from fmow import FMoWDataset

    return FMoWDataset(root_dir=tree).examples("train").paths[position]


def test_subsets_and_sizes_are_identity_and_the_form_is_not() -> None:
    here = Setting(dataset="fmow")
    free = Setting(dataset="fmow", data=Data(root="x", form="npy", packed="y", resident=False))
    assert identity(here.to_dict()) == identity(free.to_dict())
    for change in ({"size": 64}, {"split_scheme": "time_after_2015"}, {"train": 9}, {"test": 9}):
        other = Setting(dataset="fmow", data=Data(**change))
        assert identity(here.to_dict()) != identity(other.to_dict())


class Counted(LazyImages):
    """Lazy images that say which were read."""

    def __init__(self, count: int) -> None:
        super().__init__((count, 2, 2, 1))
        self.read: list[int] = []

    def read_into(self, position: int, out: np.ndarray) -> None:
        self.read.append(position)
        out[:] = position

    def stamp(self) -> str:
        return "counted"


def test_lazy_images_are_indexed_like_an_array() -> None:
    lazy, array = Counted(9), np.repeat(np.arange(9, dtype=np.uint8), 4).reshape(9, 2, 2, 1)
    for pick in (3, -1, slice(2, 7), np.array([4, 0, 4]), np.int64(8), slice(0, 0)):
        np.testing.assert_array_equal(lazy[pick], array[pick])
    np.testing.assert_array_equal(lazy.head(4)[:], array[:4])
    with pytest.raises(IndexError):
        lazy.head(4)[4]
    labels = np.arange(9)
    assert Split(lazy, labels).sha256 == Split(array, labels).sha256


def test_lazy_images_are_kept_where_they_take_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(Counted(8), np.arange(8))
    for free, wanted, kept in ((64, None, True), (63, None, False), (0, True, True), (10**9, False, False)):
        monkeypatch.setattr(images, "free_host_memory", lambda free=free: free)
        assert isinstance(split.in_memory(wanted).images, np.ndarray) == kept


def test_a_digest_needs_no_more_memory_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK_BYTES", 9)
    lazy = Counted(5)
    assert [len(chunk) for chunk in images.chunks(lazy)] == [2, 2, 1]


def test_a_wrong_root_says_what_is_expected(tmp_path: Path) -> None:
    assert "no fmow_v1.1 folder there" in refusal(fmow(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rgb_metadata.csv", "country_code_mapping.csv"])
def test_a_missing_table_is_named(tree: Path, name: str) -> None:
    path = tree / "fmow_v1.1" / name
    path.rename(path.with_suffix(".away"))
    try:
        assert refusal(fmow(tree)).startswith(str(path))
    finally:
        path.with_suffix(".away").rename(path)


@pytest.mark.parametrize("scheme", ["time_after_1999", "random", ""])
def test_an_unknown_split_scheme_is_refused(real_data: Path, scheme: str) -> None:
    assert refusal(fmow(real_data, split_scheme=scheme)).startswith(f"data.split_scheme {scheme!r} is unknown")


def test_a_scheme_without_images_is_refused(real_data: Path) -> None:
    assert "has no training image" in refusal(fmow(real_data, split_scheme="time_after_2006"))


def test_images_of_several_sizes_are_refused(tree: Path) -> None:
    path = _train_path(tree, 3)
    content = path.read_bytes()
    Image.new("RGB", (200, 224)).save(path)
    try:
        assert refusal(fmow(tree)).startswith(f"{path} has 200 x 224 pixels, expected 224 x 224")
        assert len(load(fmow(tree, size=32)).train.images) == 43
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("dataset", "data", "named"),
    [
        ("cifar", {"size": 64}, "data.size is 64"),
        ("digits", {"split_scheme": "time_after_2016"}, "data.split_scheme is 'time_after_2016'"),
        ("digits", {"form": "npy"}, "data.form is 'npy'"),
        ("mnist", {}, "dataset is 'mnist'"),
    ],
)
def test_fields_without_effect_are_refused(dataset: str, data: dict[str, Any], named: str) -> None:
    assert refusal(Setting(dataset=dataset, data=Data(**data))).startswith(named)
