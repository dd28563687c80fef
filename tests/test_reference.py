"""The reference is written from docstrings: nothing of a docstring is lost or misplaced."""

from __future__ import annotations

import textwrap

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.lists(st.from_regex(r"[A-Za-z`][A-Za-z0-9`,.()'|-]{0,9}", fullmatch=True), min_size=1, max_size=30)
#: Text that doesn't look like the beginning of a section or of a list.
TEXTS = WORDS.map(" ".join).filter(lambda text: not text.startswith("- "))
TYPES = st.sampled_from(["", "str", "int | None", "Callable[[Tick, State], object]", "tuple[Check, ...]"])
NAMES = st.from_regex(r"\*{0,2}[a-z][a-z_0-9]{0,15}", fullmatch=True)
ITEMS = st.lists(st.builds(reference.Item, NAMES, TYPES, TEXTS), min_size=1, max_size=6)
CODE = st.lists(st.sampled_from(["x = 1", "", "", "if x:", "    y(x)", "print(x)"]), max_size=8).map(
    lambda lines: "\n".join(["import x", *lines, "end()"])
)


def write(item: reference.Item, width: int) -> str:
    """One entry of a section, wrapped."""
    head = f"{item.name} ({item.type}): " if item.type else f"{item.name}: "
    return textwrap.fill(
        head + item.text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


@given(
    summary=TEXTS, code=CODE, details=st.lists(TEXTS, max_size=2), arguments=ITEMS, raised=ITEMS, returns=TEXTS,
    width=st.integers(40, 120), depth=st.sampled_from([0, 4, 8]),
)  # fmt: skip
def test_a_docstring_is_read_back(
    summary: str,
    code: str,
    details: list[str],
    arguments: list[reference.Item],
    raised: list[reference.Item],
    returns: str,
    width: int,
    depth: int,
) -> None:
    """A written docstring has the same parts when it is read, however it is wrapped and indented."""
    sections = {"Args": arguments, "Raises": raised}
    parts = [textwrap.fill(f"{summary}::", width, break_long_words=False, break_on_hyphens=False)]
    parts += [textwrap.indent(code, "    ")]
    parts += [textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in details]
    parts += [
        f"{name}:\n" + textwrap.indent("\n".join(write(item, width) for item in items), "    ")
        for name, items in sections.items()
    ]
    parts += [f"Returns:\n    {returns}"]
    text = textwrap.indent("\n\n".join(parts), " " * depth).lstrip()

    class Documented:
        pass

    Documented.__doc__ = f"{text}\n{' ' * depth}"
    found = reference.Docstring.of(Documented)
    assert found.summary == f"{summary}."
    assert found.examples == [code]
    assert found.details == details
    assert found.items == sections
    assert found.returns == returns


def test_an_entry_that_is_no_entry_is_refused() -> None:
    """It would be missing from the table."""

    def documented(first: int) -> None:
        """Do something.

        Args:
            first is what it takes.
        """

    with pytest.raises(ValueError, match="expected 'name"):
        reference.Docstring.of(documented)


def test_names_of_documented_objects_become_links() -> None:
    """Except the page's own name, and names that aren't documented."""
    text = reference.expand(
        "```{reference} finx_streamer.Endpoint\n:exclude: of, stream_url, shared_url, functions_url, check_secrecy\n```"
    )
    assert "[`ConfigurationError`](errors.md#configurationerror)" in text
    assert "[`Endpoint`]" not in text
    assert "`Endpoint.PRODUCTION`" in text
    assert "### of()" not in text
    assert "| `wire` | `Literal['url', 'subscribe']` | `\"url\"` |" in text


def test_members_of_an_undocumented_base_are_listed() -> None:
    """A listener has the methods of its base."""
    for name in ("finx_streamer.StreamListener", "finx_streamer.archive.ReplayListener"):
        text = reference.expand(f"```{{reference}} {name}\n:exclude: open_loop, leave_loop, abandoned_run\n```")
        for method in ("on_tick", "on_bar", "start", "stop", "join", "live"):
            assert f"### {method}()" in text
