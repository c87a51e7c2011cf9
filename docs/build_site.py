"""Build the documentation site of both languages, from docs/, benchmarks/ and the code; it needs no network to be read.

uv run --group docs python docs/build_site.py                 # into site/
uv run --group docs python docs/build_site.py --output DIR

English stands at the root, Chinese in zh/. A page that Chinese lacks is a link to the English one.
Links to files that are no page get a page that shows the file.
Any link or anchor that leads nowhere is an error.
"""

from __future__ import annotations

import argparse
import html.parser
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag

import site_pages
import yaml
from site_pages import ROOT

THEME = ROOT / "docs" / "theme"
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)(\))")
FENCED = re.compile(r"^( *(?:`{3,}).*?^ *`{3,}$)", re.MULTILINE | re.DOTALL)
PROGRAM = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".mjs": "javascript", ".html": "html", ".toml": "toml"}
SITE = "site:"
"""Begins an address from the root of the whole site.

zensical leaves it as it is, and `settle_addresses` makes it relative.
"""
OF_BOTH = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that stand outside docs/."""
FEATURES = [
    "navigation.tabs",
    "navigation.indexes",
    "navigation.prune",
    "navigation.top",
    "navigation.footer",
    "content.code.copy",
    "toc.follow",
]
PALETTE = [
    {"media": "(prefers-color-scheme)", "toggle": {"icon": "lucide/sun-moon", "name": "Light"}},
    {
        "media": "(prefers-color-scheme: light)",
        "scheme": "default",
        "toggle": {"icon": "lucide/sun", "name": "Dark"},
    },
    {
        "media": "(prefers-color-scheme: dark)",
        "scheme": "slate",
        "toggle": {"icon": "lucide/moon", "name": "As the system"},
    },
]
"""Colours, and the name of the ones that a press of the button gives."""
SECTIONS = {
    "Start": ("index.md", "install.md", "own_images.md", "migrating.md", "from_timm.md", "python.md", "notebooks"),
    "Use": (
        "verbs.md",
        "models.md",
        "model",
        "timm_models.md",
        "weights.md",
        "evaluation.md",
        "explain.md",
        "embedding.md",
    ),
    "Train": (
        "finetuning.md",
        "training.md",
        "recipes",
        "techniques.md",
        "tuning.md",
        "distillation.md",
        "token_labeling.md",
        "pretraining.md",
        "reproduce.md",
        "cluster.md",
    ),
    "Data": ("data.md", "multi_label.md", "imbalance.md"),
    "Ship": ("export.md", "deployment.md"),
    "Research": ("backbones.md", "adding_a_family.md", "kernels.md", "design.md", "benchmarks"),
    "Reference": ("config.md", "api", "changelog.md", "contributing.md"),
}
"""Pages and groups of generated pages, in the order in which a reader wants them."""
GENERATED = {
    "notebooks": "Tutorials",
    "model": "Each model",
    "recipes": "Recipes",
    "benchmarks": "Benchmarks",
    "api": "Python API",
}
CHINESE = {
    "Start": "\u5f00\u59cb",
    "Use": "\u4f7f\u7528",
    "Train": "\u8bad\u7ec3",
    "Data": "\u6570\u636e",
    "Ship": "\u90e8\u7f72",
    "Research": "\u7814\u7a76",
    "Reference": "\u53c2\u8003",
}
"""The sections, in Chinese."""


class BuildError(Exception):
    """The site cannot be built, or would have links that lead nowhere."""


@dataclass
class Language:
    """One language: where its pages come from, and what the other one has."""

    code: str
    name: str
    folder: str
    """Where it stands in the site; empty for the root."""
    site_name: str
    sources: dict[Path, str]
    """Page by the file that it is made of, from the root of the repository."""
    titles: dict[str, str] = field(default_factory=dict)

    def address(self, page: str) -> str:
        """Return where a page stands, from the root of the whole site."""
        return self.folder + page.removesuffix(".md") + ".html"


def find_languages() -> tuple[Language, Language]:
    """Return English and Chinese with the pages that are written by hand."""
    english = {Path(source): page for source, page in OF_BOTH.items()}
    for folder in ("docs", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.md")):
            english[path.relative_to(ROOT)] = path.name if folder == "docs" else f"{folder}/{path.name}"
    chinese = {path.relative_to(ROOT): path.name for path in sorted((ROOT / "docs" / "zh").glob("*.md"))}
    chinese[Path("README.zh.md")] = "index.md"
    return (
        Language("en", "English", "", "vitrail", english),
        Language("zh", "\u4e2d\u6587", "zh/", "vitrail \u4e2d\u6587\u6587\u6863", chinese),
    )


class Assembler:
    """Lays out the pages of one language, with links that lead to pages of the site."""

    def __init__(self, language: Language, other: Language, folder: Path) -> None:
        self.language, self.other, self.folder = language, other, folder
        self.shown: dict[Path, str] = {}
        """Files that are no page but are linked to, and the page that shows each."""

    def write(self, page: str, text: str, source: Path) -> None:
        """Write a page whose text's links are relative to a file of the repository."""
        title = re.search(r"^# (.+)", text, re.MULTILINE)
        self.language.titles[page] = title[1].replace("`", "") if title else page
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._with_links(page, text, source), encoding="utf-8")

    def _with_links(self, page: str, text: str, source: Path) -> str:
        def led(found: re.Match[str]) -> str:
            return found[1] + self._target(page, found[2], source) + found[3]

        # every second part is fenced, and left alone; a link's text may go over two lines
        parts = FENCED.split(text)
        parts[::2] = [LINK.sub(led, part) for part in parts[::2]]
        return "".join(parts)

    def _target(self, page: str, address: str, source: Path) -> str:
        """Return what a link of a page becomes: a page of this language, of the other, or one that shows a file."""
        if address.startswith("page:"):  # a generated one
            return posixpath.relpath(address.removeprefix("page:"), posixpath.dirname(page) or ".")
        if re.match(r"[a-z]+:", address) or address.startswith("#"):
            return address
        name, anchor = urldefrag(address)
        file = Path(posixpath.normpath(posixpath.join(source.parent.as_posix(), name)))
        if not (ROOT / file).exists() and file.parent == Path("docs/zh"):  # not translated yet
            file, anchor = Path("docs") / file.name, ""
        if not (ROOT / file).exists():
            raise BuildError(f"{source}: {address} is not there")
        anchor = f"#{anchor}" if anchor else ""
        if file in self.other.sources:
            return SITE + self.other.address(self.other.sources[file]) + anchor
        if file.suffix == ".png":
            shutil.copy(ROOT / file, self.folder / Path(page).parent)
            return file.name
        target = self.language.sources.get(file)
        if target is None and self.language.folder:  # English has the pages that show files
            return f"{SITE}{shown_page(file).removesuffix('.md')}.html{anchor}"
        if target is None:
            target = self.shown.setdefault(file, shown_page(file))
        return posixpath.relpath(target, posixpath.dirname(page) or ".") + anchor

    def show_files(self, also: set[Path]) -> None:
        """Write a page for each file that a page links to, until no page links to another."""
        for file in also:
            self.shown.setdefault(file, shown_page(file))
        done: set[Path] = set()
        while waiting := set(self.shown) - done:
            for file in sorted(waiting):
                self.write(self.shown[file], show(file), file)
            done |= waiting


