"""The page is whole: one file, well-formed, without any reference outside itself."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from launch import plots
from launch.progress import duration
from tests.conftest import DIGITS, TINY, datamodels


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    done = datamodels("run", DIGITS, "--root", tmp_path_factory.mktemp("report"), *TINY)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).read_text()


class Tags(HTMLParser):
    """Checks that tags nest, and gathers what the page would load."""

    VOID = frozenset(("meta", "link", "img", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.loaded
    assert all(reference.startswith(("data:", "#")) for reference in tags.loaded)
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_page_shows_quality_plots_and_images(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    text = " ".join(tags.text)
    for expected in ("LDS", "ceiling of LDS", "MSE", "test accuracy", "recipe.lr", "float32, 1 threads"):
        assert expected in text
    assert page.count("<svg") == 5
    assert page.count('class="row"') == 10
    titles = [entry for entry in tags.text if "(n = " in entry]
    assert len(titles) == 5, "every plot says n"


def test_thumbnails_are_the_images() -> None:
    import base64
    import io

    from PIL import Image

    for channels in (1, 3):
        image = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
        content = base64.b64decode(plots.thumbnail(image).partition(",")[2])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))).reshape(8, 6, channels), image)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
