"""The documentation site builds without a warning, leads everywhere, and needs no network."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

from support.chromium import CHROMIUM, Page

ROOT = Path(__file__).parents[2]
LANGUAGES = ["", "zh/"]
KINDS = (
    "index.html",
    "adding_a_family.html",
    "migrating.html",
    "verbs.html",
    "api/index.html",
    "api/models.html",
    "model/tnt_s_patch16_224.html",
    "recipes/tnt_s_imagenet.html",
    "benchmarks/cifar10_tnt_amd-epyc-avx2_2026-11.html",
    "files/src/vitrail/models/tnt.py.html",
)
"""A page of each kind."""
pytest.importorskip("zensical", reason="the group docs is not installed: uv sync --group docs")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, ROOT / "docs" / "build_site.py", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ pages in .*", done.stdout.strip())
    assert done.stderr == ""
    return output


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("build_site")


@pytest.mark.thorough
def test_every_page_can_be_reached_from_the_home_of_its_language(site: Path, builder: ModuleType) -> None:
    pages = builder.read_links(site)
    homes = {language: {site / language / "index.html"} for language in LANGUAGES}
    for language, reached in homes.items():
        waiting = set(reached)
        while waiting:
            path = waiting.pop()
            for address in pages[path].found:
                target = (path.parent / unquote(urldefrag(address)[0])).resolve()
                if not re.match(r"[a-z]+:", address) and target in pages and target not in reached:
                    reached.add(target)
                    waiting.add(target)
        of_it = {path for path in pages if path.name != "404.html" and path.is_relative_to(site / language)}
        assert of_it <= reached, sorted(str(path) for path in of_it - reached)


@pytest.mark.thorough
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_an_index_of_its_own_to_search(site: Path, language: str) -> None:
    index = json.loads((site / language / "search.json").read_text())
    places = {item["location"].split("#")[0] for item in index["items"]}
    assert {"index.html", "training.html"} <= places
    assert not any(place.startswith("files/src") for place in places)
    assert (site / language / "search.js").exists()  # which a page read from the disk takes


@pytest.mark.thorough
def test_every_notebook_is_a_page_of_the_tutorials(site: Path) -> None:
    listed = (site / "notebooks" / "index.html").read_text()
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        title = json.loads(path.read_text())["cells"][0]["source"][0].removeprefix("# ").strip()
        assert re.search(rf'href="\.\./files/docs/notebooks/{path.name}\.html">{re.escape(title)}<', listed)
        page = (site / "files" / "docs" / "notebooks" / f"{path.name}.html").read_text()
        assert title in page
        assert "vitrail</span>" in page or "import vitrail" in page
    assert "Tutorials" in (site / "index.html").read_text()
    assert "notebooks/index.html" in (site / "zh" / "index.html").read_text()


@pytest.mark.thorough
def test_nothing_is_fetched_from_another_host(site: Path, builder: ModuleType) -> None:
    assert list(builder.find_broken(site)) == []
    for path in site.rglob("*.css"):
        text = path.read_text()
        assert "@import" not in text, path
        assert not re.search(r"url\(['\"]?(https?:)?//", text), path


@pytest.mark.thorough
def test_the_switch_of_the_language_stays_on_the_page(site: Path) -> None:
    for ours, theirs in (("training.html", "zh/training.html"), ("zh/training.html", "../training.html")):
        assert f'href="{theirs}"' in (site / ours).read_text()
    # a page that the other language lacks leads to its home
    assert 'href="../zh/index.html"' in (site / "model" / "tnt_s_patch16_224.html").read_text()


@pytest.mark.thorough
def test_the_logo_leads_to_the_home_of_its_language(site: Path) -> None:
    homes = {"index.html", "zh/index.html"}
    found = set()
    for page in sorted(site.rglob("*.html")):
        for address in re.findall(r'<a href="([^"]*)"[^>]*md-logo', page.read_text()):
            if page.name != "404.html":  # which is shown at any address
                found.add((page.parent / address).resolve().relative_to(site.resolve()).as_posix())
    assert found == homes


@pytest.mark.thorough
@needs_chromium
def test_no_page_is_wider_than_a_phone_nor_complains(site: Path) -> None:
    # a page of an error has addresses from the root of a server
    chinese = [f"zh/{path.name}" for path in sorted((site / "zh").glob("*.html")) if path.name != "404.html"]
    with Page() as page:
        for width, is_phone, scheme in ((390, True, "dark"), (1280, False, "light")):
            page.resize(width, 900, is_phone=is_phone)
            page.prefer(scheme)
            for name in (*KINDS, *chinese):
                page.open((site / name).as_uri())
                assert page.ask("document.documentElement.scrollWidth") <= width, name
                colours = {"light": "default", "dark": "slate"}[scheme]
                page.until(f"document.body.getAttribute('data-md-color-scheme') === '{colours}'")
        assert page.complaints == []


@pytest.mark.thorough
@needs_chromium
@pytest.mark.parametrize("language", LANGUAGES)
def test_search_finds_from_the_disk_without_a_network(site: Path, language: str) -> None:
    sought = {"": "gradient checkpointing", "zh/": "\u5b66\u4e60\u7387"}[language]
    with Page() as page:
        page.call("Network.enable")
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.resize(1280, 900)
        page.open((site / language / "index.html").as_uri())
        page.ask("document.querySelector('.md-search__button').click()")
        page.until("document.activeElement.shadowRoot?.activeElement?.tagName === 'INPUT'")
        page.call("Input.insertText", text=sought)
        page.until("/[1-9][0-9]* results?/.test(document.activeElement.shadowRoot.textContent)")
        assert page.complaints == []


def test_links_that_lead_nowhere_are_found(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><a href="https://example.org">4</a>'
        '<script src="https://example.org/a.js"></script><a href="#here" id="here">5</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    assert list(builder.find_broken(tmp_path)) == [
        "a.html: loads https://example.org/a.js",
        "a.html: b.html#gone: there is no such anchor",
        "a.html: c.html is not there",
    ]


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    command = [sys.executable, ROOT / "docs" / "build_site.py", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not a site that this program wrote; name another folder\n"
    assert (tmp_path / "thesis.txt").read_text() == "mine"
