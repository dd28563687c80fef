"""The built documentation: it has no broken link, every page as Markdown, and every public name in the reference."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import reference

import finx_streamer
import finx_streamer.server
from tests.support.program import ROOT

pytestmark = [pytest.mark.xdist_group("docs-site"), pytest.mark.timeout(120)]
DOCS = ROOT / "docs"
#: A directive or attributes, which only Sphinx understands.
LEFT = re.compile(r"^```\{|^\{[.#]|\)\{[.#]", re.MULTILINE)
GROUPS = ["Start", "Use", "Jupyter", "Run your own", "Trust", "Reference"]


def load_checker() -> ModuleType:
    """The script that `make docs` runs after the build."""
    spec = importlib.util.spec_from_file_location("check_links", DOCS / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checker = load_checker()


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the documentation as `make docs` does, but without running the notebooks."""
    options = ["-W", "--keep-going", "-q", "-b", "html", "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation."""
    target = tmp_path_factory.mktemp("site") / "html"
    ended = build(DOCS, target)
    assert ended.returncode == 0, ended.stderr
    return target


def test_all_internal_links_work(site: Path) -> None:
    """So do all links in the Markdown copies, in llms.txt and in the README, and llms.txt has every page."""
    assert list(checker.complaints(site)) == []


def test_every_page_is_there_as_markdown(site: Path) -> None:
    """Each page has a copy next to it, without what only Sphinx understands."""
    pages = {path.with_suffix("") for path in site.rglob("*.html") if path.stem not in ("genindex", "search")}
    copies = {path.with_suffix("") for path in site.rglob("*.md")}
    assert pages == copies
    left = {path.name for path in site.rglob("*.md") if LEFT.search(path.read_text("utf-8"))}
    assert left == set()
    assert "| `queue_size` | `int` | `65_536` |" in (site / "reference" / "stream-listener.md").read_text("utf-8")


def test_llms_txt_describes_every_page(site: Path) -> None:
    """It has the groups of the sidebar, and a sentence about each page."""
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == GROUPS
    lines = re.findall(r"^- \[.+\]\(.+\.md\): (.*)$", text, re.MULTILINE)
    assert len(lines) == text.count("\n- ")
    assert [line for line in lines if not re.fullmatch(r".{15,}[.:]", line)] == []


def test_every_public_name_is_in_the_reference() -> None:
    """A new export needs a page, or an entry on one."""
    public = {*finx_streamer.__all__, *finx_streamer.server.__all__} - {"__version__"}
    assert public - set(reference.pages()) == set()
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert {page for page in reference.pages().values() if f"({page}" not in index} == set()


def test_the_page_about_the_wire_lists_what_doctor_confirms() -> None:
    """Each assumption of the report has its name on the page, and the page has no other."""
    page = (DOCS / "protocol.md").read_text(encoding="utf-8")
    section = page.partition("## What doctor confirms")[2].partition("\n## ")[0]
    listed = [name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in row[1:-1].split("`, `")]
    report = finx_streamer.doctor(endpoint="demo")
    assert listed == [check.name for check in report.assumptions]


def test_a_parameter_without_a_description_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of a table can be missing."""
    monkeypatch.setattr(finx_streamer.stop_all, "__doc__", "Stop every listener of this process.")
    with pytest.raises(ValueError, match=r"differ in \['timeout'\]"):
        reference.expand("```{reference} finx_streamer.stop_all\n```")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[x](other.md)", None),
        ("[x](other.md#here)", None),
        ("[x](#here)", None),
        ("[x](https://example.org/nowhere)", None),
        ("`[x](in-code.md)`", None),
        ("[x](missing.md)", "no such file"),
        ("[x](other.md#gone)", "no such anchor"),
        ("[x](#gone)", "no such anchor"),
    ],
)
def test_the_check_finds_broken_links(text: str, found: str | None, tmp_path: Path) -> None:
    """In Markdown, whose anchors are those of the HTML next to it."""
    for name in ("page", "other"):
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.html").write_text("<h2 id='here'>Here</h2>", encoding="utf-8")
    complaints = list(checker.broken_links(tmp_path / "page.md"))
    assert [complaint.rpartition(": there is ")[2] for complaint in complaints] == ([found] if found else [])


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<a href='other.html#here'></a><img src='other.html'>", None),
        ("<a href='missing.html'></a>", "no such file"),
        ("<img src='missing.png'>", "no such file"),
        ("<a href='other.html#gone'></a>", "no such anchor"),
    ],
)
def test_the_check_finds_broken_links_in_html(html: str, found: str | None, tmp_path: Path) -> None:
    """A link to a file or an anchor that doesn't exist is found."""
    (tmp_path / "other.html").write_text("<h2 id='here'>Here</h2>", encoding="utf-8")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    complaints = list(checker.broken_links(tmp_path / "page.html"))
    assert [complaint.rpartition(": there is ")[2] for complaint in complaints] == ([found] if found else [])


@pytest.mark.parametrize("link", ["[x](missing.md)", "[x](index.md#gone)", "[x](#gone)"])
def test_the_build_fails_at_a_broken_link(link: str, tmp_path: Path) -> None:
    """Sphinx already finds these while it builds."""
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text("extensions = ['myst_nb']\nmyst_heading_anchors = 3\n", encoding="utf-8")
    (source / "index.md").write_text(f"# Title\n\n{link}\n", encoding="utf-8")
    ended = build(source, tmp_path / "html")
    assert ended.returncode == 1
    assert "not found" in ended.stderr
