"""One target under libFuzzer: `python -m tests.fuzz.child ITSELF TARGET [libFuzzer's arguments]`. It needs atheris.

ITSELF is a program that runs just this: libFuzzer starts itself anew to merge inputs.
"""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import targets

#: What is watched: our package, the library below it, and the targets, whose plain readers show new ways, too.
_WATCHED = ["finx_streamer", "websocket", "http.client", "email.utils", "email._parseaddr", "tests.fuzz"]


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    _, itself, name, *arguments = sys.argv
    with atheris.instrument_imports(include=_WATCHED):
        target = targets.load(name)
    atheris.Setup([itself, *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
