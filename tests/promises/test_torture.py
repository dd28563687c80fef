"""A recorder is killed, its disk fills up, its clock is set: it records what was sent, or says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason='needs the extra: pip install "finx-streamer[archive]"')

from tests.support.torture import torture


@pytest.mark.parametrize("resumable", [True, False], ids=["numbered ticks", "compared ticks"])
def test_a_short_torture(tmp_path: Path, resumable: bool) -> None:
    """`make torture` runs a long one."""
    result = torture(tmp_path, pairs=20, rate=500, kills=4, seed=5, resumable=resumable)
    assert result.mistakes() == [], f"{result}\n{result.output}"
    assert result.sent
    assert result.recorded + result.missing == result.sent
