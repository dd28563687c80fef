"""`finx-streamer` and `python -m finx_streamer`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what is missing for it."""
    try:
        import rich  # noqa: F401 (the table needs it: better known now than when it is drawn)

        from .cli import app
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.partition(".")[0] == __package__:
            raise
        print(
            f'finx-streamer: {missing.name} is not installed; the command line needs: pip install "finx-streamer[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        # Too early for a summary.
        sys.exit(130)
    app(prog_name="finx-streamer")


if __name__ == "__main__":
    main()
