"""The structure of the code: imports point up, there are no cycles, modules are short, tests are independent."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "finx_streamer"
TESTS = ROOT / "tests"

#: The layers of the package. A module may import from its own row and from the rows above it.
ROWS = (
    ("_version", "clock", "errors", "greeks", "metered", "values"),
    ("config",),
    ("wire",),
    ("connection",),
    ("streaming",),
    ("functions",),
    ("bars",),
    ("delivery", "tables"),
    ("base_listener", "loops", "run", "source"),
    ("archive",),
    ("jetstream",),
    ("listener", "diagnosis", "metrics"),
    ("__init__",),
    ("server",),
    ("relay",),
    ("notebook", "cli", "jupyter", "demo", "__main__"),
)
#: The imports that may point down, each with its reason.
ALLOWED = {
    ("base_listener", "jupyter"): "the only entry point to the notebook; it imports the rest lazily",
    ("listener", "demo"): "the only entry point to the server; it imports the rest lazily",
    ("functions.client", "demo"): "the same",
    ("diagnosis.checkup", "demo"): "the same",
    ("diagnosis.exchanges", "server.exchanges.probe"): "imported lazily; only doctor(live=…) needs the server",
}
#: What the server may import from the client. With a shared codec, a bug in it could go unnoticed.
#: A tape plays an archive, whose strings are those of the wire.
#: A gateway reads what publishers wrote, whose text is that of the wire.
SHARED_WITH_SERVER = {
    "archive",
    "clock",
    "errors",
    "greeks",
    "metered",
    "values",
    "config.symbols",
    "jetstream.connection",
    "jetstream.reader",
    "jetstream.settings",
    "jetstream.subjects",
}
#: `base_listener` is a public class, and most of its lines are documentation.
LONG_MODULES = {"base_listener"}

MOST_EXCEPTIONS = 5
MOST_FILES_AT_THE_TOP = 18
MOST_LINES = 500


def module_name(path: Path, root: Path) -> str:
    """The dotted name of a source file below a root. A package has the name of its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def package_name(path: Path) -> str:
    """The dotted name of the package that contains a source file."""
    return ".".join(path.parent.relative_to(ROOT).parts)


def imported_names(path: Path) -> Iterator[str]:
    """The absolute names that a file imports, within functions and for type checkers as well."""
    package = package_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


MODULES = {module_name(path, PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for name in imported_names(MODULES[module]):
        top, *inner = name.split(".")
        if top == PACKAGE.name:
            while inner and ".".join(inner) not in MODULES:
                inner.pop()
            found.add(".".join(inner) or "__init__")
    return found


IMPORTS = {module: imported_modules(module) for module in MODULES}


def top_level(name: str) -> str:
    """The first part of a dotted name."""
    return name.partition(".")[0]


def row_of(module: str) -> int:
    """The number of a module's row."""
    return next(number for number, row in enumerate(ROWS) if top_level(module) in row)


def test_each_module_has_one_row() -> None:
    """The rows name every module and every folder exactly once."""
    named = [name for row in ROWS for name in row]
    assert sorted(named) == sorted(set(map(top_level, MODULES)))


def test_imports_point_up() -> None:
    """A module imports only from its own row and from the rows above it, with few exceptions."""
    pairs = [(module, target) for module, targets in IMPORTS.items() for target in targets]
    assert {pair for pair in pairs if row_of(pair[1]) > row_of(pair[0])} == set(ALLOWED)
    assert len(ALLOWED) <= MOST_EXCEPTIONS


def test_no_imports_form_a_cycle() -> None:
    """The modules can be sorted so that each one comes after all that it imports."""
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_only_the_connection_package_imports_websocket() -> None:
    """Replacing websocket-client would change only one package."""
    users = {module for module in MODULES if "websocket" in map(top_level, imported_names(MODULES[module]))}
    assert set(map(top_level, users)) == {"connection"}


def test_the_server_shares_no_codec_with_the_client() -> None:
    """The server imports only errors, values, symbols and Greeks from the client."""
    server = row_of("server")
    used = {target for module, targets in IMPORTS.items() if row_of(module) == server for target in targets}
    assert {target for target in used if row_of(target) != server} <= SHARED_WITH_SERVER


def test_few_files_are_at_the_top() -> None:
    """A newcomer sees the public modules first."""
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_TOP


def test_modules_are_short() -> None:
    """No module is too long to read in one go."""
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module for module, count in lines.items() if count > MOST_LINES} <= LONG_MODULES


def test_no_test_imports_from_another_test() -> None:
    """Code that several test modules need belongs into tests/support."""
    found = {
        (module_name(path, TESTS), name)
        for path in TESTS.rglob("*.py")
        for name in imported_names(path)
        if top_level(name) == "tests" and any(part.startswith("test_") for part in name.split("."))
    }
    assert found == set()
