"""What holds a translated page to its English one: the commit that it follows, code and links."""

import re
import subprocess
from pathlib import Path

BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FOLLOWS = re.compile(r"<!-- follows (\S+) at ([0-9a-f]{7,40}) -->\n")
BEGINS = re.compile(r"$|[|#<]| *(?:[-*]|[0-9]+\.) ")
"""An empty line, a table, a heading, a comment or an item of a list."""
WIDE = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")
"""A Chinese character or sign."""
SIGN = re.compile(r"[\u3000-\u303f\uff00-\uffef\u201c\u201d\u2026]")
"""A sign alone: a comma, a bracket, a quotation mark."""


def git(root: Path, *arguments: str) -> str:
    """Return what a git command prints about the repository at `root`."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def has_history(root: Path) -> bool:
    """Say whether `root` is a whole clone: sdists and shallow clones do not know older commits."""
    if not (root / ".git").exists():
        return False
    return git(root, "rev-parse", "--is-shallow-repository").strip() == "false"


def followed(page: Path) -> tuple[str, str]:
    """Return the English page, as a path below the root, and the commit of it that is followed."""
    found = FOLLOWS.match(page.read_text(encoding="utf-8"))
    assert found is not None, f"{page}: line 1 is to be '<!-- follows docs/NAME.md at COMMIT -->'"
    return found[1], found[2]


def commits_behind(root: Path, page: Path) -> list[str]:
    """Return a line for each later commit that changed the English page and not this one."""
    english, commit = followed(page)
    command = ["git", "-C", str(root), "cat-file", "-e", commit]
    known = subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert known, f"{page}: line 1: {commit} is no commit of this repository"
    since = ["log", "--no-merges", "--format=%h %s", f"{commit}..HEAD", "--"]
    here = git(root, *since, str(page.relative_to(root))).splitlines()
    return [line for line in git(root, *since, english).splitlines() if line not in here]


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return language and code of each block, without comments, which a translation may change."""
    return [(kind, without_comments(code)) for kind, code in BLOCK.findall(text)]


def without_comments(code: str) -> str:
    """Return code without `# ...`, the blanks before it and the lines that it leaves empty."""
    lines = [re.sub(r"(^|\s)#\s.*", "", line).rstrip() for line in code.splitlines()]
    return "\n".join(line for line in lines if line)


def without_generated(text: str) -> str:
    """Return a page without the tables that docs/generate.py writes into it."""
    table = r"<!-- (families|rooms|file map|recipes|vitrail models --markdown) -->.*?<!-- end -->\n"
    return re.sub(table, "", text, flags=re.DOTALL)


def inline_code(text: str) -> set[str]:
    """Return what stands between backticks, such as settings, outside blocks and generated tables."""
    words = re.findall(r"`([^`]+)`", BLOCK.sub("", without_generated(text)))
    return {" ".join(one.split()) for one in words}


def unwrapped(text: str) -> str:
    """Return a page with a line a paragraph: a line's end within Chinese words is shown as a blank."""
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        fence = line.startswith("```")
        begins = in_code or fence or BEGINS.match(line) is not None
        if begins or not lines or not lines[-1] or lines[-1].startswith(("|", "#", "<", "```")):
            lines.append(line)
        else:
            words = line.lstrip()
            # a blank stands beside Latin words, and none beside a sign that has its own room
            blank = "" if WIDE.match(lines[-1][-1]) and WIDE.match(words) else " "
            if SIGN.match(lines[-1][-1]) or SIGN.match(words):
                blank = ""
            lines[-1] += blank + words
        in_code ^= fence
    return "\n".join(lines) + "\n"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page: small letters, hyphens, no punctuation."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.*?) *$", BLOCK.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = found.get(name, 0)
        found[name] = again + 1
        if again:
            found[f"{name}-{again}"] = 1
    return set(found) | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            broken.append(f"{target}: no such heading")
    return broken


def links_out_of_chinese(page: Path, root: Path) -> list[str]:
    """Return the links of a Chinese page to English ones whose Chinese twin it never names."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s:]+)\)", text)]
    linked = [(page.parent / target).resolve() for target in targets if target]
    out = []
    for english in linked:
        twin = root / "docs" / "zh" / english.name
        is_page = english.parent == root / "docs" and english.suffix == ".md"
        if is_page and twin.exists() and twin not in (page, *linked):
            out.append(f"{english.name}: docs/zh/ has it in Chinese")
    return out
