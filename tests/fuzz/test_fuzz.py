"""Each target of the fuzzer over the inputs that it begins with, those among them that once were findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import __main__ as runner
from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.NAMES)
def test_a_target_takes_its_seeds(name: str) -> None:
    """None of them breaks what the target checks."""
    target = targets.load(name)
    for seed in target.SEEDS:
        target.run(seed)


@pytest.mark.parametrize("name", targets.NAMES)
def test_seeds_are_few_and_small(name: str) -> None:
    """What is found besides belongs into build/fuzz, unless it was a fault."""
    seeds = targets.load(name).SEEDS
    assert len(seeds) == len(set(seeds)) <= 100
    assert sum(map(len, seeds)) < 32_768


def test_an_input_runs_again_without_atheris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found on one machine is looked into on another."""
    path = tmp_path / "symbols-crash-1"
    path.write_bytes(b"\0BTC:USDC")
    monkeypatch.setattr("sys.argv", ["fuzz", "symbols", "--reproduce", str(path)])
    assert runner.main() == 0
    assert capsys.readouterr().out == f"{path}: nothing wrong\n"


@pytest.mark.parametrize("wrong", [["nonsense"], ["frames", "--seconds", "0"], ["--reproduce", "x"]])
def test_a_command_line_that_is_wrong_runs_nothing(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so."""
    monkeypatch.setattr("sys.argv", ["fuzz", *wrong])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
