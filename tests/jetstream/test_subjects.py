"""The names of subjects, and which of them a stream covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer import ConfigurationError, Pair
from finx_streamer.jetstream.stream import covers
from finx_streamer.jetstream.subjects import ALL, Subject, greeks_subject, pair_subjects, parse_subject, tick_subject

#: What an exchange may be called: any text.
EXCHANGES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@st.composite
def pairs(draw: st.DrawFn) -> str:
    """Any pair that is allowed."""
    side = st.text(st.characters(exclude_categories=["Cs", "Ll", "Lt"]), min_size=1, max_size=32)
    text = f"{draw(side)}:{draw(side)}"
    try:
        return str(Pair.parse(text))
    except ConfigurationError:
        return draw(st.sampled_from(["BTC:USDC", "USDC.E:$TRUMP", "币安人生:USDT", "A*B:C>D", "%2E:~-_"]))


def check_tokens(subject: str, count: int) -> None:
    """NATS accepts it, and it has no wildcards."""
    tokens = subject.split(".")
    assert len(tokens) == count
    assert all(tokens)
    assert subject.isascii()
    assert subject.isprintable()
    assert not set(subject) & set(" *>")


@given(EXCHANGES, pairs())
def test_a_ticks_subject_can_be_read(exchange: str, pair: str) -> None:
    subject = tick_subject(exchange, pair)
    check_tokens(subject, 6)
    assert parse_subject(subject) == Subject("ticks", exchange, pair)
    assert covers(pair_subjects(pair), subject)
    assert covers(ALL, subject)


@given(EXCHANGES, EXCHANGES)
def test_a_contracts_subject_can_be_read(exchange: str, instrument: str) -> None:
    subject = greeks_subject(exchange, instrument)
    check_tokens(subject, 5)
    assert parse_subject(subject) == Subject("greeks", exchange, instrument)


@pytest.mark.parametrize("subject", ["", "finx.v1.ticks.A.B", "finx.v1.x.A.B.C", "finx.v1", "a.b"])
def test_other_programs_subjects_are_recognised(subject: str) -> None:
    assert parse_subject(subject) is None


@pytest.mark.parametrize(
    ("pattern", "is_covered"),
    [
        (">", True),
        ("finx.>", True),
        ("*.v1.>", True),
        ("finx.v1.>", True),
        ("finx.v1.*", False),
        ("finx.v1.ticks.>", False),
        ("finx.v2.>", False),
        ("finx.v1", False),
    ],
)
def test_a_pattern_covers_a_filter(pattern: str, is_covered: bool) -> None:
    assert covers(pattern, "finx.v1.>") is is_covered
