"""The page is whole, one file that loads nothing, whatever there is to report on."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from datamodels.lasso import Curve, fit, path_of
from datamodels.lasso.evaluation import Point, read_curve, write_curve
from datamodels.launch.progress import duration
from datamodels.launch.report import plots, write_report
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.images import LARGEST_THUMBNAIL, data_url
from datamodels.launch.report.lambda_path import lambda_paths
from datamodels.launch.report.page import prose
from datamodels.launch.report.report_data import shades_of
from datamodels.train.config import Fit
from datamodels.train.data.sources import Dataset
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import PublishedStore
from tests.conftest import DIGITS, in_process
from tests.launch.report.conftest import images, page_in, published, stored
from tests.stores import linear_data


class Tags(HTMLParser):
    """Checks that tags nest, and gathers names, text, and what the page would load."""

    VOID = frozenset(("meta", "link", "img", "br"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.unnamed: list[str] = []
        self.pieces: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append(values["href"] or "")
        else:
            self.loaded += [values[name] or "" for name in ("src", "href", "xlink:href") if name in values]
        if (tag == "img" and not values.get("alt")) or (tag == "svg" and not values.get("aria-label")):
            self.unnamed.append(str(attrs)[:200])
        self.names += [values["id"] or ""] if "id" in values else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


@pytest.fixture(scope="module")
def page(own_store: Path) -> str:
    return page_in(own_store).read_text()


@pytest.fixture(scope="module")
def fitted_store(tmp_path_factory: pytest.TempPathFactory) -> PublishedStore:
    """For tests that do not change it."""
    store = published(tmp_path_factory.mktemp("published"))
    fit(store)
    return store


def text_of(store: PublishedStore, dataset: Dataset | None = None, split: str = "test") -> str:
    """The text of the report of a store."""
    return Tags(write_report(store, split, dataset).read_text()).text


def test_the_page_loads_nothing_and_all_that_it_refers_to_is_there_once(page: str) -> None:
    tags = Tags(page)
    assert "<script" not in page
    assert len(tags.names) == len(set(tags.names))
    references = [*tags.loaded, *tags.links, *re.findall(r"url\(([^)]*)", page)]
    inner = [reference for reference in references if not reference.startswith("data:")]
    assert len(inner) < len(references)
    assert {*inner} <= {f"#{name}" for name in tags.names}


def test_the_page_tells_what_was_run_and_how_well_it_went(page: str) -> None:
    text = Tags(page).text
    for expected in (
        *("Ceiling of LDS", "95% interval", "Pearson", "MSE", "Test accuracy", "core-hours", "recipe.lr", "sha256"),
        *("float32, 1 thread", "24 to fit datamodels, 8 to evaluate them, 2 runs of each mask", "torch "),
        *("32 done, 0 missing, 0 failed", "duality gap", "Column sums of the masks", "Chosen lambdas"),
        *("convnet of width 4, 2 epochs", "12 of 24 training examples, drawn for each row", "Augmentation none"),
    ):
        assert expected in text


def test_every_plot_says_n_and_has_a_text_alternative_and_images_have_theirs(page: str) -> None:
    assert page.count('<figure class="plot">') == page.count("<svg") == 14
    assert len(re.findall(r"<small>n = [^<]+</small>", page)) == 14
    assert page.count('class="case"') == 24
    assert 'alt="test image 0, ' in page
    assert re.search(r'alt="training image \d+, \d, weight [+−]', page)
    assert not Tags(page).unnamed


def test_published_files_are_reported_on_without_and_with_images(fitted_store: PublishedStore) -> None:
    text = text_of(fitted_store)
    assert "not recorded: these are published files" in text
    assert "images are not available" in text
    page = write_report(fitted_store, "test", images(24, 30)).read_text()
    assert "&lt;class&gt; &amp; `-0`" in page
    assert "<class>" not in page
    assert not Tags(page).unnamed
    assert "Of 30 targets, none has such a score, so that no pair is shown" in text
    assert "<img" not in page[page.index('id="duplicates"') : page.index('id="harmful"')]


@pytest.mark.parametrize(
    ("side", "channels", "told"),
    [(8, 1, ""), (8, 5, "the first 3 are"), (224, 2, "the first is"), (224, 3, ""), (224, 4, "the first 3 are")],
)
def test_images_of_any_size_make_a_page_of_bounded_size(
    fitted_store: PublishedStore, side: int, channels: int, told: str
) -> None:
    page = write_report(fitted_store, "test", images(24, 30, side, channels)).read_text()
    assert len(page) < 5e6
    said = re.findall(r"Of an image's (\d) channels (.*?) shown", Tags(page).text)
    assert said == ([(str(channels), told)] if told else [])
    sizes = {Image.open(io.BytesIO(base64.b64decode(found))).size for found in re.findall(r'base64,([^"]+)', page)}
    assert max(max(size) for size in sizes if size[0] == size[1]) == min(side, LARGEST_THUMBNAIL)


def test_training_examples_as_targets_are_not_shown_as_their_own_neighbours(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((300, 12)) < 0.5
    weight = 0.3 * np.random.default_rng(1).normal(size=(12, 12)) + 5 * np.eye(12)
    margins = (masks @ weight).astype(np.float16)
    store = stored(tmp_path, masks, margins, train_margins=margins)
    fit(store, "train")
    page = write_report(store, "train", images(12, 12)).read_text()
    targets = page[page.index('id="targets"') : page.index('id="influential"')]
    for case in targets.split('class="case"')[1:]:
        target, *others = re.findall(r'alt="training image (\d+),', case)
        assert others
        assert target not in others
        assert re.search(r"self \+[45]\.", case)
    assert "+5.0" not in page[page.index('id="influential"') : page.index('id="fit"')], "nor in the other galleries"


@pytest.mark.parametrize(
    ("eval_models", "told"), [(0, "eval_models is 0"), (2, "Not evaluated: the evaluation rows have 2 masks")]
)
def test_without_enough_evaluation_rows_the_page_says_so(tmp_path: Path, eval_models: int, told: str) -> None:
    store = published(tmp_path, eval_models=eval_models)
    fit(store)
    text = text_of(store, images(24, 30))
    assert told in text
    assert "not evaluated" in text


def test_weights_of_unknown_origin_are_not_called_fitted_and_correlate_as_well_when_shifted(tmp_path: Path) -> None:
    store = published(tmp_path)
    path = fit(store)
    correlation = r"Pearson correlation of all pairs (0\.[5-9]\d+)"
    fitted = text_of(store)
    assert "fitted by LASSO to 260 of the models" in fitted
    path.with_suffix(".json").unlink()
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, "bias": tensors["bias"] + torch.arange(30)}, path)
    shifted = text_of(store)
    assert "linear datamodel, of unknown origin (no record of a fit), predicts" in shifted
    assert "LASSO to" not in shifted
    assert re.findall(correlation, shifted) == re.findall(correlation, fitted) != []


def test_what_is_fitted_so_far_is_reported_on(tmp_path: Path) -> None:
    store = published(tmp_path)
    fit(store, targets=(4, 10))
    fit(store, targets=(8, 20))
    text = text_of(store, images(24, 30))
    assert "16 of 30 targets are fitted so far" in text
    assert "over 16 targets" in text


@pytest.mark.parametrize("eval_models", [40, 0])
def test_a_stale_fit_is_told_and_gives_way_to_newer_pieces(tmp_path: Path, eval_models: int) -> None:
    store = published(tmp_path, eval_models=eval_models)
    fit(store)
    told = "with other options than today's" if eval_models else "to other rows or with other options than today's"
    assert told not in text_of(store)
    store.setting = replace(store.setting, fit=Fit(k=50))
    assert told in text_of(store)
    fit(store, targets=(4, 10))
    newer = text_of(store)
    assert told not in newer
    assert "6 of 30 targets are fitted so far" in newer
    assert "50 lambdas" in newer


def test_a_single_target_and_masks_drawn_one_by_one(tmp_path: Path) -> None:
    store = published(tmp_path, targets=1, mask="bernoulli")
    fit(store)
    page = write_report(store, "test", images(24, 1)).read_text()
    text = Tags(re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)).text
    assert "n = 1 target " in text
    assert not re.search(r"\b1 (?:targets|test examples|test images|rows|models)\b", text)
    assert "Predicted" not in re.sub("Predicted and actual", "", text), "no best and worst of one"


def test_a_single_training_example(tmp_path: Path) -> None:
    masks = np.arange(60)[:, None] % 2 == 0
    margins = masks * [1.0, 2.0] + 0.1 * np.sin(np.arange(60))[:, None]
    store = stored(tmp_path, masks, margins, alpha=0.4, fit=Fit(max_failed=0.5))  # where the one is not in, nothing is
    fit(store)
    text = text_of(store, images(1, 2))
    assert "inf " not in text
    assert "nan" not in text


def test_pages_of_other_alphas_and_splits_are_linked(tmp_path: Path) -> None:
    masks, margins = linear_data(300, 30, 30)
    store = stored(tmp_path, masks, margins, train_margins=margins)
    fit(store)
    fit(store, "train")
    first = write_report(store, "test", None)
    assert Tags(write_report(store, "train", None).read_text()).links.count(first.name) == 1


def test_planted_duplicates_alone_or_together_and_a_planted_wrong_label_come_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = images(24, 30)
    masks = rng.random((600, 24)) < 0.5
    same = dataset.train.labels[:, None] == dataset.test.labels
    weight = 0.1 * rng.normal(size=(24, 30)) + np.where(same, 0.4, -0.2)
    weight[:, 17] += 4 * (np.arange(24) == 5)
    weight[:, 3] += 3 * (np.arange(24) == 8) + 2.9 * (np.arange(24) == 2)
    weight[11] = np.roll(weight[11], 1) - 0.2
    margins = (masks @ weight + 0.1 * rng.normal(size=(600, 30))).astype(np.float16)
    store = stored(tmp_path, masks, margins)
    fit(store)
    page = write_report(store, "test", dataset).read_text()
    duplicates, harmful = page.index('id="duplicates"'), page.index('id="harmful"')
    shown = re.findall(r'alt="(\w+ image \d+),', page[duplicates:harmful])
    assert [shown[0], *shown[2:3]] == ["test image 17", "test image 3"]
    assert [shown[1:2], sorted(shown[3:])] == [["training image 5"], ["training image 2", "training image 8"]]
    assert "Of 30 targets, 2 have such a score" in Tags(page).text
    assert re.findall(r'alt="training image (\d+),', page[harmful:])[0] == "11"


@pytest.mark.parametrize("options", [Fit(), Fit(lambda_max="upstream", validation="last", k=30)])
def test_the_fit_and_scikit_learn_agree_along_the_path(tmp_path: Path, options: Fit) -> None:
    store = published(tmp_path, fit=options)
    fit(store)
    fitted = Fitted(store, "test")
    found = lambda_paths(store, "test", fitted)
    assert found is not None
    assert len(found.targets) == 6
    ours = np.take_along_axis(found.errors, found.chosen[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(ours, found.recorded, rtol=1e-2)
    assert (found.recorded <= found.errors[:, : options.min_lambdas].min(axis=1) * 1.01).all()


def test_a_curve_on_disk_is_shown_if_it_is_of_todays_rows_and_options(tmp_path: Path) -> None:
    store = published(tmp_path)
    fit(store)
    assert "30 targets a point" in text_of(store)
    found = read_curve(store, "test")
    assert found is not None
    assert found[1]
    path = write_curve(store, "test", replace(found[0], targets=29))
    assert "29 targets a point" in text_of(store)
    store.setting = replace(store.setting, fit=Fit(k=50))
    assert "30 targets a point" in text_of(store), "of other options, it is computed again"
    path.write_text('{"stamp": 1}')
    assert read_curve(store, "test") is None


def test_a_curve_that_takes_long_is_shown_only_if_it_is_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(size=(20, 2)).astype(np.float16)
    store = stored(tmp_path, rng.random((20, 2501)) < 0.5, margins, eval_models=8)
    path = path_of(store, "test")
    path.parent.mkdir()
    torch.save({"weight": torch.zeros(2501, 2), "bias": torch.zeros(2)}, path)
    assert "eval CONFIG --curve" in text_of(store)
    write_curve(store, "test", Curve([Point(12, 0.5, 1.0, 0.1)], 2, None, None))
    text = text_of(store)
    assert "2 targets a point" in text
    assert "eval CONFIG --curve" not in text


def test_a_curve_that_cannot_be_computed_or_kept_does_not_cost_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = published(tmp_path)
    fit(store)
    usual, store.setting = store.setting, replace(store.setting, fit=Fit(tol=1e-17))
    assert re.search(r"No curve of LDS against the number of models: target \d+ has a relative", text_of(store))
    store.setting = usual
    path_of(store, "test").with_suffix(".curve.json").mkdir()
    assert "LDS against number of models" in text_of(store)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("the curve is not kept: cannot write")


def test_bad_input_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = published(tmp_path)
    options = ("--dataset", "digits", "--root", tmp_path, "--eval_models", 40)
    (tmp_path / "made-up").rename(tmp_path / "digits")
    assert "run `datamodels fit`" in in_process(capsys, "report", DIGITS, *options).error
    layout, setting = Layout(tmp_path, "digits", "50pct"), replace(store.setting, dataset="digits")
    fit(PublishedStore(layout, setting, False, None, print))
    (tmp_path / "digits" / "report_test_50pct.html").mkdir()
    refused = in_process(capsys, "report", DIGITS, *options)
    assert refused.code == 1
    assert "report_test_50pct.html" in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err


def test_text_is_escaped_and_has_minus_signs_and_code() -> None:
    assert prose("-0.5 & `eval --curve` of 2026-11-25") == "−0.5 &amp; <code>eval --curve</code> of 2026-11-25"


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)])
def test_thumbnails_are_the_images_first_channel_as_grey_or_first_three_as_colours(channels: int, shown: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
    content = base64.b64decode(data_url(image).partition(",")[2])
    picture = Image.open(io.BytesIO(content))
    assert picture.mode == ("L" if shown == 1 else "RGB")
    np.testing.assert_array_equal(np.asarray(picture).reshape(8, 6, shown), image[..., :shown])


def test_thumbnails_of_other_types_are_shown_between_two_percentiles() -> None:
    random = np.random.default_rng(0)
    images = np.concatenate([random.normal(280, 9, (20, 70, 65, 4)), np.full((20, 70, 65, 1), 7)], 3).astype(np.float32)
    images[..., 1] = (images[..., 1] > 310) * 0.5  # nearly always 0
    images = images[..., [4, 1, 0, 3]]
    shades = shades_of(images)
    assert shades is not None
    np.testing.assert_allclose(shades[:, :2], [[7, 0], [8, 0.5]])
    np.testing.assert_allclose(shades[:, 2], 280 + 9 * np.array([-2.326, 2.326]), atol=0.5)
    content = base64.b64decode(data_url(images[0, :8, :6], shades).partition(",")[2])
    wanted = np.round(255 * np.clip((images[0, :8, :6] - shades[0]) / (shades[1] - shades[0]), 0, 1))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), wanted[..., :3])


def test_bars_hold_every_value_and_tell_how_many() -> None:
    values = np.array([1, 1, 2, 5])
    svg = plots.histogram("some", values, "x", "things", edges=plots.whole_edges(values))
    assert re.findall(r"<title>([^<]+)</title>", svg) == [
        "2 of 4 things from 0.5 to 1.5",
        "1 of 4 things from 1.5 to 2.5",
        "1 of 4 things from 4.5 to 5.5",
    ]
    assert "#0000" not in svg, "all colours are the page's"
    assert "DejaVu" not in svg


def test_plots_start_from_matplotlibs_defaults_and_leave_settings_alone() -> None:
    values = np.array([1, 1, 2, 5])
    before = plots.histogram("some", values, "x", "things")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        assert plots.histogram("some", values, "x", "things") == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
