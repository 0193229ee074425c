"""A user's own data: read from .npy files, refused where they do not fit, and good for every command."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.train.config import Data, Setting, identity
from datamodels.train.data import own
from datamodels.train.data.sources import load
from datamodels.train.errors import UserError
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process, tiny


def write(folder: Path, channels: int = 1, **changes: np.ndarray | None) -> Path:
    """A folder with 40 training and 30 test images of 3 classes; `changes` replace arrays, None removes one."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {}
    for name, count in (("train", 40), ("test", 30)):
        labels = np.arange(count, dtype=np.uint8) % 3
        images = random.integers(0, 120, (count, 8, 8, channels)) + 60 * labels[:, None, None, None]
        arrays |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": labels}
    folder.mkdir(exist_ok=True)
    for name, array in (arrays | changes).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array)
    return folder


def setting(folder: Path, **data: Any) -> Setting:
    found = tiny(data=Data(root=str(folder), **data))
    found.dataset = "mine"
    return found


def refusal(found: Setting) -> str:
    with pytest.raises(UserError) as error:
        load(found)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data")


def test_the_four_files_are_the_data_set_in_their_order(folder: Path) -> None:
    dataset = load(setting(folder))
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(split.images, np.load(folder / f"{name}_images.npy"))
        np.testing.assert_array_equal(split.labels, np.load(folder / f"{name}_labels.npy"))
    assert dataset.classes == ("0", "1", "2")
    assert dataset.where == str(folder)


def test_images_may_lack_the_channels_and_classes_may_have_names(folder: Path) -> None:
    before = load(setting(folder)).sha256()
    for name in ("train_images", "test_images"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[..., 0])
    (folder / "classes.txt").write_text("kât\nsea cow\nzebra fish\nnever seen\n", encoding="utf-8-sig")
    dataset = load(setting(folder))
    assert dataset.sha256() == before
    assert dataset.classes == ("kât", "sea cow", "zebra fish", "never seen")


