"""The page is whole, one file that loads nothing, whatever there is to report on."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodels.lasso import fit, path_of
from datamodels.launch import lds_curve as growth
from datamodels.launch.progress import duration
from datamodels.launch.report import html, plots, write_report
from datamodels.launch.report.path import paths_of
from datamodels.launch.report.weights import Fitted
from datamodels.train.config import Fit
from datamodels.train.data.sources import Dataset
from datamodels.train.errors import WorkError
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import PublishedStore
from tests.conftest import DIGITS, TINY, in_process, run_command
from tests.train.store.published import images, published, stored


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
        return " ".join(self.pieces)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    done = run_command("run", DIGITS, "--root", tmp_path_factory.mktemp("report"), *TINY)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).read_text()


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    tags = Tags(page)
    assert tags.loaded
    assert all(reference.startswith(("data:", "#")) for reference in tags.loaded)
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_everything_that_is_referred_to_is_there_once(page: str) -> None:
    tags = Tags(page)
    assert len(tags.names) == len(set(tags.names))
    references = [reference for reference in [*tags.loaded, *tags.links] if reference.startswith("#")]
    references += re.findall(r"url\((#[^)]+)\)", page)
    assert {reference[1:] for reference in references} <= set(tags.names)


def test_the_page_tells_what_was_run_and_how_well_it_went(page: str) -> None:
    text = Tags(page).text
    for expected in (
        *("Ceiling of LDS", "95% interval", "Pearson", "MSE", "Test accuracy", "core-hours", "recipe.lr", "sha256"),
        *("float32, 1 thread", "24 to fit datamodels, 8 to judge them, 2 runs of each mask", "torch "),
        *("32 done, 0 missing, 0 failed", "duality gap", "Column sums of the masks", "Chosen lambdas"),
    ):
        assert expected in text


def test_every_plot_says_n_and_has_a_text_alternative(page: str) -> None:
    tags = Tags(page)
    plots_shown = page.count('<figure class="plot">')
    assert plots_shown == page.count("<svg") == 14
    assert len(re.findall(r"<small>n = [^<]+</small>", page)) == plots_shown
    assert not tags.unnamed


def test_the_page_shows_images_of_either_side(page: str) -> None:
    assert page.count('class="case"') == 16
    assert 'alt="test image 0, ' in page
    assert re.search(r'alt="training image \d+, \d, weight [+−]', page)


def test_published_files_are_reported_on_without_and_with_images(tmp_path: Path) -> None:
    store = published(tmp_path)
    fit(store)
    text = Tags(write_report(store, "test", None).read_text()).text
    assert "not recorded: these are published files" in text
    assert "images are not at hand" in text
    page = write_report(store, "test", images(24, 30)).read_text()
    assert "&lt;class&gt; &amp; 0" in page
    assert "<class>" not in page
    assert not Tags(page).unnamed


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 5), (224, 2), (224, 3), (224, 4)])
def test_images_of_any_size_make_a_page_of_bounded_size(tmp_path: Path, side: int, channels: int) -> None:
    store = published(tmp_path)
    fit(store)
    page = write_report(store, "test", images(24, 30, side, channels)).read_bytes()
    told = {2: "Of an image's 2 channels the first is shown", 4: "channels the first 3 are", 5: "channels the first 3"}
    assert told.get(channels, "") in Tags(page.decode()).text
    assert len(page) < 5e6
    sizes = {Image.open(io.BytesIO(base64.b64decode(found))).size for found in re.findall(rb"base64,([^\"]+)", page)}
    assert max(max(size) for size in sizes if size[0] == size[1]) == min(side, html.LARGEST_THUMBNAIL)


def test_training_examples_as_targets_are_not_shown_as_their_own_neighbours(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((300, 12)) < 0.5
    weight = 0.3 * np.random.default_rng(1).normal(size=(12, 12)) + 5 * np.eye(12)
    margins = (masks @ weight).astype(np.float16)
    store = stored(tmp_path, masks, {"train": margins, "test": margins})
    fit(store, "train")
    page = write_report(store, "train", images(12, 12)).read_text()
    behind = page[page.index('id="behind"') : page.index('id="moved"')]
    for case in behind.split('class="case"')[1:]:
        target, *others = re.findall(r'alt="training image (\d+),', case)
        assert others
        assert target not in others
        assert re.search(r"self \+[45]\.", case)
    assert "+5.0" not in page[page.index('id="moved"') : page.index('id="fit"')], "nor in the other galleries"


def test_without_evaluation_rows_the_page_says_so(tmp_path: Path) -> None:
    store = published(tmp_path, eval_models=0)
    fit(store)
    tags = Tags(write_report(store, "test", images(24, 30)).read_text())
    assert "eval_models is 0" in tags.text
    assert "not evaluated" in tags.text


def test_too_few_evaluation_masks_are_told_not_refused(tmp_path: Path) -> None:
    store = published(tmp_path, eval_models=2)
    fit(store)
    assert "Not evaluated: the evaluation rows have 2 masks" in write_report(store, "test", None).read_text()


def test_weights_of_unknown_origin_are_not_called_fitted(tmp_path: Path) -> None:
    store = published(tmp_path)
    path = fit(store)
    assert "fitted by LASSO to 260 of the models" in write_report(store, "test", None).read_text()
    path.with_suffix(".json").unlink()
    text = Tags(write_report(store, "test", None).read_text()).text
    assert "linear datamodel, of unknown origin (no record of a fit), predicts" in text
    assert "LASSO to" not in text


def test_what_is_fitted_so_far_is_reported_on(tmp_path: Path) -> None:
    store = published(tmp_path)
    fit(store, targets=(4, 10))
    fit(store, targets=(8, 20))
    text = Tags(write_report(store, "test", images(24, 30)).read_text()).text
    assert "16 of 30 targets are fitted so far" in text
    assert "over 16 targets" in text


@pytest.mark.parametrize("eval_models", [40, 0])
def test_a_stale_fit_is_told_and_gives_way_to_newer_pieces(tmp_path: Path, eval_models: int) -> None:
    store = published(tmp_path, eval_models=eval_models)
    fit(store)

    def text() -> str:
        return Tags(write_report(store, "test", None).read_text()).text

    told = "with other options than today's" if eval_models else "of other rows or options than the store's today"
    assert told not in text()
    store.setting = replace(store.setting, fit=Fit(k=50))
    assert told in text()
    fit(store, targets=(4, 10))
    newer = text()
    assert told not in newer
    assert "6 of 30 targets are fitted so far" in newer
    assert "50 lambdas" in newer


def test_predictions_that_are_shifted_correlate_as_well(tmp_path: Path) -> None:
    store = published(tmp_path)
    path = fit(store)
    tensors = torch.load(path, weights_only=True)

    def told() -> str:
        page = write_report(store, "test", None).read_text()
        return re.findall(r"Pearson correlation of all pairs (\d\.\d+)", page)[0]

    before = told()
    torch.save({**tensors, "bias": tensors["bias"] + torch.arange(30)}, path)
    assert told() == before
    assert float(before) > 0.5


def test_a_single_target_and_masks_drawn_one_by_one(tmp_path: Path) -> None:
    store = published(tmp_path, targets=1, mask="bernoulli")
    fit(store)
    text = Tags(write_report(store, "test", images(24, 1)).read_text()).text
    assert "n = 1 target " in text
    assert not re.search(r"\b1 (?:targets|test examples|test images|rows|models)\b(?! from)", text)
    assert "Predicted" not in re.sub("Predicted and actual", "", text), "no best and worst of one"


def test_a_single_training_example(tmp_path: Path) -> None:
    masks = np.arange(60)[:, None] % 2 == 0
    margins = masks * [1.0, 2.0] + 0.1 * np.sin(np.arange(60))[:, None]
    store = stored(tmp_path, masks, {"test": margins.astype(np.float16)}, alpha=0.4)
    fit(store)
    text = Tags(write_report(store, "test", images(1, 2)).read_text()).text
    assert "inf " not in text
    assert "nan" not in text


def test_pages_of_other_alphas_and_splits_are_linked(tmp_path: Path) -> None:
    store = published(tmp_path, split="train", n_train=30)
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
    store = stored(tmp_path, masks, {"test": margins})
    fit(store)
    page = write_report(store, "test", dataset).read_text()
    duplicates, harmful = page.index('id="duplicates"'), page.index('id="harmful"')
    shown = re.findall(r'alt="(\w+ image \d+),', page[duplicates:harmful])
    assert [shown[0], *shown[2:3]] == ["test image 17", "test image 3"]
    assert [shown[1:2], sorted(shown[3:])] == [["training image 5"], ["training image 2", "training image 8"]]
    assert "Of 30 targets these are 2" in page
    assert re.findall(r'alt="training image (\d+), labelled', page[harmful:])[0] == "11"


@pytest.mark.parametrize("dataset", [images(24, 30), None], ids=["images", "numbers"])
def test_without_duplicates_none_are_shown(tmp_path: Path, dataset: Dataset | None) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((300, 24)) < 0.5
    store = stored(tmp_path, masks, {"test": rng.normal(size=(300, 30)).astype(np.float16)})
    fit(store)
    page = write_report(store, "test", dataset).read_text()
    section = page[page.index('id="duplicates"') : page.index('id="harmful"')]
    assert "Of 30 targets none is, so that no pair is shown" in section
    assert "<img" not in section
    assert "<td>" not in section


@pytest.mark.parametrize("options", [Fit(), Fit(lambda_max="upstream", validation="last", k=30)])
def test_the_fit_and_scikit_learn_agree_along_the_path(tmp_path: Path, options: Fit) -> None:
    store = published(tmp_path, fit=options)
    fit(store)
    fitted = Fitted(store, "test")
    found = paths_of(store, "test", fitted, fitted.vectors())
    assert found is not None
    assert len(found.targets) == 6
    ours = np.take_along_axis(found.errors, found.chosen[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(ours, found.recorded, rtol=1e-2)
    assert (found.recorded <= found.errors[:, : options.min_lambdas].min(axis=1) * 1.01).all()


def _silent(stage: str, done: int, total: int) -> None:
    pass


def test_a_curve_is_kept_and_shown_again_where_a_new_one_would_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = published(tmp_path)
    fit(store)
    monkeypatch.setattr(growth, "_QUICK", 10)
    assert "eval CONFIG --curve" in write_report(store, "test", None).read_text()
    monkeypatch.undo()
    found = growth.growth_of(store, "test", _silent)
    assert isinstance(found, growth.Curve)
    assert growth.kept(store, "test") == (found, True), "plan looks it up"
    monkeypatch.setattr(growth, "_QUICK", 10)
    assert growth.growth_of(store, "test", _silent) == found
    assert "LDS against number of models" in write_report(store, "test", None).read_text()
    store.setting = replace(store.setting, fit=Fit(k=50))
    assert isinstance(growth.growth_of(store, "test", _silent), str), "of other options, it is stale"
    growth.keep(store, "test", found).write_text(json.dumps({"stamp": 1}))
    assert isinstance(growth.growth_of(store, "test", _silent), str)


def test_a_curve_that_cannot_be_computed_or_kept_does_not_cost_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = published(tmp_path)
    fit(store)
    monkeypatch.setattr("datamodels.lasso.solver.TargetBatch.check", _misses)
    page = write_report(store, "test", None).read_text()
    assert "No curve of LDS against the number of models: target 3 misses" in page
    monkeypatch.undo()
    path_of(store, "test").with_suffix(".curve.json").mkdir()
    assert "LDS against number of models" in write_report(store, "test", None).read_text()
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("the curve is not kept: cannot write")


def _misses(self: object) -> None:
    raise WorkError("target 3 misses its gap")


def test_bad_input_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = published(tmp_path)
    options = ("--dataset", "digits", "--root", tmp_path, "--eval_models", 40)
    (tmp_path / "made-up").rename(tmp_path / "digits")
    assert "run `datamodels fit`" in in_process(capsys, "report", DIGITS, *options).error
    store = PublishedStore(Layout(tmp_path, "digits", "50"), replace(store.setting, dataset="digits"), False)
    fit(store)
    (tmp_path / "digits" / "report_test_50pct.html").mkdir()
    refused = in_process(capsys, "report", DIGITS, *options)
    assert refused.code == 1
    assert "report_test_50pct.html" in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err


def test_text_is_escaped_and_has_minus_signs_and_code() -> None:
    assert html.text("-0.5 & `eval --curve` of 2026-11-25") == "−0.5 &amp; <code>eval --curve</code> of 2026-11-25"


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)])
def test_thumbnails_are_the_images_first_channel_as_grey_or_first_three_as_colours(channels: int, shown: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
    content = base64.b64decode(html.data_url(image).partition(",")[2])
    picture = Image.open(io.BytesIO(content))
    assert picture.mode == ("L" if shown == 1 else "RGB")
    np.testing.assert_array_equal(np.asarray(picture).reshape(8, 6, shown), image[..., :shown])
    assert bool(html.channels_shown(channels)) == (channels != shown)


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
