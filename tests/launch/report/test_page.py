"""What a browser makes of the page: nothing missing, nothing cut off, on any width, in light, in dark, and on paper."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datamodels.lasso import Datamodels, compare, fit, load
from datamodels.launch.report import write_comparison, write_report
from tests.launch.report.chromium import Browser, browser
from tests.launch.report.conftest import images, page_in, published


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module", params=["images", "numbers", "own", "compared"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, own_store: Path) -> Path:
    """Of published files with or without images, of a store of ours, whose page says most, and of two settings."""
    if request.param == "own":
        return page_in(own_store)
    store = published(tmp_path_factory.mktemp("page"))
    fitted = load(fit(store))
    if request.param == "compared":
        other = Datamodels(Path("other"), np.random.default_rng(0).normal(size=(24, 30)), np.zeros(30), {})
        found = compare(fitted, other)
        return write_comparison([store, store], "test", images(24, 30), [fitted, other], found)
    return write_report(store, "test", images(24, 30) if request.param == "images" else None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_loads_in_full_and_fits(chromium: Browser, page: Path, width: int, scheme: str) -> None:
    chromium.open(page, width, scheme=scheme)
    assert chromium.complaints == []
    assert chromium.value("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert chromium.value("innerWidth") == width
    assert chromium.value("document.documentElement.scrollWidth") <= width
    beyond = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')).map(e =>" + (
        "e.getBoundingClientRect().right).reduce((a, b) => Math.max(a, b), 0)"
    )
    assert chromium.value(beyond) <= width


def test_text_is_readable_in_either_scheme(chromium: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        chromium.open(page, 1400, scheme=scheme)
        background = chromium.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(_rgb(background)) > 384) == (scheme == "light")
        folded = () if page.name.startswith("compare") else ("summary",)
        for what in ("p", "h1", ".plot figcaption", ".plot svg text", "dt", "th", *folded):
            style = f"getComputedStyle(document.querySelector('{what}'))"
            colour = chromium.value(f"{style}.{'fill' if 'svg' in what else 'color'}")
            assert _contrast(_rgb(colour), _rgb(background)) >= 4.5, (scheme, what)


def test_the_page_prints_on_light_paper(chromium: Browser, page: Path) -> None:
    chromium.open(page, 1400, scheme="dark")
    printed = chromium.pdf()
    assert printed.startswith(b"%PDF-")
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert sum(_rgb(chromium.value("getComputedStyle(document.body).backgroundColor"))) == 765
    assert chromium.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    chromium.call("Emulation.setEmulatedMedia", media="")


def _rgb(colour: str) -> list[int]:
    return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]


def _contrast(a: list[int], b: list[int]) -> float:
    """Contrast ratio of two colours (WCAG 2, section 1.4.3)."""
    lights = []
    for colour in (a, b):
        parts = np.array(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)