def shown_page(file: Path) -> str:
    """Return the page that shows a file of the repository."""
    return f"files/{file.as_posix()}.md"


def show(file: Path) -> str:
    """Return the text of a page that shows a file, folder or notebook."""
    path = ROOT / file
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {file.as_posix()}\n\n"
    if path.is_dir():
        names = [one.name for one in sorted(path.iterdir()) if one.suffix in PROGRAM]
        return head + "".join(f"- [{name}]({file.name}/{name})\n" for name in names)
    if path.suffix == ".ipynb":
        texts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            texts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        return "\n\n".join(texts)
    text = path.read_text(encoding="utf-8")
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{head}{ticks}{PROGRAM.get(path.suffix, 'text')}\n{text}\n{ticks}\n"


def write_settings(language: Language, other: Language, folder: Path, nav: list[object]) -> Path:
    """Write what zensical is told, and return where."""
    shutil.copytree(THEME, folder / "theme")
    shutil.copytree(THEME / "assets", folder / "docs" / "assets")
    python = {"paths": [str(ROOT / "src")], "options": site_pages.API_OPTIONS}
    settings = {
        "site_name": language.site_name,
        "docs_dir": "docs",
        "site_dir": "site",
        "strict": True,
        "nav": nav,
        "theme": {
            "language": language.code,
            "custom_dir": "theme",
            "font": False,
            "features": FEATURES,
            "palette": PALETTE,
        },
        "extra_css": ["assets/site.css"],
        "extra": {
            "generator": False,
            "homepage": "index.html",  # where the logo leads, which is a folder else
            "polyfills": ["assets/iframe-worker.js"],
            # a true value shows theme/partials/alternate.html; a list would make each page ask for a sitemap
            "alternate": True,
            "languages": [{"name": other.name, "lang": other.code, "link": other.folder}],
        },
        "plugins": ["search", "offline", {"mkdocstrings": {"enable_inventory": False, "handlers": {"python": python}}}],
        "markdown_extensions": [
            {"toc": {"permalink": True, "slugify": {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}}}},
            "tables",
            "md_in_html",
            {"pymdownx.highlight": {"pygments_lang_class": True}},
            "pymdownx.superfences",
        ],
    }
    path = folder / "mkdocs.yml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def run_zensical(settings: Path) -> None:
    """Build one language; a warning is an error."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(settings)]
    done = subprocess.run(command, cwd=settings.parent, capture_output=True, text=True, check=False)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr.partition("Traceback")[0])
    if done.returncode or "warning" in said.lower() or not (settings.parent / "site" / "index.html").exists():
        raise BuildError(f"zensical: {said.strip()}")


def settle_addresses(site: Path) -> None:
    """Make addresses from the root of the site relative; a page that the other language lacks is its home."""
    for path in site.rglob("*.html"):
        here = path.parent.relative_to(site).as_posix()

        def settled(found: re.Match[str], here: str = here) -> str:
            target, hash_sign, anchor = found[2].partition("#")
            if (site / target).is_file():
                return f'{found[1]}="{posixpath.relpath(target, here)}{hash_sign}{anchor}"'
            home = "zh/index.html" if target.startswith("zh/") else "index.html"
            return f'{found[1]}="{posixpath.relpath(home, here)}"'

        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(rf'(href)="[./]*{SITE}([^"]*)"', settled, text), encoding="utf-8")


class Links(html.parser.HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.loaded: list[str] = []
        """Addresses that a browser opens by itself."""
        self.anchors: set[str] = {"", "__skip", "__toc"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given.get("id") or "", given.get("name") or ""}
        address = given.get("src") or given.get("href")
        if address is not None:
            self.found.append(address)
            if tag not in ("a", "area"):
                self.loaded.append(address)


def read_links(site: Path) -> dict[Path, Links]:
    """Return the links of every page."""
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def find_broken(site: Path) -> Iterator[str]:
    """Yield each link that leads nowhere, and each thing that a browser would fetch from elsewhere."""
    pages = read_links(site)
    for path, links in pages.items():
        name = path.relative_to(site)
        for address in links.loaded:
            if re.match(r"(https?:)?//", address):
                yield f"{name}: loads {address}"
        for address in links.found:
            if re.match(r"([a-z]+:|//)", address) or path.name == "404.html":
                continue
            target, anchor = urldefrag(address)
            file = Path(os.path.normpath(path.parent / unquote(target))) if target else path
            if file.is_dir():
                file /= "index.html"
            if not file.exists():
                yield f"{name}: {address} is not there"
            elif file in pages and unquote(anchor) not in pages[file].anchors:
                yield f"{name}: {address}: there is no such anchor"


def assemble(language: Language, other: Language, folder: Path) -> Path:
    """Lay out the pages of a language and return where the settings of zensical are."""
    pages = Assembler(language, other, folder / "docs")
    (folder / "docs").mkdir(parents=True)
    for source, page in language.sources.items():
        pages.write(page, (ROOT / source).read_text(encoding="utf-8"), source)
    if language.folder:
        nav = chinese_navigation(language, other)
    else:
        generated = site_pages.write_pages(pages.write)
        pages.show_files(files_of_chinese(other, language))
        nav = english_navigation(language, generated)
    return write_settings(language, other, folder, nav)


def files_of_chinese(chinese: Language, english: Language) -> set[Path]:
    """Return the files that Chinese pages link to and that are no page, which the English site shows."""
    found = set()
    for source in chinese.sources:
        for _, address, _ in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            name = urldefrag(address)[0]
            file = Path(posixpath.normpath(posixpath.join(source.parent.as_posix(), name)))
            is_page = file in chinese.sources or file in english.sources
            if name and not is_page and file.suffix != ".png" and (ROOT / file).exists():
                found.add(file)
    return found


def english_navigation(language: Language, generated: dict[str, list[object]]) -> list[object]:
    """Return the sections by what a reader wants, with the generated pages in their places."""
    nav: list[object] = []
    for section, pages in SECTIONS.items():
        entries: list[object] = []
        for page in pages:
            if page in generated:
                entries.append({GENERATED[page]: generated[page]})
            else:
                entries.append({language.titles[page]: page})
        nav.append({section: entries})
    named = {page for pages in SECTIONS.values() for page in pages}
    missing = {page for page in language.sources.values() if "/" not in page} - named
    if missing:
        raise BuildError(f"SECTIONS of docs/build_site.py lacks {', '.join(sorted(missing))}")
    return nav


def chinese_navigation(language: Language, english: Language) -> list[object]:
    """Return the sections for the Chinese site; a page that is not translated leads to the English one."""
    nav: list[object] = []
    for section, pages in SECTIONS.items():
        entries: list[object] = []
        for page in pages:
            if page in language.titles:
                entries.append({language.titles[page]: page})
            else:
                first = f"{page}/index.md" if page in GENERATED else page
                entries.append({f"{english.titles[first]} (English)": SITE + english.address(first)})
        nav.append({CHINESE[section]: entries})
    return nav


def build(output: Path) -> int:
    """Build both languages into a folder, and return the number of pages."""
    english, chinese = find_languages()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run_zensical(assemble(english, chinese, folder / "en"))
        site = folder / "en" / "site"
        run_zensical(assemble(chinese, english, folder / "zh"))
        shutil.move(folder / "zh" / "site", site / "zh")
        settle_addresses(site)
        if broken := list(find_broken(site)):
            raise BuildError("\n".join(broken))
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(site, output)
    return sum(1 for _ in output.rglob("*.html"))


def main() -> int:
    """Build the site; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder to write (default: site)")
    output = parser.parse_args().output
    if output.exists() and not (output / "search.js").exists() and any(output.iterdir()):
        print(f"error: {output} is not a site that this program wrote; name another folder", file=sys.stderr)
        return 2
    try:
        count = build(output)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} pages in {output}; open {output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
