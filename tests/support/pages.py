"""A page looked through for what it would ask of the network."""

from __future__ import annotations

import html.parser


class Addresses(html.parser.HTMLParser):
    """Every address that a browser would open by itself, and every element that was left open."""

    VOID = ("meta", "img", "input", "br", "link", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object"), tag
        self.found += [value or "" for name, value in attrs if name == "src"]
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag, tag


def check_page(page: str) -> None:
    addresses = Addresses()
    addresses.feed(page)
    assert addresses.opened == []
    assert all(address.startswith("data:image/") for address in addresses.found)
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page
