"""The entry point of `finx-streamer` and `python -m finx_streamer`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. If a dependency is missing, print one line that names it."""
    try:
        import rich  # noqa: F401 (the live table needs it: fail now, not later)

        from .cli.commands import app
        from .cli.terminal import replace_unencodable
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.partition(".")[0] == __package__:
            raise
        print(
            f'finx-streamer: {missing.name} is not installed. Install it with: pip install "finx-streamer[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    replace_unencodable()
    app(prog_name="finx-streamer")


if __name__ == "__main__":
    main()