def test_channels_first_images_are_the_same_data_set_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "data", channels=3)
    before, told = load(setting(folder)), list[str]()
    for name in ("train_images", "test_images"):
        np.save(folder / f"{name}.npy", np.ascontiguousarray(np.load(folder / f"{name}.npy").transpose(0, 3, 1, 2)))
    found = load(setting(folder), told.append)
    assert (found.sha256(), found.mean, found.std) == (before.sha256(), before.mean, before.std)
    assert told == [
        f"{folder}/train_images.npy and {folder}/test_images.npy: taken as [N, channels, height, width], 3 of 8 x 8 "
        "(data.layout: NCHW)"
    ]
    monkeypatch.setattr(own, "MAPPED_BYTES", 1)
    in_file = setting(folder, layout="NCHW", resident=False)
    found = load(in_file, told.append)
    assert isinstance(found.train.images, own.ChannelsFirst)
    assert (found.sha256(), found.mean, found.std) == (before.sha256(), before.mean, before.std)
    assert len(told) == 1, "what is stated needs no notice"
    assert identity(in_file.to_dict()) == identity(setting(folder).to_dict()), "the images have a digest of their own"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 8, 6), (8, 6, 1)),
        ((4, 8, 6), (8, 6, 4)),
        ((8, 6, 1), (8, 6, 1)),
        ((8, 6, 4), (8, 6, 4)),
        ((12, 12, 10), (12, 12, 10)),
        ((4, 4, 3), (4, 4, 3)),
        *((shape, None) for shape in ((3, 3, 3), (1, 8, 3), (3, 8, 4), (2, 8, 8), (8, 8, 10), (10, 64, 64))),
    ],
)
def test_channels_are_where_they_can_be_or_where_the_config_says(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    images = {f"{name}_images": np.zeros((count, *shape), np.uint8) for name, count in (("train", 40), ("test", 30))}
    folder = write(tmp_path / "data", **images)
    if expected:
        assert load(setting(folder)).train.images.shape == (40, *expected)
    else:
        said = f"holds images {list(shape)}, which may be {shape[1]} x {shape[2]} pixels with {shape[0]} channels first"
        assert said in refusal(setting(folder))
        assert "expected data.layout to be NCHW or NHWC" in refusal(setting(folder))
    assert load(setting(folder, layout="NHWC")).train.images.shape == (40, *shape)
    assert load(setting(folder, layout="NCHW")).train.images.shape == (40, *shape[1:], shape[0])


def test_mean_and_deviation_are_those_of_the_training_images_in_use(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", channels=3)
    images = np.load(folder / "train_images.npy")[:20]
    dataset = load(setting(folder, train=20))
    np.testing.assert_allclose(dataset.mean, images.mean((0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(dataset.std, images.std((0, 1, 2)), rtol=1e-14)


def test_statistics_do_not_depend_on_how_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.train.data import images

    for dtype, offset in ((np.uint8, 0), (np.uint16, 65000), (np.float32, 1e5)):
        array = (np.random.default_rng(1).integers(0, 256, (50, 4, 4, 2)) + offset).astype(dtype)
        array[..., 1] = 9.3
        monkeypatch.undo()
        whole = own.statistics(array)
        monkeypatch.setattr(images, "CHUNK_BYTES", 100)
        np.testing.assert_allclose(own.statistics(array), whole, rtol=1e-14 if dtype == np.float32 else 0)
        np.testing.assert_allclose(whole[0][0], array[..., 0].mean(dtype=np.float64), rtol=1e-14)
        np.testing.assert_allclose(whole[1][0], array[..., 0].std(dtype=np.float64), rtol=1e-12)
        assert (whole[0][1], whole[1][1]) == (array[0, 0, 0, 1], 1)


def test_a_config_may_state_mean_and_deviation(folder: Path) -> None:
    stated = setting(folder, mean=[100], std=[50.0])
    assert (load(stated).mean, load(stated).std) == ((100,), (50.0,))
    assert identity(stated.to_dict()) != identity(setting(folder).to_dict())
    assert refusal(setting(folder, mean=[1.0, 2.0])) == "data.mean is [1.0, 2.0], expected 1 numbers, one a channel"
    for key, value in (("mean", [math.inf]), ("std", [0.0])):
        with pytest.raises(UserError, match=f"data.{key} is"):
            Data(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("mean", 0.3), ("std", 0.25), ("std", 1.0), ("mean", 256.0), ("mean", -90.0)]
)
def test_means_and_deviations_in_other_units_are_refused_with_the_images_own(
    folder: Path, key: str, value: float
) -> None:
    own_value = getattr(load(setting(folder)), key)[0]
    said = f"data.{key} is [{value}]: {value:g} is far from {own_value:.4g}, the usual one of channel 0 of these uint8"
    assert said in refusal(setting(folder, **{key: [value]}))
    assert load(setting(folder, mean=[0.0], std=[255.0])).mean == (0.0,), "as torchvision's ToTensor"
    for name in ("train_images", "test_images"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy") // 128)
    if 0 <= value <= 1:
        load(setting(folder, **{key: [value]}))  # of images of zeros and ones


@pytest.mark.parametrize(
    ("dtype", "scale", "key", "stated", "bad"),
    [
        ("uint8", 1, "mean", (118, 0.5, 0.4), 0.5),
        ("uint8", 1, "std", (60, 60, 0.2), 0.2),
        ("uint16", 257, "mean", (118, 118, 118), 118),
        ("uint16", 257, "mean", (30000, 25000, 66000), 66000),
        ("uint16", 257, "std", (65535, 65535, 65535), None),
        ("float32", 1 / 255, "mean", (0.485, 0.456, 0.406), None),
        ("float32", 1 / 255, "mean", (0.485, 0.456, 123), 123),
        ("float32", 1 / 255, "std", (58, 57, 57), 58),
        ("float32", 1, "mean", (0, 0, 0), None),
        ("float32", 1, "std", (58, 57, 0.2), 0.2),
    ],
)
def test_each_number_has_to_be_in_the_units_of_the_images(
    tmp_path: Path, dtype: str, scale: float, key: str, stated: tuple[float, ...], bad: float | None
) -> None:
    folder = write(tmp_path / "data", channels=3)
    for name in ("train_images", "test_images"):
        np.save(
            folder / f"{name}.npy", np.multiply(np.load(folder / f"{name}.npy"), scale, dtype=np.float64).astype(dtype)
        )
    if bad is None:
        assert getattr(load(setting(folder, **{key: list(stated)})), key) == stated
    else:
        channel = stated.index(bad)
        own_value = getattr(load(setting(folder)), key)[channel]
        said = f": {bad:g} is far from {own_value:.4g}, the usual one of channel {channel} of these {dtype} images"
        assert said in refusal(setting(folder, **{key: list(stated)}))


def test_large_images_stay_in_their_file_and_give_the_same_data_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = load(setting(folder))
    monkeypatch.setattr(own, "MAPPED_BYTES", 1)
    mapped = load(setting(folder))
    assert isinstance(mapped.train.images, np.memmap)
    assert not isinstance(read.train.images, np.memmap)
    assert (mapped.sha256(), mapped.mean, mapped.std) == (read.sha256(), read.mean, read.std)


LABELS = np.arange(40) % 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train_images": np.zeros((40, 8, 8, 1))},
            "holds float64 [40, 8, 8, 1], expected uint8, uint16 or float32: im",
        ),
        ({"test_images": np.zeros((30, 8, 8), ">u2")}, "test_images.npy holds >u2 [30, 8, 8], expected uint8, uint16"),
        (
            {"test_images": np.zeros((30, 8, 8), "f4")},
            "holds float32 images [8, 8, 1], expected uint8 images [8, 8, 1]",
        ),
        ({"test_images": np.zeros((30, 64), np.uint8)}, "test_images.npy holds uint8 [30, 64], expected [N"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8)}, "test_images.npy holds uint8 [0, 8, 8], expected"),
        ({"train_images": np.zeros((40, 8, 8), np.uint8, "F")}, "holds uint8 [40, 8, 8] in Fortran's order, expected"),
        ({"test_images": np.zeros((30, 9, 8), np.uint8)}, "[9, 8, 1], expected uint8 images [8, 8, 1] as in"),
        ({"train_labels": LABELS + 0.5}, "train_labels.npy holds float64 [40], expected integers [N]"),
        ({"train_labels": LABELS[:, None]}, "train_labels.npy holds int64 [40, 1], expected integers [N]"),
        ({"train_labels": LABELS[:39]}, "train_labels.npy holds 39 labels, but"),
        ({"train_labels": LABELS - 1}, "train_labels.npy has the label -1 at 0, expected labels from 0 on"),
        ({"train_labels": LABELS + 2**40}, "train_labels.npy has the label 1099511627778 at 2, expected labels from"),
        ({"train_labels": LABELS + 3}, ""),
        ({"train_labels": LABELS + 4}, "train_labels.npy has labels up to 6, but none is 3: expected labels from 0"),
        ({"train_labels": 0 * LABELS, "test_labels": np.zeros(30, int)}, "has labels of 1 class, expected at least 2"),
        ({"train_labels": np.array([None] * 40)}, "train_labels.npy is not a whole .npy file"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path: Path, changes: dict[str, np.ndarray], said: str) -> None:
    folder = write(tmp_path / "data", **changes)
    if said:
        assert said in refusal(setting(folder))
    else:
        load(setting(folder))


@pytest.mark.parametrize(("name", "bad", "layout"), [("train", math.nan, "NHWC"), ("test", -math.inf, "NCHW")])
def test_values_that_are_not_finite_are_refused_with_the_first_image(
    tmp_path: Path, name: str, bad: float, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"{split}_images": np.ones((40, 2, 6, 6), np.float32) for split in ("train", "test")}
    images[f"{name}_images"][[23, 31], 1, 1, 1] = bad
    folder = write(tmp_path / "data", **images, test_labels=LABELS)
    for mapped_bytes in (1, 1 << 28):
        monkeypatch.setattr(own, "MAPPED_BYTES", mapped_bytes)
        said = f"{folder}/{name}_images.npy: image 23 has a value that is not finite, expected none"
        assert refusal(setting(folder, layout=layout)) == said
    load(setting(folder, layout=layout, **{name: 23}))


def test_labels_beyond_the_class_names_are_refused(folder: Path) -> None:
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert "train_labels.npy has the label 2 at 2, expected 0 to 1 for the 2 class names" in refusal(setting(folder))


def test_an_archive_of_arrays_is_no_array(folder: Path) -> None:
    with open(folder / "train_images.npy", "wb") as file:
        np.savez(file, images=np.zeros((40, 8, 8), np.uint8))
    assert "train_images.npy is not a whole .npy file" in refusal(setting(folder))


def test_blank_lines_are_no_classes(folder: Path) -> None:
    (folder / "classes.txt").write_text("cat\ndog\nbig owl\n \n\n")
    assert load(setting(folder)).classes == ("cat", "dog", "big owl")
    (folder / "classes.txt").write_text("cat\n\nowl\n")
    assert "classes.txt has no name in line 2, expected one class name a line" in refusal(setting(folder))


def test_a_missing_file_names_all_four_and_the_built_in_data_sets(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", test_labels=None)
    assert refusal(setting(folder)) == (
        "dataset is 'mine', expected one of cifar, digits, fmow, or a name for your own data from data.python, or in "
        "train_images.npy, train_labels.npy, test_images.npy, test_labels.npy in data.root: "
        f"{folder}/test_labels.npy does not exist"
    )


def test_every_command_takes_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, root = write(tmp_path / "data", channels=5), tmp_path / "root"
    for name in ("train_images", "test_images"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy").astype(np.uint16) * 257)
    options = [*TINY, "--dataset=mine", f"--data.root={folder}", "--data.test=null", "--fit.share=0.3", "--root", root]

    def called(name: str, *more: object) -> Outcome:
        return in_process(capsys, name, DIGITS, *options, *more)

    assert f"mine: {folder}\n40 training and 30 test images of 8x8x5, uint16" in called("data").out
    for name in ("init", "train", "fit", "report", "run"):
        assert called(name).code == 0, name
    assert "2 rows trained again byte-equal" in called("verify", "--retrain", 2).out
    assert called("export", "--to", "quanda", "--checkpoints", "0:2").code == 0, "margins of the plain network agree"
    page = (root / "mine" / "report_test_50pct.html").read_text()
    assert "Of an image's 5 channels the first 3 are shown" in page
    assert "Images are uint16; each channel is shown from the 1st percentile" in page
    assert "(it was there already)" in called("init").out
    np.save(folder / "test_labels.npy", (np.arange(30) + 1) % 3)
    assert f"the data set in {folder} has sha256" in called("init").error


def test_data_from_a_python_file_are_the_same_for_every_worker(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my_data.py"
    path.write_text(
        # A worker imports no torchvision before: the one of PyPI needs help beside a torch for CPUs.
        "import numpy as np\nimport torchvision\n\n\ndef dataset():\n    print('reading')\n"
        f"    return {{name: np.load(f'{folder}/{{name}}.npy') for name in {own.NAMES}}} | {{'classes': 'abc'}}\n"
    )
    assert load(setting(tmp_path, python=str(path))).classes == ("a", "b", "c")
    options = [*TINY, "--dataset=mine", f"--data.python={path}", "--data.test=null"]
    margins = []
    for workers in (1, 2):
        root = tmp_path / f"root-{workers}"
        assert in_process(capsys, "init", DIGITS, *options, "--root", root).code == 0
        trained = in_process(capsys, "train", DIGITS, *options, "--root", root, f"--workers={workers}")
        assert (trained.code, trained.out) == (0, ""), "what the file prints is no output of the command"
        margins.append((root / "mine" / "data" / "test_margins_50pct.npy").read_bytes())
    assert margins[0] == margins[1]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def dataset(:", ", line 1: SyntaxError: invalid syntax"),
        ("import nothing_of_that_name", ", line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("\ndef dataset():\n    return 1 / 0", ", line 3: ZeroDivisionError: division by zero"),
        ("dataset = 5", " defines no function dataset (data.python)"),
        ("def dataset(): return 5", ": dataset() returns int, expected a dictionary of train_images, train_labels,"),
        ("def dataset(): return {'train_images': 5}", ": dataset() returns train_images, expected a dictionary"),
        (
            "import numpy as np\ndef dataset():\n    return dict.fromkeys(['train_images', 'train_labels', "
            "'test_images', 'test_labels'], np.zeros(3))",
            ": train_images holds float64 [3], expected uint8, uint16 or float32",
        ),
        ("raise SystemExit(3)", ", line 1: SystemExit: 3"),
    ],
)
def test_a_python_file_that_fails_is_told_with_its_line(tmp_path: Path, code: str, said: str) -> None:
    path = tmp_path / "my_data.py"
    path.write_text(code)
    assert refusal(setting(tmp_path, python=str(path))).startswith(f"{path}{said}")


def test_python_data_is_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    found = tiny(data=Data(python=str(tmp_path / "x.py")))
    assert refusal(found) == f"data.python is '{tmp_path}/x.py', expected null for digits, which is built in"
    found.dataset = "mine"
    assert refusal(found) == f"data.python is '{tmp_path}/x.py': cannot read it: No such file or directory"


def test_other_class_counts_are_refused_on_reopening(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, "--dataset=mine", f"--data.root={folder}", "--data.test=null", "--root", tmp_path / "root"]
    assert in_process(capsys, "init", DIGITS, *options).code == 0
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    found = in_process(capsys, "init", DIGITS, *options)
    assert found.error.endswith("has 4 classes, but the store was created with 3")


PAGE = (PROJECT / "docs" / "own_data.md").read_text()


def test_the_page_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, network, data = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(arrays, {})
    (tmp_path / "own.yaml").write_text(*re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (tmp_path / "my_network.py").write_text(network)
    (tmp_path / "my_data.py").write_text(data)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 3
    run, verify, again = (in_process(capsys, *shlex.split(line)[1:]) for line in commands)
    assert [done.code for done in (run, verify, again)] == [0, 0, 0]
    assert run.out.splitlines()[-1].endswith("report_test_50pct.html")
    assert "2 rows trained again byte-equal" in verify.out
    assert "nothing to train" in again.err
