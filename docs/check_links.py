"""Check the built documentation without a network: `make docs` runs this.

Every internal link must lead to a file, and every anchor to an element: in the HTML, in the Markdown copies, and in
README.md and CHANGELOG.md. Every page must be in llms.txt.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "docs" / "_build" / "html"
_CODE = re.compile(r"^(`{3,}).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


class _Page(HTMLParser):
    """The links and the anchors of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {found[name] or "" for name in ("id", "name") if name in found}
        self.links += [found[name] or "" for name in ("href", "src") if name in found and tag != "use"]


@cache
def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def links_of(path: Path) -> list[str]:
    """Return the targets of all links of an HTML or Markdown file."""
    if path.suffix == ".html":
        return _parsed(path).links
    return _LINK.findall(_CODE.sub("", path.read_text(encoding="utf-8")))


def broken_links(path: Path, page_of: dict[str, Path] | None = None) -> Iterator[str]:
    """Yield what is wrong with the internal links of a file.

    `page_of` says which HTML page has the anchors of a Markdown file, by the file's path.
    """
    for link in links_of(path):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            yield f"{path}: {link}: there is no such file"
            continue
        page = target if target.suffix == ".html" else (page_of or {}).get(str(target), target.with_suffix(".html"))
        if parts.fragment and page.exists() and unquote(parts.fragment) not in _parsed(page).anchors:
            yield f"{path}: {link}: there is no such anchor"


def missing_from_index(site: Path) -> Iterator[str]:
    """Yield the pages that llms.txt doesn't have."""
    listed = set(_LINK.findall((site / "llms.txt").read_text(encoding="utf-8")))
    for path in sorted(site.rglob("*.md")):
        name = path.relative_to(site).as_posix()
        if name not in listed and name != "index.md":
            yield f"{site / 'llms.txt'}: {name} is missing"


def complaints(site: Path) -> Iterator[str]:
    """Yield everything that is wrong with a built site, and with the links from outside of it."""
    for path in sorted(site.rglob("*.html")):
        yield from broken_links(path)
    for path in [*sorted(site.rglob("*.md")), site / "llms.txt"]:
        yield from broken_links(path)
    docs = ROOT / "docs"
    page_of = {
        str(path): site / path.relative_to(docs).with_suffix(".html")
        for path in _sources(docs, ("*.md", "reference/*.md", "notebooks/*.ipynb"))
    }
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md"):
        yield from broken_links(path, page_of)
    yield from missing_from_index(site)


def _sources(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from folder.glob(pattern)


def main() -> None:
    found = list(complaints(SITE))
    print("\n".join(found) or "all internal links work")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
