"""How a server writes its ticks: the two documented forms, and the regular expression for frames of one form.

The ticks of a server differ only in frame length, pair, time, exchange and price. So one regular expression does the
framing, the JSON and the checks. It matches only what the thorough decoder would read in the same way: no escapes and
only ASCII, except in the pair.
"""

from __future__ import annotations

import re

import attrs

#: The ID in the log of a server that can resume a stream.
ID = "[1-9][0-9]{0,17}"
#: With this point and this Z, the time parser accepts only digits in between. A price of 30 characters is finite.
TIME, EXCHANGE, _PRICE = r"[0-9:]{8}\.[0-9]*+Z", r"[ !#-[\]-~]*+", "[0-9.]{1,30}+"
#: The header of a text frame of up to 255 bytes, without the last byte, which is the length.
HEADER = r"\x81(?:~\0(?=[~-\xff])|(?=[\0-}]))"
#: The longest message in such a frame.
LONGEST = 255
#: The sizes of a header, and the shortest time and price.
SHORT_HEADER, _LONG_HEADER = 2, 4
SHORTEST_VALUES = len("00:00:00.Z") + len("0")

_PAIR, _DATE = r'"(?:[^"\\]|\\.)*+"', "(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
_REST = (
    rf'{TIME}"(?P=comma)"exchange"(?P=colon)"{EXCHANGE}"(?P=comma)"price"(?P=colon)"{_PRICE}"'
    rf'%s(?:(?P=comma)"id"(?P=colon)(?P<id>{ID}))?\}}'
)
#: Source: S.
_ENVELOPED = (
    r'(?P<beginning>\{"results"(?P<colon>: ?)"streaming"(?P<comma>, ?)"resultData"(?P=colon)'
    rf'\{{"pair"(?P=colon){_PAIR}(?P=comma)"date"(?P=colon)"{_DATE}"(?P=comma)"time"(?P=colon)"){_REST % "}"}'
)
#: Source: D.
_FLAT = (
    rf'(?P<beginning>\{{"pair"(?P<colon>: ?){_PAIR}(?P<comma>, ?)"unixDate"(?P=colon))'
    rf'(?P<unix>0|[1-9][0-9]*+)(?P=comma)"UTCDate"(?P=colon)"{_DATE}T{_REST % ""}'
)
_FORMS = [re.compile(form.encode("latin-1"), re.DOTALL).fullmatch for form in (_ENVELOPED, _FLAT)]


@attrs.frozen
class TickForm:
    """How the ticks of one day are written. The pair is part of the beginning."""

    #: The part of the message before what differs.
    beginning: str
    date: str
    colon: str
    comma: str
    #: The number of digits of `unixDate`; 0 for the form with an envelope.
    unix_digits: int
    #: The number of digits of the ID; 0 without one. IDs count up, so it hardly ever changes.
    id_digits: int

    @classmethod
    def of(cls, payload: bytes) -> TickForm | None:
        """Return the form of a tick's message. None if the form isn't documented, or the message is too long."""
        for fullmatch in _FORMS if len(payload) <= LONGEST else ():
            if found := fullmatch(payload):
                groups = {name: value.decode("latin-1") for name, value in found.groupdict(b"").items()}
                beginning, date, colon, comma = (groups[name] for name in ("beginning", "date", "colon", "comma"))
                return cls(beginning, date, colon, comma, len(groups.get("unix", "")), len(groups["id"]))
        return None

    def after_beginning(self, number: str) -> tuple[str, int]:
        """Return the expression for what follows the beginning, and its size in characters without the values.

        It captures time, exchange and price. `number` is the expression for the ID, if there is one.
        """
        colon, comma = self.colon, self.comma
        unix = f'{comma}"UTCDate"{colon}"{self.date}T' if self.unix_digits else ""
        to_exchange, to_price = f'"{comma}"exchange"{colon}"', f'"{comma}"price"{colon}"'
        end = '"' if self.unix_digits else '"}'
        if self.id_digits:
            end += f'{comma}"id"{colon}'
        return (
            f"{digits(self.unix_digits)}{unix}({TIME}){to_exchange}({EXCHANGE}){to_price}({_PRICE}){end}{number}}}",
            self.unix_digits + len(unix + to_exchange + to_price + end + "}"),
        )


def read_number(text: str | None) -> int | None:
    """Return the ID that `ID` has matched. None if a message has none."""
    return int(text) if text else None


def digits(count: int) -> str:
    """Return the expression for an integer with this number of digits. JSON has no leading zeros."""
    return f"[1-9][0-9]{{{count - 1}}}" if count > 1 else "[0-9]" * count


def frame_size(size: int) -> int:
    """Return the size of a frame whose message has `size` bytes."""
    return size + (SHORT_HEADER if size < 126 else _LONG_HEADER)
