"""The documentation site is built without a warning and asks the network for nothing; the files around it agree."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import datamodels
from tests.conftest import PROJECT, in_process

ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
FOLDERS = "train|lasso|launch|fmow|datamodels|bench|configs|examples|docs|tests"
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
    assert {"api", "cli", "format", "index"} <= names
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
    named = [f"datamodels.{name}" for name in datamodels.__all__ if not name.startswith("__")]
    assert [name for name in [*named, "fmow.FMoWDataset"] if f'id="{name}"' not in page] == []
    assert re.search(r'id="datamodels\.\w+\.margins"', page)  # a method of what `open` returns


def test_links_in_the_readme_lead_to_pages_of_the_site(site: Path) -> None:
    links = re.findall(r"\]\(docs/(\w+)\.md\)", (PROJECT / "README.md").read_text())
    assert links
    page = (site / "index.html").read_text()
    assert [link for link in links if f'href="{link}.html"' not in page] == []


def test_the_command_page_names_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    commands = re.findall(r"^  (\w+)  ", in_process(capsys, "--help").out, re.MULTILINE)
    assert len(commands) >= 15
    every: list[str] = []
    for command in commands:
        assert f"| `{command}` |" in page
        options, *keys = re.split(
            r"^One setting: .*", in_process(capsys, command, "--help").out, maxsplit=1, flags=re.M
        )
        named = re.findall(r"^  (--\w[\w-]*)(?![\w.-])", options, re.MULTILINE)
        assert [option for option in named if not re.search(rf"`{option}(?![\w-])", page)] == [], command
        every += keys
    groups = {key.partition(".")[0] for key in re.findall(r"^  --(\w[\w.]*) ", "".join(every), re.MULTILINE)}
    assert [key for key in groups if f"`{key}`" not in page and f"`{key}.*`" not in page] == []


def test_name_version_and_description_agree() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    for key, name in {"name": "title", "version": "version", "description": "abstract", "authors": "authors"}.items():
        assert citation[name] == ABOUT[key], key
    assert f"## [{ABOUT['version']}]" in (PROJECT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_make_targets_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    files = [PROJECT / name for name in re.findall(rf"`((?:{FOLDERS})/[\w./]+\.\w+)`", text)]
    links = [page.parent / name for name in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)]
    assert [path for path in files + links if not path.exists()] == []
    targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=`|$)", text, re.MULTILINE)) <= set(targets)
