"""Packed images: the same pixels in the same order, complete or not there, checked against their index."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodels.train.config import Data, Setting
from datamodels.train.data import beton, cifar
from datamodels.train.data.images import LazyImages, Split
from datamodels.train.data.packed import Pack
from datamodels.train.data.sources import load, pack
from datamodels.train.errors import UserError, WorkError
from tests.conftest import PROJECT

COUNT = 300


class Source(LazyImages):
    """Images of 4 x 5 pixels, each of its own number's colours."""

    def __init__(self, count: int = COUNT) -> None:
        super().__init__((count, 4, 5, 3))
        self.read: set[int] = set()

    def read_into(self, position: int, out: np.ndarray) -> None:
        self.read.add(position)
        out[:] = [position % 251, position // 251, 7]

    def stamp(self) -> str:
        return "source"


def split_of(images: LazyImages) -> Split:
    return Split(images, np.arange(len(images)) % 3)


def write(path: Path, split: Split) -> Pack:
    packed = Pack(path)
    packed.write(split, ("a", "b", "c"), lambda what, done, total: None)
    return packed


def test_a_pack_is_a_plain_array_with_an_index(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.npy", split_of(Source()))
    np.testing.assert_array_equal(np.load(packed.path, mmap_mode="r"), Source()[:])
    index = json.loads(packed.index.read_text())
    assert index["sha256"] == split_of(Source()).sha256
    assert index["shape"] == [COUNT, 4, 5, 3]
    assert index["labels"] == [i % 3 for i in range(COUNT)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.npy.json"]

    split, classes = packed.read()
    assert isinstance(split.images, np.memmap)
    assert classes == ("a", "b", "c")


def test_what_is_packed_is_left_alone_and_what_changed_is_packed_again(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.npy", split_of(Source()))
    written = packed.path.stat().st_mtime_ns
    again = Source()
    write(packed.path, split_of(again))
    assert packed.path.stat().st_mtime_ns == written
    assert not again.read
    write(packed.path, split_of(Source(COUNT - 1)))
    assert packed.read()[0].images.shape[0] == COUNT - 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.train.data.test_packing import Source, split_of, write
class Killed(Source):
    def read_into(self, position, out):
        if position == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        super().read_into(position, out)
write(Path(sys.argv[1]), split_of(Killed()))
"""


def test_packing_that_was_killed_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    done = subprocess.run([sys.executable, "-c", KILLED, path, "155"], cwd=PROJECT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Pack(path).exists()
    source = Source(COUNT - 1)
    packed = write(path, split_of(source))
    assert source.read == set(range(COUNT - 1))
    packed.read()
    np.testing.assert_array_equal(np.load(path), Source(COUNT - 1)[:])
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_do_not_write_one_pack(tmp_path: Path) -> None:
    class Meddler(Source):
        def read_into(self, position: int, out: np.ndarray) -> None:
            if position == 0:
                with pytest.raises(UserError, match="is being written by another process"):
                    write(tmp_path / "x.npy", split_of(Source()))
            super().read_into(position, out)

    write(tmp_path / "x.npy", split_of(Meddler()))


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(WorkError, match=r"cannot pack /proc/nowhere/x\.npy"):
        write(Path("/proc/nowhere/x.npy"), split_of(Source()))


def refusal(packed: Pack) -> str:
    with pytest.raises(UserError) as error:
        packed.read()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_damaged_pack_is_named(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.npy", split_of(Source()))
    content = packed.path.read_bytes()
    packed.path.write_bytes(content[:5000] + b"\xff" + content[5001:])
    assert refusal(packed).startswith(f"{packed.path} is damaged: its content has sha256")
    packed.path.write_bytes(content[:-1])
    assert refusal(packed).startswith(f"{packed.path} is not a whole .npy file")
    np.save(packed.path, np.zeros((4, 4, 5, 3), np.uint8))
    assert refusal(packed).startswith(f"{packed.path} holds images [4, 4, 5, 3]")
    np.save(packed.path, np.zeros(4))
    assert refusal(packed).startswith(f"{packed.path} holds float64 [4]")
    for text in ("", "{}", "[]", '{"format": "other"}'):
        packed.index.write_text(text)
        assert refusal(packed).startswith(str(packed.index))


def fmow(real_data: Path, folder: Path, form: str = "auto") -> Setting:
    return Setting(dataset="fmow", data=Data(root=str(real_data), packed=str(folder), form=form, size=32))


def test_a_packed_data_set_is_the_data_set(tmp_path: Path, real_data: Path) -> None:
    original = load(fmow(real_data, tmp_path))
    with pytest.raises(UserError, match=r"does not exist: `datamodels data CONFIG --data\.form npy` makes it"):
        load(fmow(real_data, tmp_path, "npy"))
    pack(fmow(real_data, tmp_path))
    for form in ("auto", "npy"):
        packed = load(fmow(real_data, tmp_path, form))
        assert packed.where.endswith("_train.npy")
        assert packed.sha256() == original.sha256()
        assert packed.classes == original.classes
    assert load(fmow(real_data, tmp_path, "original")).where == str(real_data / "fmow_v1.1")


def test_a_pack_serves_where_the_tree_is_gone(tmp_path: Path, real_data: Path) -> None:
    pack(fmow(real_data, tmp_path))
    moved = load(fmow(tmp_path / "elsewhere", tmp_path))
    assert moved.sha256() == load(fmow(real_data, tmp_path)).sha256()
    for name in ("train", "test"):
        (index,) = tmp_path.glob(f"*_{name}.npy.json")
        other = index.with_name(index.name.replace("_32px_", "_32px_f"))
        other.write_text(index.read_text())
        other.with_suffix("").touch()
    with pytest.raises(UserError, match="matches 2 files"):
        load(fmow(tmp_path / "elsewhere", tmp_path))


def test_cifar_is_packed_on_request(tmp_path: Path, real_data: Path) -> None:
    setting = Setting(data=Data(root=str(real_data), packed=str(tmp_path)))
    pack(setting)
    assert not list(tmp_path.iterdir())
    setting.data.form = "npy"
    pack(setting)
    setting.data.train = 2000
    original = Setting(data=Data(root=str(real_data), train=2000))
    assert load(setting).sha256() == load(original).sha256()


# .beton files, as their format says


def write_raw(path: Path, images: np.ndarray, labels: np.ndarray, swapped: bool = False) -> None:
    """A raw .beton file, stated independently of the reader: images in reverse order, from a page's boundary on."""
    types = [1, 2] if swapped else [2, 1]
    record = np.dtype([(str(kind), beton.RECORDS[kind]) for kind in types], align=True)
    records, table = np.zeros(len(images), record), np.zeros(len(images), beton.TABLE)
    size, start = images[0].size, (2106 + record.itemsize * len(images) | 0xFFFF) + 1
    for sample in range(len(images)):
        at = start + (len(images) - 1 - sample) * size
        records["2"][sample] = (1, images.shape[2], images.shape[1], at)
        records["1"][sample] = labels[sample]
        table[sample] = (sample, at, size)
    fields = np.zeros(2, beton.FIELD)
    fields["type"] = types
    end = start + images.size
    header = np.array([(2, 2, 1 << 21, len(images), end)], beton.HEADER)
    head = header.tobytes() + fields.tobytes() + records.tobytes()
    path.write_bytes(head.ljust(start, b"\0") + images[::-1].tobytes() + table[::-1].tobytes())


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_raw_beton_needs_no_ffcv(tmp_path: Path, pixels: np.ndarray, swapped: bool) -> None:
    write_raw(tmp_path / "x.beton", pixels, np.arange(20), swapped)
    split = beton.read(tmp_path / "x.beton")
    np.testing.assert_array_equal(split.images[:], pixels)
    np.testing.assert_array_equal(split.images[np.array([3, 0, 3])], pixels[[3, 0, 3]])
    np.testing.assert_array_equal(split.labels, np.arange(20))


def test_large_images_are_copied_one_by_one(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 120, 110, 3), np.uint8)
    assert images[0].nbytes > beton.LARGE_BYTES
    write_raw(tmp_path / "x.beton", images, np.arange(5))
    np.testing.assert_array_equal(beton.read(tmp_path / "x.beton").images[np.array([4, 0, 2])], images[[4, 0, 2]])


def test_a_beton_that_cannot_be_used_is_named(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "x.beton"
    write_raw(path, pixels, np.arange(20))
    content = path.read_bytes()
    table = len(content) - 20 * beton.TABLE.itemsize
    damaged = {
        "empty": b"",
        "short": content[:10],
        "cut in its records": content[:2200],
        "cut in its table": content[:-7],
        "one entry short": content[:-24],
        "another version": b"\x01" + content[1:],
        "not a beton": b"\x89PNG" * 1000,
        "an image of another length": content[: table + 16] + b"\x01" + content[table + 17 :],
        "images of two sizes": content[:2107] + b"\x09" + content[2108:],
    }
    for what, changed in damaged.items():
        path.write_bytes(changed)
        with pytest.raises(UserError) as error:
            beton.read(path)
        assert str(path) in str(error.value), what
        assert "\n" not in str(error.value), what


def foreign(dataset: str, root: Path) -> Setting:
    return Setting(dataset=dataset, data=Data(root=str(root), form="beton"))


def test_a_beton_of_another_data_set_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"cifar_train\.beton does not exist"):
        load(foreign("cifar", tmp_path))
    images = np.zeros((20, 32, 32, 3), np.uint8)
    for dataset, content, labels, expected in (
        ("cifar", pixels, np.arange(20) % 10, "is not of cifar: images of 5 x 6 pixels, expected 32 x 32"),
        ("cifar", images, np.arange(20) % 10, "is not of cifar: its 20 labels are not CIFAR-10's train labels"),
        ("cifar", images, np.arange(20), "is not of cifar: expected labels from 0 to 9"),
        ("fmow", images, np.arange(20), "is not of fmow: images of 32 x 32 pixels, expected 224 x 224"),
    ):
        write_raw(tmp_path / f"{dataset}_train.beton", content, labels)
        with pytest.raises(UserError, match=expected):
            load(foreign(dataset, tmp_path))


def test_an_ffcv_users_cifar_is_cifar(tmp_path: Path, real_data: Path) -> None:
    original = load(Setting(data=Data(root=str(real_data))))
    for name in ("train", "test"):
        split = getattr(original, name)
        write_raw(tmp_path / f"cifar_{name}.beton", split.images, split.labels)
    assert load(foreign("cifar", tmp_path)).sha256() == original.sha256()


def test_an_ffcv_users_fmow_is_told_from_others_by_the_tables(tmp_path: Path, real_data: Path) -> None:
    original = load(fmow(real_data, tmp_path, "original"))
    setting = foreign("fmow", tmp_path)
    setting.data.size = 32
    for name in ("train", "test"):
        split = getattr(original, name)
        write_raw(tmp_path / f"fmow_{name}.beton", split.images[:], split.labels)
    with pytest.raises(UserError, match=r"no fmow_v1\.1 folder there"):
        load(setting)
    (tmp_path / "fmow_v1.1").mkdir()
    for table in ("rgb_metadata.csv", "country_code_mapping.csv"):
        (tmp_path / "fmow_v1.1" / table).write_bytes((real_data / "fmow_v1.1" / table).read_bytes())
    assert load(setting).sha256() == original.sha256()
    swapped = original.test
    write_raw(tmp_path / "fmow_train.beton", swapped.images[:], swapped.labels)
    with pytest.raises(UserError, match=r"is not of fmow: its 31 labels are not those of the 43 train images"):
        load(setting)


def test_nothing_is_packed_where_more_examples_are_asked_for_than_there_are(tmp_path: Path, real_data: Path) -> None:
    setting = fmow(real_data, tmp_path / "packed")
    setting.data.test = 99_999
    with pytest.raises(UserError, match=r"data\.test is 99999, expected at most the 31 examples"):
        pack(setting)
    assert not (tmp_path / "packed").exists()


# FFCV itself


@pytest.fixture(scope="module")
def photographs(real_data: Path) -> np.ndarray:
    paths = sorted((real_data / "fmow_v1.1" / "images").glob("*.png"))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


@pytest.fixture(scope="module")
def small(real_data: Path) -> np.ndarray:
    return np.asarray(cifar.read(Data(root=str(real_data)))[0].images)[:5000]


WRITER = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
for array, path, mode in zip(*[iter(sys.argv[1:])] * 3):
    images = np.load(array)
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
    examples = [(image, index % 10) for index, image in enumerate(images)]
    DatasetWriter(path, fields, num_workers=2).from_indexed_dataset(examples)
"""


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory, photographs: np.ndarray, small: np.ndarray) -> Path:
    """A folder with FFCV's own files of both, written by one process."""
    done = subprocess.run([sys.executable, "-c", "import ffcv"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"ffcv cannot be imported ({done.stderr.splitlines()[-1]}): pip install .[ffcv]")
    folder = tmp_path_factory.mktemp("betons")
    np.save(folder / "photographs.npy", photographs)
    np.save(folder / "small.npy", small)
    files = [("photographs", "raw"), ("photographs", "jpg"), ("small", "raw")]
    arguments = [(f"{folder}/{name}.npy", f"{folder}/{name}.{mode}.beton", mode) for name, mode in files]
    subprocess.run([sys.executable, "-c", WRITER, *sum(arguments, ())], cwd=PROJECT, check=True)
    return folder


def read_by_ffcv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    loader = importlib.import_module("ffcv.loader").Loader(str(path), 50, num_workers=1, drop_last=False)
    batches = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in loader]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])[:, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["photographs", "small"])
def test_a_raw_beton_of_ffcv_holds_the_pixels(betons: Path, name: str) -> None:
    split = beton.read(betons / f"{name}.raw.beton")
    images, labels = read_by_ffcv(betons / f"{name}.raw.beton")
    for found in (split.images[:], images):
        np.testing.assert_array_equal(found, np.load(betons / f"{name}.npy"))
    np.testing.assert_array_equal(labels, split.labels)


@pytest.mark.filterwarnings("ignore")
def test_a_jpeg_beton_is_close_to_the_pixels_and_what_ffcv_reads(betons: Path, photographs: np.ndarray) -> None:
    found = beton.read(betons / "photographs.jpg.beton").images[:]
    np.testing.assert_array_equal(found, read_by_ffcv(betons / "photographs.jpg.beton")[0])
    error = (found.astype(np.float64) - photographs) ** 2
    psnr = 10 * np.log10(255**2 / error.mean((1, 2, 3)))
    assert psnr.min() > 28
    assert psnr.mean() > 32
