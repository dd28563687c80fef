"""Websocket frames in a buffer: the plain ones read at once, the others checked before the library reads them.

Nearly every frame of a stream is a whole text message, unmasked and without reserved bits. `text_frames` takes a run of
those out of a buffer in one tight loop. `check_next` looks at the header of whatever comes next and refuses what RFC
6455 forbids, or what is too large, before a byte of it is stored; the rest is the library's, so that protocol behaviour
stays the library's. `Fragments` puts a fragmented message together in time that is linear in its bytes.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

from ..errors import ProtocolError

#: A first byte that says: final fragment, no reserved bits, text.
_WHOLE_TEXT = 0x81
_FIN, _RESERVED, _OPCODE, _MASK, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_KNOWN_OPCODES = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_CONTROL = 0x8
#: The payload of a plain text frame has no more bytes.
LONGEST_QUICK = 65_535
#: How many fragments one message may have; an empty one costs the sender two bytes, and us a hundred.
MAX_FRAGMENTS = 100_000


class FrameError(Exception):
    """The peer broke the protocol; `code` is what to close with."""

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.code = code

    def error(self) -> ProtocolError:
        """The typed error for the user."""
        return ProtocolError(f"the server broke the websocket protocol: {self}")


def too_large(bound: int) -> FrameError:
    """The fault of a message that has more bytes than it may."""
    return FrameError(f"a message of over {bound} bytes", 1009)


def text_frames(buffer: bytes, at: int, limit: int) -> tuple[list[bytes], int]:
    """The payloads of at most `limit` plain text frames that lie complete in `buffer` from `at` on, and where they end.

    Stops at the first frame that is incomplete, or anything but plain.
    """
    payloads: list[bytes] = []
    append = payloads.append
    size = len(buffer)
    try:
        for _ in repeat(None, limit):
            if buffer[at] != _WHOLE_TEXT:
                break
            length = buffer[at + 1]
            if length == 126:
                start = at + 4
                end = start + (buffer[at + 2] << 8 | buffer[at + 3])
            elif length < 126:
                start = at + 2
                end = start + length
            else:
                break
            if end > size:
                break
            append(buffer[start:end])
            at = end
    except IndexError:
        pass  # the buffer ends within a header
    return payloads, at


def check_next(buffer: bytes, at: int, begun: int | None, max_message: int) -> int:
    """The size in bytes, header included, of the frame at `at`, which is for the library to read; 0: wait for more.

    `begun`: how many bytes a fragmented message has so far; None where none has begun. Raises `FrameError`.
    """
    ahead = len(buffer) - at
    if ahead < 2:
        return 0
    first, second = buffer[at], buffer[at + 1]
    opcode, length = first & _OPCODE, second & _LENGTH
    if first & _RESERVED:
        raise FrameError("a reserved bit is set")
    if opcode not in _KNOWN_OPCODES:
        raise FrameError(f"unknown opcode {opcode:#x}")
    if second & _MASK:
        raise FrameError("a masked frame from a server")
    if opcode >= _CONTROL:
        if not first & _FIN:
            raise FrameError("a fragmented control frame")
        if length > 125:
            raise FrameError("a control frame of over 125 bytes")
    elif (opcode == 0) is (begun is None):
        raise FrameError("a new message within a fragmented one" if opcode else "a continuation of nothing")
    header = 2 + {126: 2, 127: 8}.get(length, 0)
    if ahead < header:
        return 0
    if header > 2:
        length = int.from_bytes(buffer[at + 2 : at + header], "big")
    if length + (begun or 0) > max_message and opcode < _CONTROL:
        raise too_large(max_message)
    # A plain text frame of modest size is not given to the library in pieces: its rest is awaited.
    return 0 if first == _WHOLE_TEXT and header < 10 and ahead < header + length else header + length


class Fragments:
    """The library's `continuous_frame`, with bounds. The library's own appends to bytes: that takes quadratic time."""

    def __init__(self) -> None:
        self._opcode = 0
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def begun(self) -> int | None:
        """The bytes of the message that has begun and is not complete; None where there is none."""
        return self._size if self._parts else None

    def validate(self, frame: Any) -> None:
        """`check_next` has done so."""

    def add(self, frame: Any) -> None:
        if not self._parts:
            self._opcode = frame.opcode
        self._parts.append(frame.data)
        self._size += len(frame.data)
        if len(self._parts) > MAX_FRAGMENTS:
            raise FrameError(f"a message of over {MAX_FRAGMENTS} fragments", 1009)

    def is_fire(self, frame: Any) -> bool:
        return bool(frame.fin)

    def extract(self, frame: Any) -> tuple[int, Any]:
        # The library hands on the opcode of the last fragment, which says nothing.
        frame.data, frame.opcode = b"".join(self._parts), self._opcode
        self._parts, self._size = [], 0
        return self._opcode, frame
