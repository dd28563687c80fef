"""Lines of text in a file, as UTF-8 or compressed with gzip."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, cast


@contextlib.contextmanager
def encode(raw: IO[bytes], packed: bool) -> Iterator[IO[str]]:
    """Encode text as UTF-8, and compress it if `packed`. `raw` stays open."""
    target = gzip.GzipFile("", "wb", 6, raw) if packed else contextlib.nullcontext(raw)
    with target as binary:
        file = io.TextIOWrapper(cast(io.BufferedWriter, binary), encoding="utf-8", newline="")
        try:
            yield file
        finally:
            file.detach()  # writes the rest


def decode_lines(raw: IO[bytes], packed: bool) -> Iterator[str]:
    """Yield the complete lines up to where the file was cut off, if it was."""
    source = gzip.GzipFile("", "rb", fileobj=raw) if packed else contextlib.nullcontext(raw)
    with contextlib.suppress(EOFError, zlib.error, UnicodeDecodeError), source as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            yield line.decode()
