"""The Chinese pages say what the English ones say: they follow a commit and keep the code."""

import re
from pathlib import Path

import pytest

from support.translation import (
    WIDE,
    anchors,
    broken_links,
    code_blocks,
    commits_behind,
    followed,
    git,
    has_history,
    inline_code,
    links_out_of_chinese,
    unwrapped,
    without_generated,
)

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
ENGLISH = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_chinese_page_names_the_english_one_of_its_name(page: Path) -> None:
    english, _ = followed(page)
    assert english == name_of(page).replace("docs/zh/", "docs/").replace(".zh.md", ".md")
    assert (ROOT / english).is_file()


def test_no_chinese_page_has_fallen_behind() -> None:
    if not has_history(ROOT):
        pytest.skip("this copy has no git history, or not all of it")
    behind = {name_of(page): commits_behind(ROOT, page) for page in PAGES}
    told = [f"{name}: {line}" for name, lines in behind.items() for line in lines]
    assert not told, (
        "translate what these commits changed in the English page, and write the last one into line 1:\n"
        + "\n".join(told)
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_that_of_the_english_page(page: Path) -> None:
    english, _ = followed(page)
    # so the Python of Chinese pages is not run once more, as tests/journeys/test_docs.py runs the English
    assert code_blocks(page.read_text()) == code_blocks((ROOT / english).read_text())


@pytest.mark.parametrize("page", [*ENGLISH, *PAGES], ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert not broken_links(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_stay_in_chinese_where_they_can(page: Path) -> None:
    assert not links_out_of_chinese(page, ROOT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_chinese_page_names_what_the_english_one_names(page: Path) -> None:
    english, _ = followed(page)
    assert not inline_code((ROOT / english).read_text()) - inline_code(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_chinese_page_copies_no_generated_table(page: Path) -> None:
    """Whatever docs/generate.py does not write itself would go stale unseen."""
    generator = (ROOT / "docs" / "generate.py").read_text()
    if page.name not in re.findall(r'(?:"zh"|ROOT) / "([\w.]+)"', generator):
        assert without_generated(page.read_text()) == page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_paragraph_stands_on_one_line(page: Path) -> None:
    """A line's end between two Chinese words is shown as a blank; `unwrapped` takes it out."""
    assert unwrapped(page.read_text()) == page.read_text()


def test_every_setting_is_explained_in_chinese() -> None:
    """docs/generate.py writes what a setting means in English where its Chinese is missing."""
    page = (ROOT / "docs" / "zh" / "config.md").read_text()
    english = [line for line in page.splitlines() if line.startswith("| ") and not WIDE.search(line.split(" | ")[-1])]
    assert not english, "say in Chinese what these settings mean:\n" + "\n".join(english)


def test_the_readmes_link_to_each_other() -> None:
    for page, other in (("README.md", "README.zh.md"), ("README.zh.md", "README.md")):
        head = (ROOT / page).read_text().splitlines()[:4]
        assert any(f"]({other})" in line for line in head), page


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one English page, two commits old, and its translation in between."""
    (tmp_path / "docs" / "zh").mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "somebody")
    git(tmp_path, "config", "user.email", "somebody@example.org")
    write(tmp_path, "Write x", english="# Two\n")
    commit = git(tmp_path, "log", "-1", "--format=%h").strip()
    write(tmp_path, "Translate x", chinese=f"<!-- follows docs/x.md at {commit} -->\n# 2\n")
    return tmp_path


def write(root: Path, subject: str, english: str | None = None, chinese: str | None = None) -> None:
    """Commit new texts of the page, of its translation, or of both."""
    for name, text in (("docs/x.md", english), ("docs/zh/x.md", chinese)):
        if text is not None:
            (root / name).write_text(text, encoding="utf-8")
    git(root, "add", ".")
    git(root, "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", subject)


def test_a_page_that_has_fallen_behind_is_told(repository: Path) -> None:
    page = repository / "docs" / "zh" / "x.md"
    first = page.read_text()
    assert has_history(repository)
    assert commits_behind(repository, page) == []
    write(repository, "Change both", english="# Three\n", chinese=f"{first}3\n")
    assert commits_behind(repository, page) == []
    write(repository, "Change one", english="# Four\n")
    (told,) = commits_behind(repository, page)
    assert told.endswith(" Change one")
    commit = told.split()[0]
    page.write_text("<!-- follows docs/x.md at 0123456789 -->\n")
    with pytest.raises(AssertionError, match="line 1: 0123456789 is no commit of this repository"):
        commits_behind(repository, page)
    write(repository, "Follow", chinese=f"<!-- follows docs/x.md at {commit} -->\n# 4\n")
    assert commits_behind(repository, page) == []


def test_a_copy_without_all_of_the_history_is_known(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shallow = tmp_path_factory.mktemp("shallow")
    git(repository, "clone", "--quiet", "--depth=1", f"file://{repository}", str(shallow))
    assert not has_history(shallow)
    assert not has_history(shallow / "docs")


def test_a_page_that_follows_nothing_is_told(tmp_path: Path) -> None:
    page = tmp_path / "x.md"
    page.write_text("# x\n")
    with pytest.raises(AssertionError, match="line 1 is to be '<!-- follows docs/NAME"):
        followed(page)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("```bash\n# other words\nvitrail train   # others\n```\n", True),
        ("```bash\nvitrail train\n```\n", True),
        ("```bash\nvitrail trains  # words\n```\n", False),
        ("```bash\nvitrail train --resume a#b\n```\n", False),
        ("```python\nvitrail train  # words\n```\n", False),
        ("words\n", False),
    ],
)
def test_code_is_compared_but_for_comments(changed: str, same: bool) -> None:
    english = "```bash\n# words\nvitrail train  # words\n```\n"
    assert (code_blocks(changed) == code_blocks(english)) == same


def test_what_a_page_names_is_found_but_for_generated_tables() -> None:
    text = (
        "`a b` and `c\nd`\n<!-- rooms -->\n`e`\n<!-- end -->\n<!-- commands -->\n`f`\n<!-- end -->\n```bash\ng\n```\n"
    )
    assert inline_code(text) == {"a b", "c d", "f"}
    assert "`f`" in without_generated(text)
    assert "`e`" not in without_generated(text)


def test_lines_of_a_paragraph_are_joined_as_chinese_is_written() -> None:
    two_signs = "\u6743\u91cd"
    wrapped = f"# a\n{two_signs}\n{two_signs}\uff0c\nb\n{two_signs} c\nd\n\n- e\n  f\n- g\n| h |\n```\ni\nj\n```\n"
    joined = f"# a\n{two_signs}{two_signs}\uff0cb {two_signs} c d\n\n- e f\n- g\n| h |\n```\ni\nj\n```\n"
    assert unwrapped(wrapped) == joined
    assert unwrapped(joined) == joined


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    other = "# \u6743\u91cd\uff1a`GELU` and *eps*, 2 of them\n## Again\n## Again\n```bash\n# no heading\n```\n"
    (tmp_path / "other.md").write_text(other, encoding="utf-8")
    assert anchors(other) == {"\u6743\u91cdgelu-and-eps-2-of-them", "again", "again-1"}
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](#here) [b](other.md#again-1) [c](other.md#\u6743\u91cdgelu-and-eps-2-of-them) [d](https://x.org/y#z)\n"
        "[e](#there) [f](other.md#no-heading) [g](none.md)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == [
        "#there: no such heading",
        "other.md#no-heading: no such heading",
        "none.md: no such file",
    ]


def test_a_link_that_leaves_chinese_is_told(tmp_path: Path) -> None:
    chinese = tmp_path / "docs" / "zh"
    chinese.mkdir(parents=True)
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / "docs" / name).write_text("# x\n")
    page, twin = chinese / "a.md", chinese / "b.md"
    page.write_text("[own](../a.md#x) [told](../b.md#x) [English alone](../c.md) [c](https://x.org/b.md)\n")
    assert links_out_of_chinese(page, tmp_path) == []
    twin.write_text("# y\n")
    assert links_out_of_chinese(page, tmp_path) == ["b.md: docs/zh/ has it in Chinese"]
    page.write_text("[table](../b.md#x) ([y](b.md))\n")
    assert links_out_of_chinese(page, tmp_path) == []
