"""Pictures of every page of the built documentation, to look at: `make docs-pictures`.

Each page is drawn at two widths and in both themes. The first screens of all pages are put side by side on contact
sheets. Pages that are wider than the window are named, and the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import html
import sys
from pathlib import Path

from playwright.sync_api import Browser

from tests.support.browser import chromium
from tests.support.kernels import ROOT

SITE = ROOT / "docs" / "_build" / "html"
WIDTHS = (1280, 390)
THEMES = ("light", "dark")
#: A page wider than the window scrolls sideways. Reports what sticks out.
_TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return null;
    const all = [...document.querySelectorAll("article *")];
    const outside = all.filter((it) => it.getBoundingClientRect().right > width);
    return outside.slice(0, 3).map((it) => it.tagName + ": " + it.textContent.slice(0, 60)).join("; ") || "?";
}"""


def take(browser: Browser, pages: list[Path], folder: Path, width: int, theme: str, whole: bool) -> list[str]:
    """Draw pages at one width in one theme. Return complaints."""
    complaints = []
    tab = browser.new_page(viewport={"width": width, "height": 900 if width > 600 else 844}, color_scheme=theme)  # type: ignore[arg-type]
    for path in pages:
        tab.goto(path.as_uri())
        name = str(path.relative_to(SITE).with_suffix("")).replace("/", "--")
        tab.screenshot(path=folder / f"{name}-{width}-{theme}.png", full_page=whole)
        if (found := tab.evaluate(_TOO_WIDE)) is not None:
            complaints.append(f"{name} at {width}: wider than the window: {found}")
    tab.close()
    return complaints


def make_sheets(browser: Browser, folder: Path, width: int, theme: str) -> None:
    """Put the pictures of one width and theme side by side, as many as are readable on one sheet."""
    shown, number = (640, 9) if width > 600 else (310, 12)
    pictures = sorted(folder.glob(f"*-{width}-{theme}.png"))
    style = f"body{{display:flex;flex-wrap:wrap;font:14px sans-serif}}figure{{margin:4px}}img{{width:{shown}px}}"
    tab = browser.new_page(viewport={"width": 1960, "height": 900})
    for first in range(0, len(pictures), number):
        figures = "".join(
            f"<figure><img src='{html.escape(path.name)}'><figcaption>{html.escape(path.stem)}</figcaption></figure>"
            for path in pictures[first : first + number]
        )
        sheet = folder / f"sheet-{first // number}-{width}.{theme}.html"
        sheet.write_text(f"<style>{style}</style>{figures}", encoding="utf-8")
        tab.goto(sheet.as_uri())
        tab.screenshot(path=sheet.with_suffix(".png"), full_page=True)
    tab.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pages, such as guide or reference/tick; by default all")
    parser.add_argument("--whole", action="store_true", help="whole pages instead of their first screens")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "screenshots")
    arguments = parser.parse_args()
    pages = [SITE / f"{name}.html" for name in arguments.names]
    pages = pages or sorted(path for path in SITE.rglob("*.html") if path.stem not in ("genindex", "search"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    complaints = []
    with chromium() as browser:
        for width in WIDTHS:
            for theme in THEMES:
                complaints += take(browser, pages, arguments.folder, width, theme, arguments.whole)
                make_sheets(browser, arguments.folder, width, theme)
    print("\n".join(dict.fromkeys(complaints)) or "no page is wider than the window")
    print(arguments.folder)
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
