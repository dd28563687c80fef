"""The unfinished output of `history`: `FILE.part`, which another run can continue.

`FILE.part.json` beside it says what was asked for. It is also the lock: one process writes a part at a time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

import attrs

from .. import ConfigurationError
from .encoding import decode_lines, encode
from .formats import LineFormat
from .terminal import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The longest name that most file systems allow, in bytes.
_MAX_NAME = 255


@attrs.frozen
class Request:
    """What `history` was asked for: the options as they were typed, and the times that they meant then."""

    pair: str
    exchange: str | None
    format: str
    start: str
    end: str | None
    since: datetime
    until: datetime

    def to_json(self) -> str:
        times = {"since": self.since.isoformat(), "until": self.until.isoformat()}
        return json.dumps(attrs.asdict(self) | times)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Raises ValueError, TypeError or KeyError if it isn't one."""
        fields = json.loads(text)
        times = {name: datetime.fromisoformat(fields[name]) for name in ("since", "until")}
        return cls(**{**fields, **times})

    @property
    def typed(self) -> dict[str, str | None]:
        """The options as they were typed."""
        return {
            "PAIR": self.pair,
            "--start": self.start,
            "--end": self.end,
            "--exchange": self.exchange,
            "--format": self.format,
        }


class PartFile:
    """Writes a file that appears when it is complete. Until then, what there is of it survives the process.

    Args:
        target: The file.
        mode: Its permissions; None for those of a new file.
        packed: Whether it is written with gzip.
        line_format: How a tick is written.
    """

    def __init__(self, target: Path, mode: int | None, packed: bool, line_format: LineFormat) -> None:
        self.target = target
        self.path = _beside(target, ".part")
        #: How many ticks it holds of an earlier run, and the time from which this run continues.
        self.kept = 0
        self.resume_at: datetime | None = None
        self._mode = mode
        self._packed = packed
        self._format = line_format
        self._request_path = _beside(target, ".part.json")
        # Never more readable than the target, not even for a moment.
        self._opener = functools.partial(os.open, mode=0o666 if mode is None else mode)

    @contextlib.contextmanager
    def open(self, request: Request, *, resume: bool) -> Iterator[tuple[IO[str], Request]]:
        """Open it for writing, and move it into place at the end of the block, unless the block raises.

        Args:
            request: What is asked for.
            resume: Keep the ticks of an earlier run, if there are any. `kept` and `resume_at` describe them.

        Yields:
            The file, positioned behind what was kept; and the request, with the times of the earlier run.

        Raises:
            ConfigurationError: Another process writes it, or the earlier run asked for something else.
            OSError: It can't be written, or can't be moved into place.
        """
        with self._lock() as request_file:
            if self.path.exists():
                if resume:
                    request = self._continued(request, request_file.read())
                else:
                    say(f"{self.path} of an interrupted run is replaced; --resume would have continued it")
            try:
                with self._begin(resume) as file:
                    # Not before: until then, `path` may have the ticks of another request.
                    request_file.truncate(0)
                    request_file.write(request.to_json())
                    request_file.flush()
                    yield file, request
                self._move_into_place()
            finally:
                if not self.path.exists():
                    self._request_path.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[IO[str]]:
        try:
            file = open(self._request_path, "a+", encoding="utf-8", opener=self._opener)  # noqa: SIM115
        except OSError as error:
            error.filename = str(self.target)
            raise
        with file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(f"--output: another process is writing {self.path}") from None
            file.seek(0)
            yield file

    def _continued(self, request: Request, saved: str) -> Request:
        """Return the request of the earlier run, which must be the same as typed."""
        try:
            earlier = Request.from_json(saved)
        except (ValueError, TypeError, KeyError):
            raise ConfigurationError(
                f"--resume: {self._request_path} doesn't say what {self.path} holds; delete both, or leave out --resume"
            ) from None
        for option, value in request.typed.items():
            if earlier.typed[option] != value:
                raise ConfigurationError(
                    f"--resume: {self.path} was begun with {option} {earlier.typed[option] or 'left out'}, not "
                    f"{value or 'left out'}; use the same options, or leave out --resume to start over"
                )
        return earlier

    @contextlib.contextmanager
    def _begin(self, resume: bool) -> Iterator[IO[str]]:
        """Write a new file at `path`. The old one stays until all that is kept of it has been copied."""
        new = _beside(self.target, ".part.new")
        ready = False
        try:
            with open(new, "wb", opener=self._opener) as raw:
                if self._mode is not None:
                    os.chmod(new, self._mode)
                with encode(raw, self._packed) as file:
                    file.write(self._format.header)
                    if resume and self.path.exists():
                        self._copy_kept(file)
                    # Not after `replace`: Ctrl-C may come in between.
                    ready = True
                    os.replace(new, self.path)
                    yield file
                raw.flush()
                os.fsync(raw.fileno())
        except BaseException:
            if not ready or new.exists():
                new.unlink(missing_ok=True)
            elif next(self._kept_ticks(), None) is None:
                self.path.unlink()
            raise

    def _copy_kept(self, file: IO[str]) -> None:
        """Copy the ticks of the earlier run, except the last ones of equal time: there may have been more of them."""
        waiting: list[str] = []
        for time, line in self._kept_ticks():
            if time != self.resume_at:
                file.writelines(waiting)
                self.kept += len(waiting)
                waiting, self.resume_at = [], time
            waiting.append(line)

    def _kept_ticks(self) -> Iterator[tuple[datetime, str]]:
        """Yield the time and the line of each tick, up to the first line that was damaged."""
        with open(self.path, "rb") as raw:
            lines = decode_lines(raw, self._packed)
            if self._format.header:
                next(lines, None)
            with contextlib.suppress(ValueError, TypeError, LookupError):
                for line in lines:
                    yield self._format.time_of(line), line

    def _move_into_place(self) -> None:
        try:
            os.replace(self.path, self.target)
        except OSError:
            # A bind-mounted file, for one, can be written but not replaced.
            shutil.copyfile(self.path, self.target)
            with open(self.target, "rb+") as copy:
                os.fsync(copy.fileno())
            self.path.unlink()


def _beside(target: Path, suffix: str) -> Path:
    name = target.name
    if len(os.fsencode(name + ".part.json")) > _MAX_NAME:
        name = f".finx-streamer-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return target.with_name(name + suffix)
