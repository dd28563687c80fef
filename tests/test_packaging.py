"""What an installation brings, and what an import does."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import finx_streamer

ROOT = Path(__file__).parent.parent
OPTIONAL = {"msgspec", "websockets", "typer", "rich", "click", "pandas", "polars", "tqdm"} | {
    "IPython",
    "anywidget",
    "ipykernel",
}
#: Whatever of these is exported is what users were promised.
PROMISED = {
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
    "IncompleteHistory",
    "ListenerStats",
    "NotAvailable",
    "Notice",
    "Option",
    "Pair",
    "ProtocolError",
    "RateLimited",
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
    "listeners",
    "stop_all",
    "to_pandas",
    "to_polars",
}
#: Those that come with later versions.
LATER = {"Gap"}


def requirements() -> list[str]:
    """What the installed metadata requires."""
    try:
        return metadata.requires("finx-streamer") or []
    except metadata.PackageNotFoundError:
        pytest.skip("finx-streamer is not installed here; `make test` installs it")


def test_the_base_installation_brings_two_packages() -> None:
    """Everything else is an extra."""
    base = [requirement for requirement in requirements() if "extra ==" not in requirement]

    assert sorted(re.split(r"[<>=!~ ]", requirement)[0] for requirement in base) == ["attrs", "websocket-client"]


def test_the_extras() -> None:
    """Documentation names them, so they are kept."""
    requirements()
    expected = {"all", "cli", "dev", "notebook", "pandas", "polars", "progress", "server", "speed"}
    assert expected <= set(metadata.metadata("finx-streamer").get_all("Provides-Extra") or ())


def test_the_command_line_can_serve() -> None:
    """`finx-streamer demo` needs the local server, so the extra `cli` brings what `server` brings."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")

    assert "finx-streamer[server]" in settings["options.extras_require"]["cli"].split()


def test_there_is_one_version() -> None:
    """The package and its metadata agree."""
    requirements()
    assert finx_streamer.__version__ == metadata.version("finx-streamer")


def test_type_checkers_are_told_of_the_types() -> None:
    """A `py.typed` file is part of the package."""
    assert resources.files("finx_streamer").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", sorted(set(finx_streamer.__all__) & PROMISED))
def test_an_exported_name_resolves(name: str) -> None:
    """`from finx_streamer import …` works for it."""
    assert getattr(finx_streamer, name) is not None


def test_nothing_promised_is_missing() -> None:
    """And nothing is exported twice."""
    assert set() == PROMISED - LATER - set(finx_streamer.__all__)
    assert len(set(finx_streamer.__all__)) == len(finx_streamer.__all__)


def _modules_after(statement: str, *, without: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
    """The top-level modules that a fresh process has after a statement, with some packages hidden."""
    program = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(without)!r}))\n"
        f"{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name, module in sys.modules.items() if module})))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(result.stdout))


def test_the_import_brings_no_extra_but_speed() -> None:
    """`msgspec` is used where it is installed; nothing else is looked at before it is asked for."""
    assert set() == (OPTIONAL - {"msgspec"}) & _modules_after("import finx_streamer")


def test_the_import_brings_no_event_loop() -> None:
    """asyncio takes its time, and most scripts have no use for it; nor is there a notebook to look after."""
    brought = _modules_after("import finx_streamer", without=OPTIONAL) - _modules_after("import websocket, attrs")
    assert "asyncio" not in brought


def test_the_import_works_without_any_extra() -> None:
    """Two packages are enough."""
    assert "finx_streamer" in _modules_after("import finx_streamer", without=OPTIONAL)


def test_the_import_starts_nothing() -> None:
    """No thread, no logging handler but the null one, no look at the environment's key."""
    program = (
        "import logging, threading\n"
        "import finx_streamer\n"
        "assert 1 == threading.active_count()\n"
        "assert [] == logging.getLogger().handlers\n"
        "assert ['NullHandler'] == [type(h).__name__ for h in logging.getLogger('finx_streamer').handlers]\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (result.returncode, result.stderr) == (0, "")
