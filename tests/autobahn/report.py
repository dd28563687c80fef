"""What the fuzzing server saw, as a table by section."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: The suite's names for its sections.
SECTIONS = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "opcodes",
    5: "fragmentation",
    6: "UTF-8",
    7: "closing",
    9: "limits and performance",
    10: "miscellaneous",
}
OK, NON_STRICT, INFORMATIONAL, WRONG_CLOSE, FAILED = VERDICTS = (
    "OK",
    "non-strict",
    "informational",
    "wrong close",
    "failed",
)
NOT_AS_REQUIRED = (WRONG_CLOSE, FAILED)

Verdicts = dict[str, str]


def read(folder: Path, agent: str, cases: Iterable[str]) -> Verdicts:
    """The verdict of each case. One of which nothing is known has failed."""
    index = folder / "index.json"
    seen = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    return {case: _verdict(seen.get(agent, {}).get(case)) for case in cases}


def _verdict(seen: dict[str, Any] | None) -> str:
    """One for the suite's two, which are of how the case went and of how it was closed."""
    known = {"OK": OK, "NON-STRICT": NON_STRICT, "INFORMATIONAL": INFORMATIONAL}
    if seen is None or seen["behavior"] not in known:
        return FAILED
    return known[seen["behavior"]] if seen["behaviorClose"] in ("OK", "INFORMATIONAL") else WRONG_CLOSE


def table(verdicts: Verdicts) -> str:
    """Sections and verdicts, in Markdown."""
    counts = Counter((int(case.partition(".")[0]), found) for case, found in verdicts.items())
    lines = [f"| section | cases | {' | '.join(VERDICTS)} |", f"|---{'|--:' * (1 + len(VERDICTS))}|"]
    for section in sorted({section for section, _ in counts}):
        lines.append(_row(f"{section} {SECTIONS.get(section, '')}", [counts[section, name] for name in VERDICTS]))
    found = list(verdicts.values())
    return "\n".join([*lines, _row("all", [found.count(name) for name in VERDICTS])])


def _row(name: str, numbers: list[int]) -> str:
    return f"| {name} | {' | '.join(map(str, [sum(numbers), *numbers]))} |"


def notable(verdicts: Verdicts) -> list[str]:
    """Which cases are not simply OK: a line for each verdict."""
    cases = {name: [case for case, found in verdicts.items() if found == name] for name in VERDICTS[1:]}
    return [f"{name}: {', '.join(numbers)}" for name, numbers in cases.items() if numbers]
