"""How many examples a property test tries: three fifths of them in the thorough profile, a fifth otherwise."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

#: Tests run on busy machines, so no profile has a deadline per example.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=60, deadline=None)


def examples(count: int, **options: Any) -> settings:
    """Settings for three fifths of `count` examples in the thorough profile, and for a fifth of them otherwise."""
    return settings(max_examples=max(1, count * settings().max_examples // 100), **options)
