"""WebSocket frames in a read buffer, without I/O.

`read_text_frames` takes plain text frames out of the buffer, which is nearly all of them. `frame_size` checks the
header of any other frame before `websocket-client` reads it, and `Fragments` joins fragmented messages in linear time.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

import attrs

from ..errors import ProtocolError

#: The first byte of a final text fragment without reserved bits.
_WHOLE_TEXT = 0x81
_FIN, _RESERVED, _OPCODE, _MASK, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_KNOWN_OPCODES = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})
_CONTROL = 0x8
_PROTOCOL_ERROR, _TOO_BIG = 1002, 1009
#: The largest payload of a plain text frame, in bytes: its length fits in two bytes.
MAX_PLAIN_PAYLOAD = 65_535
#: The most fragments a message may have. An empty one costs the sender two bytes, and this process a hundred.
MAX_FRAGMENTS = 100_000


@attrs.frozen
class Binary:
    """The payload of a binary message. FinX sends only text."""

    payload: bytes


class FrameError(Exception):
    """The peer broke the protocol. `code` is the close code to answer with."""

    def __init__(self, reason: str, code: int = _PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code

    def to_protocol_error(self) -> ProtocolError:
        """Return the public error for this violation."""
        return ProtocolError(f"the server broke the websocket protocol: {self}")


def message_too_large(max_message: int) -> FrameError:
    """Return the error for a message of more than `max_message` bytes."""
    return FrameError(f"a message of over {max_message} bytes", _TOO_BIG)


def read_text_frames(buffer: bytes, at: int, limit: int) -> tuple[list[bytes], int]:
    """Return the payloads of up to `limit` plain text frames from `at` on, and the offset behind the last one.

    Stops at the first frame that is incomplete or not plain: fragmented, not text, masked, or over 65,535 bytes.
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


def frame_size(buffer: bytes, at: int, pending_size: int | None, max_message: int) -> int:
    """Check the frame at `at` and return its size in bytes, header included. 0 means: wait for more bytes.

    `pending_size` is the size of the unfinished fragmented message so far, or None without one. Raises `FrameError`.
    """
    available = len(buffer) - at
    if available < 2:
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
    elif (opcode == 0) is (pending_size is None):
        raise FrameError("a new message within a fragmented one" if opcode else "a continuation without a message")
    header = 2 + {126: 2, 127: 8}.get(length, 0)
    if available < header:
        return 0
    if header > 2:
        length = int.from_bytes(buffer[at + 2 : at + header], "big")
    if length + (pending_size or 0) > max_message and opcode < _CONTROL:
        raise message_too_large(max_message)
    # Wait for the rest of a plain text frame: `read_text_frames` is faster than the library.
    return 0 if first == _WHOLE_TEXT and header < 10 and available < header + length else header + length


class Fragments:
    """A bounded replacement for the library's `continuous_frame`, which takes quadratic time."""

    __slots__ = ("_opcode", "_parts", "_size")

    def __init__(self) -> None:
        self._opcode = 0
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def pending_size(self) -> int | None:
        """The size in bytes of the unfinished message so far, or None without one."""
        return self._size if self._parts else None

    def validate(self, frame: Any) -> None:
        """Do nothing: `frame_size` has checked the frame."""

    def add(self, frame: Any) -> None:
        if not self._parts:
            self._opcode = frame.opcode
        self._parts.append(frame.data)
        self._size += len(frame.data)
        if len(self._parts) > MAX_FRAGMENTS:
            raise FrameError(f"a message of over {MAX_FRAGMENTS} fragments", _TOO_BIG)

    def is_fire(self, frame: Any) -> bool:
        return bool(frame.fin)

    def extract(self, frame: Any) -> tuple[int, Any]:
        # The last fragment's own opcode is 0; the message's opcode is the first fragment's.
        frame.data, frame.opcode = b"".join(self._parts), self._opcode
        self._parts, self._size = [], 0
        return self._opcode, frame
