"""A key that needs escaping everywhere, and a check that no text contains it in any spelling."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

#: Needs escaping in a URL, in JSON, in Python source and in HTML.
KEY = 'S3cr3t/k+y%41=&"q"\\\'<z>'
#: A part of the key that no escaping changes, in lower case.
MARK = "s3cr3t"


def give_key() -> str:
    """The key, as a callable."""
    return KEY


def spellings(key: str) -> set[str]:
    """The key as text, in URLs, in JSON and in Python source, and each of those as a Python string."""
    once = {key, quote(key), quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1], repr(key)[1:-1]}
    once |= {json.dumps(key).replace("/", "\\/")[1:-1], quote(key, safe="").lower()}
    return once | {repr(text)[1:-1] for text in once}


def assert_clean(text: str, where: str) -> None:
    """Fail if the text contains the key, or a recognizable part of it."""
    for spelling in spellings(KEY):
        assert spelling.lower() not in text.lower(), f"{where}: {text[:3000]}"
    assert MARK not in text.lower(), f"{where}: {text[:3000]}"
