"""Write the reference from docstrings: replace each block `{reference} a.dotted.name` of a page by Markdown.

A block may have the lines `:see: a sentence after the example` and `:exclude: members, to, leave, out`.

The blocks are replaced before MyST parses a page. So the HTML, the table of contents, the anchors and the Markdown copy
of a page all come from the same text.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```\{reference\} (\S+)\n(?::see: (.*)\n)?(?::exclude: (.*)\n)?```$", re.MULTILINE)
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises):")
_ITEM = re.compile(r"(\*{0,2}\w+)(?: \((.*?)\))?: (.*)")
#: The type before the text of a "Returns" section.
_LEADING_TYPE = re.compile(r"^[A-Za-z_.]+(\[.*?\])?: ")
_CODE = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
#: Special methods with a docstring, by what calls them.
_SPECIAL = {"__iter__": "for tick in listener", "__aiter__": "async for tick in listener", "__exit__": "with listener"}


@attrs.frozen
class Item:
    """One entry of a section: a parameter, an attribute or an exception."""

    name: str
    type: str
    text: str


@attrs.define
class Docstring:
    """A Google-style docstring, taken apart."""

    summary: str = ""
    examples: list[str] = attrs.field(factory=list)
    details: list[str] = attrs.field(factory=list)
    items: dict[str, list[Item]] = attrs.field(factory=dict)
    returns: str = ""

    @classmethod
    def of(cls, documented: object) -> Docstring:
        """Read an object's own docstring."""
        found = cls()
        # Split at blank lines, except inside of an example or a section.
        for block in re.split(r"\n\n+(?=\S)|(?<=::)\n\n", inspect.cleandoc(documented.__doc__ or "")):
            head, _, rest = block.partition("\n")
            if match := _SECTION.fullmatch(head):
                body = textwrap.dedent(re.sub(r"\n\n+", "\n", rest))
                if match[1] == "Returns":
                    found.returns = _LEADING_TYPE.sub("", _joined(body))
                else:
                    found.items[match[1]] = list(_items(body))
            elif block.startswith("    "):
                found.examples.append(textwrap.dedent(block))
            elif found.summary:
                found.details.append(_paragraph(block))
            else:
                found.summary = _paragraph(block)
        return found


def _items(text: str) -> Iterator[Item]:
    for entry in re.split(r"\n(?=\S)", text):
        match = _ITEM.fullmatch(_joined(entry))
        if match is None:
            raise ValueError(f"a docstring has {entry!r}; expected 'name (type): text'")
        yield Item(match[1], match[2] or "", match[3])


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def _paragraph(text: str) -> str:
    return text if text.startswith("- ") else _joined(text).removesuffix("::") + ("." if text.endswith("::") else "")


