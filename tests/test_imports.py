"""Imports point one way, modules stay small, and tests don't import from each other."""

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
    ("_version", "errors", "values"),
    ("config",),
    ("wire",),
    ("connection",),
    ("streaming",),
    ("functions",),
    ("delivery", "tables"),
    ("listener", "run"),
    ("__init__",),
    ("server",),
    ("notebook", "cli", "jupyter", "__main__"),
)
#: Imports that may point down, with the reason for each.
ALLOWED = {
    ("listener", "jupyter"): "the one entry point to the notebook; a script imports nothing behind it",
    ("config.proxy", "connection.http_response"): "moves soon",
}
#: What the server may import from the client. It shares no codec, so that two equal bugs can't cancel each other out.
SHARED_WITH_SERVER = {"errors", "values", "config.symbols"}

#: Both shrink to nothing.
TEST_IMPORTS = {"cli.test_history", "functions.test_client"}
LONG = {"functions.call_pool", "server.local", "streaming.streams"}
MOST_FILES_AT_THE_TOP = 16
MOST_EXCEPTIONS = 5
MOST_LINES = 500


def name_of(path: Path, root: Path) -> str:
    """The dotted name of a source file below a root; a package has the name of its folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path, PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(path: Path, package: str) -> Iterator[str]:
    """The absolute names that a file imports, anywhere in it. `package` resolves relative imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    path = MODULES[module]
    found = set()
    for name in imported_names(path, ".".join(["finx_streamer", *path.parent.relative_to(PACKAGE).parts])):
        top, _, inner = f"{name}.".partition(".")
        if top != "finx_streamer":
            continue
        inner = inner.rstrip(".")
        while inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        found.add(inner or "__init__")
    return found


GRAPH = {module: imports_of(module) for module in MODULES}


def row_of(module: str) -> int:
    """The number of a module's row."""
    return next(number for number, row in enumerate(ROWS) if module.partition(".")[0] in row)


def test_the_rows_name_every_module() -> None:
    """Each module has exactly one row, and each row names only what exists."""
    named = [name for row in ROWS for name in row]
    assert sorted(named) == sorted({module.partition(".")[0] for module in MODULES})


def test_imports_point_up_the_rows() -> None:
    """No module imports from a row below its own, except for the imports listed above."""
    downward = {
        (module, target) for module, targets in GRAPH.items() for target in targets if row_of(target) > row_of(module)
    }
    assert downward - set(ALLOWED) == set()
    assert len(ALLOWED) <= MOST_EXCEPTIONS


def test_there_is_no_import_cycle() -> None:
    """The modules can be sorted so that each comes after those it imports."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_only_connection_imports_the_websocket_library() -> None:
    """websocket-client can be replaced by changing one package."""
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == "websocket" for name in imported_names(path, "finx_streamer"))
    }
    assert {module.partition(".")[0] for module in users} == {"connection"}


def test_the_server_shares_little_with_the_client() -> None:
    """A bug in a codec of one side can't be hidden by the same bug in the other side."""
    used = {target for module in MODULES if row_of(module) == row_of("server") for target in GRAPH[module]}
    assert {target for target in used if row_of(target) != row_of("server")} <= SHARED_WITH_SERVER


def test_few_files_are_at_the_top() -> None:
    """A newcomer sees the public classes first."""
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_TOP


def test_no_module_is_long() -> None:
    """Only the public class may need more lines, most of them documentation."""
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {
        module: count for module, count in lines.items() if count > MOST_LINES and module not in {"listener", *LONG}
    } == {}


def test_no_test_imports_from_another_test() -> None:
    """What several test modules need is in tests/support or in a folder's own helpers."""
    found = set()
    for path in TESTS.rglob("*.py"):
        package = ".".join(["tests", *path.parent.relative_to(TESTS).parts])
        for name in imported_names(path, package):
            if name.startswith("tests.") and any(part.startswith("test_") for part in name.split(".")):
                found.add((name_of(path, TESTS), name))
    assert {(module, name) for module, name in found if module not in TEST_IMPORTS} == set()
