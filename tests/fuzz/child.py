"""Run one target under libFuzzer: `python -m tests.fuzz.child PROGRAM TARGET [LIBFUZZER ARGUMENTS]`. Needs atheris.

PROGRAM is an executable that runs this command. libFuzzer runs it to merge inputs.
"""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import targets

#: Modules whose coverage guides the fuzzer. The targets' reference readers reveal new cases, too.
_INSTRUMENTED = ["finx_streamer", "websocket", "http.client", "email.utils", "email._parseaddr", "tests.fuzz"]


def main() -> None:
    """Run the target until libFuzzer ends the process."""
    _, program, name, *arguments = sys.argv
    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = targets.load(name)
    atheris.Setup([program, *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
