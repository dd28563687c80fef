"""A bar on stderr that shows how far a fetch of history has come. Needs the extra `[progress]`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from .errors import ConfigurationError
from .messages import Tick


def shown_by_time(pages: Iterator[list[Tick]], pair: str, start: datetime, end: datetime) -> Iterator[list[Tick]]:
    """The same pages, while a bar shows how much of the time from start to end is covered.

    Raises `ConfigurationError` at once where tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise ConfigurationError(
            'progress=True needs tqdm, which is not installed: pip install "finx-streamer[progress]"'
        ) from None

    def shown() -> Iterator[list[Tick]]:
        form = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"
        ticks = 0
        with tqdm(total=(end - start).total_seconds(), desc=pair, bar_format=form) as bar:
            for page in pages:
                ticks += len(page)
                bar.set_postfix_str(f"{ticks:,} ticks", refresh=False)
                bar.update((page[-1]["timestamp"] - start).total_seconds() - bar.n)
                yield page
            bar.update((end - start).total_seconds() - bar.n)

    return shown()
