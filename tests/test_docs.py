"""The documentation site is built without a warning and asks the network for nothing; the files around it agree."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT

VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
ELSEWHERE = r"""=["']?(?:https?:)?//"""
LOADED = re.compile(rf"<(?:script|img|iframe)\b[^>]*\bsrc{ELSEWHERE}|<link\b[^>]*\bhref{ELSEWHERE}")
"""What a page would fetch from elsewhere, links apart."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"{module} is not installed: `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "-q", "-d", folder / "trees"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "sphinx", *options, "docs", folder / "html"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_make_test_installs_what_tests_say_they_lack() -> None:
    install = " ".join(re.findall(r"bash \.ci/packages (.*)", (PROJECT / "Makefile").read_text())).split()
    sources = [path.read_text() for path in (PROJECT / "tests").rglob("*.py") if path != Path(__file__)]
    named = " ".join(re.findall(r"apt-get install ([a-z -]+)", "\n".join(sources))).split()
    assert {"chromium", "slurmctld"} <= set(named) <= set(install)


def test_every_page_is_in_the_site(site: Path) -> None:
    names = {path.stem for path in (PROJECT / "docs").glob("*.md")}
    assert {"api", "index", "store"} <= names
    assert names <= {path.stem for path in site.glob("*.html")}


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.glob("*.html")]
    assert LOADED.search('<script defer src="https://a.b/c.js">')
    assert LOADED.search('<link rel="stylesheet" href="//a.b/c.css">')
    assert not [page.name for page in pages if LOADED.search(page.read_text())]
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style.read_text()), style


def test_the_api_page_documents_what_the_fronts_export(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in (
        "train.open",
        "train.ReadableStore.margins",
        "lasso.load",
        "datamodels.lasso.evaluation.evaluate",
        "fmow.FMoWDataset",
    ):
        assert f'id="{name}"' in page


def test_links_in_the_readme_lead_to_pages_of_the_site(site: Path) -> None:
    links = re.findall(r"\]\(docs/(\w+)\.md\)", (PROJECT / "README.md").read_text())
    assert links
    page = (site / "index.html").read_text()
    assert [link for link in links if f'href="{link}.html"' not in page] == []


def test_the_version_is_told_alike() -> None:
    assert yaml.safe_load((PROJECT / "CITATION.cff").read_text())["version"] == VERSION
    assert f"## [{VERSION}]" in (PROJECT / "CHANGELOG.md").read_text()