def resolve(name: str) -> Any:
    """Import the object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@cache
def pages() -> dict[str, str]:
    """For each documented name without its package: the page that has it."""
    found: dict[str, str] = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            # The client's Tick comes first: docstrings of the client mean that one.
            found.setdefault(match[1].rpartition(".")[2], page.name)
    return found


class Writer:
    """Writes the Markdown of one object."""

    def __init__(self, name: str, see: str = "", exclude: frozenset[str] = frozenset()) -> None:
        self._see = see
        self._name = name.rpartition(".")[2]
        self._object = resolve(name)
        self._exclude = exclude
        self._parts: list[str] = []

    def write(self) -> str:
        if inspect.isclass(self._object):
            self._class()
        else:
            self._function(self._object, self._name)
        return "\n\n".join(self._parts)

    def _class(self) -> None:
        doc = Docstring.of(self._object)
        self._begin(doc)
        # A base without a page of its own is an implementation detail: its members are this class's.
        owners = [each for each in self._object.__mro__ if each is self._object or _is_detail(each)]
        members = [
            (name, member)
            for owner in owners
            for name, member in vars(owner).items()
            if name not in self._exclude and (not name.startswith("_") or (name in _SPECIAL and member.__doc__))
        ]
        properties = [Item(n, _returned(m.fget), _first(m)) for n, m in members if isinstance(m, property)]
        methods = [(n, m) for n, m in members if inspect.isfunction(m) or isinstance(m, classmethod)]
        base = self._object.__mro__[1].__name__
        if base in pages() and "Attributes" not in doc.items:
            self._parts.append(self._text(f"It has the attributes of `{base}`."))
        attributes = [
            attrs.evolve(item, type=item.type or _annotation(self._object, item.name))
            for item in doc.items.get("Attributes", ())
        ]
        if issubclass(self._object, enum.Enum):
            self._table("member", [Item(member.name, _shown(member.value), "") for member in self._object])
        parameters = doc.items.get("Args", ())
        if parameters:
            if methods or properties:
                self._parts.append("## Parameters")
            self._parameters(self._object, list(parameters))
        self._raises(doc)
        if doc.details:
            if parameters:
                self._parts.append("## Details")
            self._parts += map(self._text, doc.details)
        if attributes or properties:
            if methods or parameters:
                self._parts.append("## Attributes")
            self._table("attribute", attributes + properties)
        if methods:
            self._parts.append("## Methods")
        for name, _ in methods:
            self._parts.append(f"### {_SPECIAL.get(name, name + '()')}")
            self._function(getattr(self._object, name), name)

    def _function(self, function: Any, name: str) -> None:
        doc = Docstring.of(function)
        signature = [] if name in _SPECIAL else [_signature(function, name)]
        if doc.examples:
            self._begin(doc)
            self._parts += signature
        else:
            self._parts += signature
            self._begin(doc)
        self._parts += map(self._text, doc.details)
        if signature:
            self._parameters(function, doc.items.get("Args", []))
        if doc.returns:
            self._parts.append(f"**Returns** {self._text(doc.returns)}")
        self._raises(doc)

    def _begin(self, doc: Docstring) -> None:
        self._parts.append(self._text(doc.summary))
        self._parts += [f"```python\n{example}\n```" for example in doc.examples]
        if self._see:
            self._parts.append(self._see)
            self._see = ""

    def _parameters(self, called: Any, documented: list[Item]) -> None:
        found = inspect.signature(called).parameters
        texts = {item.name.lstrip("*"): item for item in documented}
        if unknown := set(texts) ^ {name for name in found if name != "self"}:
            raise ValueError(f"{self._name}: the docstring and the signature of {called} differ in {sorted(unknown)}")
        if not texts:
            return
        rows = []
        for name, item in texts.items():
            kind = item.type or _type(found[name].annotation)
            rows.append((_code(item.name), _code(kind), _default(found[name]), self._text(item.text)))
        self._rows(("parameter", "type", "default", "meaning"), rows)

    def _table(self, head: str, items: list[Item]) -> None:
        if any(item.text for item in items):
            rows = [(_code(item.name), _code(item.type), self._text(item.text)) for item in items]
            self._rows((head, "type", "meaning"), rows)
        else:
            self._rows((head, "value"), [(_code(item.name), _code(item.type)) for item in items])

    def _rows(self, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        lines = [head, ("---",) * len(head), *rows]
        self._parts.append("{.reference}\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))

    def _raises(self, doc: Docstring) -> None:
        if raised := doc.items.get("Raises"):
            lines = [f"- {self._text(f'`{item.name}`')}: {self._text(item.text)}" for item in raised]
            self._parts.append("**Raises**\n\n" + "\n".join(lines))

    def _text(self, text: str) -> str:
        """Turn names of other documented objects into links."""

        def link(match: re.Match[str]) -> str:
            owner, _, member = match[1].partition(".")
            page = pages().get(owner)
            if page is None or owner == self._name:
                return match[0]
            if list(pages().values()).count(page) > 1:
                return f"[{match[0]}]({page}#{owner.lower()})"
            return f"[{match[0]}]({page}{'#' + member.lower() if member and _has_heading(owner, member) else ''})"

        return _CODE.sub(link, text)


def _is_detail(base: type) -> bool:
    return base.__module__.startswith("finx_streamer.") and base.__name__ not in pages()


def _has_heading(owner: str, member: str) -> bool:
    """Whether a member is a method, which has a heading. Attributes are rows of a table."""
    for module in ("finx_streamer", "finx_streamer.server", "finx_streamer.archive"):
        if found := getattr(importlib.import_module(module), owner, None):
            return inspect.isroutine(getattr(found, member, None))
    return False


def _signature(function: Any, name: str) -> str:
    shown = []
    star = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            shown.append("*")
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={_shown(parameter.default)}"
        shown.append(prefix + parameter.name + default)
    kind = "await " if inspect.iscoroutinefunction(function) else ""
    returned = _returned(function)
    return _code(f"{kind}{name}({', '.join(shown)})" + (f" -> {returned}" if returned not in ("", "Any", "_C") else ""))


def _returned(function: Any) -> str:
    return _type(inspect.signature(function).return_annotation)


def _first(member: Any) -> str:
    doc = Docstring.of(member)
    raised = [f"Raises `{item.name}`: {item.text}" for item in doc.items.get("Raises", ())]
    return " ".join([doc.summary, *doc.details, *raised])


def _type(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _annotation(owner: type, name: str) -> str:
    for base in owner.__mro__:
        if name in (found := inspect.get_annotations(base)):
            return _type(found[name])
    return ""


def _default(parameter: inspect.Parameter) -> str:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return ""
    return "required" if parameter.default is parameter.empty else _code(_shown(parameter.default))


def _shown(default: object) -> str:
    if isinstance(default, type):
        return default.__name__
    if attrs.has(type(default)):
        return f"{type(default).__name__}()"
    if isinstance(default, tuple):
        return f"({_shown(default[0])}, …)" if default else "()"
    return f"{default:_}" if type(default) is int and default >= 10_000 else repr(default).replace("'", '"')


def _code(text: str) -> str:
    return f"`{text}`".replace("|", r"\|") if text else ""


def expand(text: str) -> str:
    """Replace the blocks of a page."""

    def written(match: re.Match[str]) -> str:
        exclude = frozenset(name.strip() for name in (match[3] or "").split(","))
        return Writer(match[1], match[2] or "", exclude).write()

    return BLOCK.sub(written, text)


def _expand_source(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = expand(content[0])
    if BLOCK.search(content[0]):
        raise ValueError(f"{docname}: a reference block was not replaced")


def _note_dependencies(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> set[str]:
    """Docstrings may have changed, so write the reference in every build."""
    return {name for name in env.found_docs if name.startswith("reference/")}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", _expand_source)
    app.connect("env-get-outdated", _note_dependencies)
    return {"parallel_read_safe": True}
