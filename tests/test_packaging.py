"""The package's metadata, exports and extras, and the effects of importing it."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Iterable
from importlib import metadata, resources

import pytest
from packaging.requirements import Requirement

import finx_streamer
from tests.support.program import ROOT, run_program

OPTIONAL = {"msgspec", "websockets", "typer", "rich", "click", "pandas", "polars", "tqdm"}
OPTIONAL |= {"IPython", "anywidget", "ipykernel", "prometheus_client"}
#: The names that users can rely on.
PROMISED = {
    "Bar",
    "BarError",
    "bars",
    "bars_to_pandas",
    "AuthenticationError",
    "CallTimeout",
    "CallbackError",
    "ConfigurationError",
    "ConnectionFailed",
    "DecodeError",
    "Endpoint",
    "FinxStreamerError",
    "FunctionClient",
    "FunctionError",
    "Gap",
    "GapNotFilled",
    "Greeks",
    "IncompleteHistory",
    "ListenerStats",
    "NotAvailable",
    "Notice",
    "Instrument",
    "Option",
    "Pair",
    "ProtocolError",
    "PublishError",
    "RateLimited",
    "RecordingError",
    "ReconnectPolicy",
    "ServerError",
    "SlowConsumer",
    "StaleStream",
    "State",
    "StreamListener",
    "StreamNotFound",
    "StreamStats",
    "Tick",
    "TicksDropped",
    "__version__",
    "doctor",
    "greeks_to_pandas",
    "greeks_to_polars",
    "listeners",
    "stop_all",
    "to_pandas",
    "to_polars",
}


def requirements() -> list[str]:
    """The requirements in the installed metadata. Skips the test if the package isn't installed."""
    try:
        return metadata.requires("finx-streamer") or []
    except metadata.PackageNotFoundError:
        pytest.skip("finx-streamer is not installed here; `make test` installs it")


def test_the_base_installation_has_two_requirements() -> None:
    """Everything except attrs and websocket-client is an extra."""
    base = [requirement for requirement in requirements() if "extra ==" not in requirement]

    assert sorted(re.split(r"[<>=!~ ]", requirement)[0] for requirement in base) == ["attrs", "websocket-client"]


def test_the_documented_extras_exist() -> None:
    """No extra that the documentation names disappears."""
    requirements()
    expected = {"all", "cli", "dev", "metrics", "notebook", "pandas", "polars", "progress", "server"}
    assert expected <= set(metadata.metadata("finx-streamer").get_all("Provides-Extra") or ())


@pytest.mark.parametrize(
    ("version", "allowed"), [("6.16.0", False), ("6.17.1", True), ("6.31.0", True), ("7.3.0", False), ("7.4.0", True)]
)
def test_the_extra_notebook_allows_the_tested_kernels(version: str, allowed: bool) -> None:
    """Colab's ipykernel 6.17.1 is the oldest."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options.extras_require"]["notebook"].split("\n")
    [found] = [Requirement(line) for line in lines if line.startswith("ipykernel")]
    assert found.specifier.contains(version) == allowed


def test_the_extra_cli_includes_server() -> None:
    """`finx-streamer demo` needs the local server."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")

    extras = settings["options.extras_require"]
    assert "finx-streamer[live]" in extras["cli"].split()
    assert "finx-streamer[server]" in extras["live"].split()


def test_there_is_one_version() -> None:
    """The package and its metadata have the same version."""
    requirements()
    assert finx_streamer.__version__ == metadata.version("finx-streamer")


def test_the_package_is_typed() -> None:
    """The package contains `py.typed`, so type checkers read its annotations."""
    assert resources.files("finx_streamer").joinpath("py.typed").is_file()


def test_the_promised_names_are_exported() -> None:
    """`__all__` has each promised name once, and each of them exists."""
    assert sorted(finx_streamer.__all__) == sorted(PROMISED)
    assert [name for name in finx_streamer.__all__ if not hasattr(finx_streamer, name)] == []


def modules_after(*modules: str, hide: Iterable[str] = ()) -> set[str]:
    """The top-level modules in memory of a new process after some imports. Hidden modules can't be imported."""
    result = run_program("imported_modules", *modules, "--hide", *hide)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def test_the_import_loads_no_extra() -> None:
    """Extras are imported on first use."""
    assert modules_after("finx_streamer") & OPTIONAL == set()


def test_the_import_loads_no_event_loop() -> None:
    """asyncio is slow to import, and most scripts don't use it."""
    added = modules_after("finx_streamer", hide=OPTIONAL) - modules_after("websocket", "attrs")
    assert "asyncio" not in added


def test_the_import_works_without_extras() -> None:
    """The two base requirements are enough."""
    assert "finx_streamer" in modules_after("finx_streamer", hide=OPTIONAL)


def test_the_import_starts_nothing() -> None:
    """The import starts no thread and adds no logging handler, so that Python's last resort prints our errors."""
    result = run_program("side_effects")
    assert (result.stdout, result.stderr) == ("1 []\n[]\n", "")
