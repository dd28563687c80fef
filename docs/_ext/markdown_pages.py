"""Serve each page as Markdown too, next to its HTML, and list all of them in llms.txt.

`guide.html` gets a `guide.md`: the page's source, with the reference written out, and without what only Sphinx
understands. A notebook gets its cells and their output as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from nbconvert import MarkdownExporter
from reference import expand
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: What only Sphinx understands: lists of pages, attributes of a block or a picture, and pictures for dark pages.
_FOR_SPHINX = re.compile(
    r"^```\{toctree\}\n.*?^```\n|^\{[.#][^}]*\}\n|^!\[[^\]]*\]\([^)]*\)\{\.only-dark\}\n|(?<=\))\{[.#][^}]*\}",
    re.MULTILINE | re.DOTALL,
)
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
_CODE = re.compile(r"^```\{literalinclude\} (\S+)\n:language: (\w+)\n```$", re.MULTILINE)
_PICTURE = re.compile(r"(!\[[^\]]*\]\()(?:images/)?([\w-]+\.(?:png|svg)\))")
_NOTEBOOK = re.compile(r"(\]\([\w/.-]+)\.ipynb([#)])")
_HEAD = """# finx-streamer

> A Python client for the live crypto ticks of FinX, for scripts with callbacks and for Jupyter notebooks.

Install: `pip install "finx-streamer[all]"`. `endpoint="demo"` is a simulated market that needs no key and no network.
Every page below is Markdown.
"""


def as_markdown(env: BuildEnvironment, docname: str) -> str:
    """Return a page as plain Markdown."""
    path = Path(env.doc2path(docname))
    if path.suffix == ".ipynb":
        text = _notebook(path, Path(env.app.outdir).parent / "jupyter_execute" / f"{docname}.ipynb")
    else:
        text = expand(path.read_text(encoding="utf-8"))
    text = _INCLUDE.sub(lambda match: (path.parent / match[1]).read_text(encoding="utf-8"), text)
    text = _CODE.sub(lambda match: f"```{match[2]}\n{(path.parent / match[1]).read_text(encoding='utf-8')}```", text)
    text = _FOR_SPHINX.sub("", text)
    up = "../" * docname.count("/")
    return _NOTEBOOK.sub(r"\1.md\2", _PICTURE.sub(rf"\1{up}_images/\2", text)).strip() + "\n"


def _notebook(source: Path, executed: Path) -> str:
    """Return the cells of a notebook, with the text of their output if this build has executed it."""
    notebook = nbformat.read(executed if executed.exists() else source, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            for kind in [kind for kind in data if kind != "text/plain"]:
                del data[kind]
    text: str = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(notebook)[0]
    return text


def _groups(env: BuildEnvironment) -> Iterator[tuple[str, list[str]]]:
    """Yield the groups of the sidebar, each with its pages and what is below them."""

    def with_children(docname: str) -> list[str]:
        children = env.toctree_includes.get(docname, ())
        return [docname, *(page for child in children for page in with_children(child))]

    for toctree in env.get_doctree("index").findall(addnodes.toctree):
        pages = [page for docname in toctree["includefiles"] for page in with_children(docname)]
        yield toctree["caption"], pages


def _description(env: BuildEnvironment, docname: str) -> str:
    """Return the first sentence of a page."""
    first = next(iter(env.get_doctree(docname).findall(nodes.paragraph)), None)
    text = "" if first is None else first.astext().replace("\n", " ")
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def llms_txt(env: BuildEnvironment) -> str:
    """Return the list of all pages, for programs that read Markdown."""
    lines = [_HEAD]
    for caption, pages in _groups(env):
        lines += [f"## {caption}", ""]
        lines += [f"- [{env.titles[page].astext()}]({page}.md): {_description(env, page)}" for page in pages]
        lines.append("")
    return "\n".join(lines)


def _write(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    for docname in sorted(app.env.found_docs):
        path = Path(app.outdir, f"{docname}.md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_markdown(app.env, docname), encoding="utf-8")
    Path(app.outdir, "llms.txt").write_text(llms_txt(app.env), encoding="utf-8")


def _link(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Tell programs that read a page where its Markdown is."""
    if pagename in app.env.found_docs:
        href = context["pathto"](f"{pagename}.md", 1)
        context["metatags"] += f'<link rel="alternate" type="text/markdown" href="{href}">'


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("build-finished", _write)
    app.connect("html-page-context", _link)
    return {"parallel_read_safe": True}
