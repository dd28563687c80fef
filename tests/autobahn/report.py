"""Read the fuzzing server's report and print it as a table."""

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
NOT_PASSED = (WRONG_CLOSE, FAILED)

Verdicts = dict[str, str]


def read(folder: Path, agent: str, cases: Iterable[str]) -> Verdicts:
    """Return the verdict of each case. A case without a result has failed."""
    index = folder / "index.json"
    results = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    return {case: _verdict(results.get(agent, {}).get(case)) for case in cases}


def _verdict(result: dict[str, Any] | None) -> str:
    """Combine the suite's two verdicts: on the behaviour and on the close code."""
    known = {"OK": OK, "NON-STRICT": NON_STRICT, "INFORMATIONAL": INFORMATIONAL}
    if result is None or result["behavior"] not in known:
        return FAILED
    return known[result["behavior"]] if result["behaviorClose"] in ("OK", "INFORMATIONAL") else WRONG_CLOSE


def table(verdicts: Verdicts) -> str:
    """Return a Markdown table of sections and verdicts."""
    counts = Counter((int(case.partition(".")[0]), found) for case, found in verdicts.items())
    lines = [f"| section | cases | {' | '.join(VERDICTS)} |", f"|---{'|--:' * (1 + len(VERDICTS))}|"]
    for section in sorted({section for section, _ in counts}):
        lines.append(_row(f"{section} {SECTIONS.get(section, '')}", [counts[section, name] for name in VERDICTS]))
    found = list(verdicts.values())
    return "\n".join([*lines, _row("all", [found.count(name) for name in VERDICTS])])


def _row(name: str, numbers: list[int]) -> str:
    return f"| {name} | {' | '.join(map(str, [sum(numbers), *numbers]))} |"


def notable(verdicts: Verdicts) -> list[str]:
    """List the cases that are not OK, one line per verdict."""
    cases = {name: [case for case, found in verdicts.items() if found == name] for name in VERDICTS[1:]}
    return [f"{name}: {', '.join(numbers)}" for name, numbers in cases.items() if numbers]
