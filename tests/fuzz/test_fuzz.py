"""The fuzz targets with their seeds, which include earlier findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import __main__ as runner
from tests.fuzz import targets


@pytest.mark.parametrize("name", targets.NAMES)
def test_the_seeds_of_a_target_pass(name: str) -> None:
    """Each target accepts all of its seeds."""
    target = targets.load(name)
    for seed in target.SEEDS:
        target.run(seed)


@pytest.mark.parametrize("name", targets.NAMES)
def test_seeds_are_few_and_small(name: str) -> None:
    """Only findings become new seeds; other inputs belong in build/fuzz."""
    seeds = targets.load(name).SEEDS
    assert len(seeds) == len(set(seeds)) <= 100
    assert sum(map(len, seeds)) < 32_768


def test_an_input_can_be_reproduced_without_atheris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finding can be debugged on a machine without atheris."""
    path = tmp_path / "symbols-crash-1"
    path.write_bytes(b"\0BTC:USDC")
    monkeypatch.setattr("sys.argv", ["fuzz", "symbols", "--reproduce", str(path)])
    assert runner.main() == 0
    assert capsys.readouterr().out == f"{path}: no error\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["frames", "--seconds", "0"], ["--reproduce", "x"]])
def test_invalid_arguments_run_nothing(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is 2."""
    monkeypatch.setattr("sys.argv", ["fuzz", *arguments])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
