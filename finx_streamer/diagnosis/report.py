"""What `doctor` found: one `Check` per step."""

from __future__ import annotations

import enum
import json
import textwrap
from typing import Any, ClassVar

import attrs

from ..config.redaction import redact

#: In characters.
_NAME_WIDTH, _LINE_WIDTH, _VALUE_WIDTH = 29, 110, 80


def shorten(value: object) -> str:
    """A JSON value in one short line."""
    text = redact(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _VALUE_WIDTH else f"{text[:_VALUE_WIDTH]}…"


class Verdict(enum.StrEnum):
    """The result of a check."""

    OK = "ok"
    #: Worth knowing, but no fault.
    NOTE = "note"
    FAILED = "failed"
    #: A check before it has failed, or the server can't show it.
    SKIPPED = "skipped"


@attrs.frozen
class Check:
    """One check of a `Report`::

        import finx_streamer

        for check in finx_streamer.doctor(endpoint="demo").checks:
            print(check.verdict, check.name, check.advice)

    Attributes:
        name (str): What was checked, such as "TCP".
        verdict (Verdict): "ok", "note", "failed" or "skipped".
        found (str): What was measured.
        advice (str): What to do. Empty if there is nothing to do.
    """

    name: str
    verdict: Verdict
    found: str = attrs.field(converter=redact)
    advice: str = attrs.field(default="", converter=redact)

    def __str__(self) -> str:
        text = self.found + (f". {self.advice}" if self.advice else "")
        head = f"{self.verdict:<8}{self.name:<{_NAME_WIDTH}}"
        # Paths and URLs stay whole, so that they can be copied.
        return textwrap.fill(
            text,
            _LINE_WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
            break_long_words=False,
        )


@attrs.frozen(repr=False)
class Report:
    """The result of `doctor`. Printing it shows one check per line::

        import finx_streamer

        report = finx_streamer.doctor(endpoint="demo")
        print(report.ok, report.summary)

    Attributes:
        checks (tuple[Check, ...]): From this machine outwards to the server.
        assumptions (tuple[Check, ...]): What this package assumes about FinX, each confirmed ("ok"), refuted ("note"),
            or not seen ("skipped").
    """

    HEADING: ClassVar = "What this package assumes about FinX:"

    checks: tuple[Check, ...]
    assumptions: tuple[Check, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check has failed. A refuted assumption is not a failure."""
        return all(check.verdict != Verdict.FAILED for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The report as values that JSON has."""
        return {"ok": self.ok, **attrs.asdict(self)}

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=2)

    @property
    def summary(self) -> str:
        """One line: whether all is well, or what failed."""
        failed = [check.name for check in self.checks if check.verdict is Verdict.FAILED]
        return f"something is wrong: {', '.join(failed)}" if failed else "all is well"

    def __str__(self) -> str:
        lines = [str(check) for check in self.checks]
        if self.assumptions:
            lines += ["", self.HEADING, *map(str, self.assumptions)]
        return "\n".join([*lines, "", self.summary])

    __repr__ = __str__
