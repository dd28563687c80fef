"""When to connect again, after how long, and when not to."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finx_streamer.config.reconnect import MAX_RETRY_AFTER, ReconnectPolicy, is_fatal, retry_delay
from finx_streamer.errors import AuthenticationError, ConfigurationError, ConnectionFailed

FATAL_STATUS = [200, 204, 300, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 410, 413, 418, 426, 451]
TRANSIENT_STATUS = [408, 425, 429, 500, 501, 502, 503, 504, 507, 511, 520, 599]
FATAL_CODES = [1008]
TRANSIENT_CODES = [
    *(code for code in range(1000, 1016) if code != 1008),
    *(3000, 3008, 3999),
    *(4000, 4001, 4008, 4401, 4999),
]


@pytest.mark.parametrize("status", FATAL_STATUS)
def test_a_final_status_is_fatal(status: int) -> None:
    """With a bad key, an unknown stream or a redirect, another attempt gets the same answer."""
    assert is_fatal(ConnectionFailed("refused", status=status))


@pytest.mark.parametrize("status", TRANSIENT_STATUS)
def test_a_temporary_status_is_retried(status: int) -> None:
    """Timeouts, rate limits and server errors are temporary."""
    assert not is_fatal(ConnectionFailed("refused", status=status))


@pytest.mark.parametrize("code", FATAL_CODES)
def test_close_code_1008_is_fatal(code: int) -> None:
    """It means that the key was revoked."""
    assert is_fatal(ConnectionFailed("closed", close_code=code))


@pytest.mark.parametrize("code", TRANSIENT_CODES)
def test_other_close_codes_are_retried(code: int) -> None:
    """Normal closes, restarts, faults and unassigned codes are temporary."""
    assert not is_fatal(ConnectionFailed("closed", close_code=code))


def test_a_loss_without_a_code_is_retried() -> None:
    """Refused, reset and unresolved connections have neither a status nor a code."""
    assert not is_fatal(ConnectionFailed("connection reset by peer"))


def test_a_permanent_error_is_fatal() -> None:
    """Examples are a refused certificate and a missing key."""
    assert is_fatal(ConnectionFailed("certificate refused", permanent=True))
    assert is_fatal(AuthenticationError("no API key", permanent=True))
    assert is_fatal(ConnectionFailed("unavailable", status=503, permanent=True))


# Delays.


def test_delays_without_jitter_grow_to_the_maximum() -> None:
    """They start with 0.5 s, double each time, and stay at 30 s."""
    delays = ReconnectPolicy(jitter=False).delays()
    assert list(itertools.islice(delays, 9)) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@given(
    st.floats(0, 1e308),
    st.floats(1, 1e308),
    st.floats(0, 1e308),
    st.integers(0, 2**32),
)
def test_a_delay_with_jitter_is_at_most_the_one_without(
    initial: float, factor: float, maximum: float, seed: int
) -> None:
    """It is finite and not negative."""
    drawn = ReconnectPolicy(initial, factor, maximum).delays(random.Random(seed))
    ceilings = ReconnectPolicy(initial, factor, maximum, jitter=False).delays()
    for delay, ceiling in itertools.islice(zip(drawn, ceilings, strict=False), 50):
        assert 0.0 <= delay <= ceiling <= maximum
        assert math.isfinite(delay)


def test_full_jitter_uses_the_whole_range() -> None:
    """Delays are spread evenly from 0; they aren't a fixed wait plus noise."""
    policy = ReconnectPolicy(initial=1.0, maximum=1.0)
    drawn = list(itertools.islice(policy.delays(random.Random(7)), 4_000))
    quarters = [sum(low <= delay < low + 0.25 for delay in drawn) for low in (0.0, 0.25, 0.5, 0.75)]
    assert all(900 < count < 1_100 for count in quarters)


def test_two_clients_have_different_delays() -> None:
    """Each has its own random numbers, so that they don't all reconnect at once."""
    policy = ReconnectPolicy()
    first, second = (list(itertools.islice(policy.delays(), 5)) for _ in range(2))
    assert first != second


def test_delays_stay_at_the_maximum_in_a_long_outage() -> None:
    """They don't overflow after ten thousand attempts."""
    delays = ReconnectPolicy(factor=10.0, jitter=False).delays()
    assert next(itertools.islice(delays, 10_000, None)) == 30.0


# Retry-After.


@pytest.mark.parametrize(
    ("retry_after", "drawn", "delay"),
    [
        (None, 3.0, 3.0),
        (7.0, 3.0, 7.0),
        (2.0, 3.0, 2.0),
        (120.0, 3.0, 120.0),
        (1e9, 3.0, MAX_RETRY_AFTER),
        (0.0, 3.0, 3.0),
    ],
)
def test_retry_after_takes_precedence(retry_after: float | None, drawn: float, delay: float) -> None:
    """It is respected up to a day. A value of 0 doesn't count, because it would cause a storm of reconnects."""
    assert retry_delay(ConnectionFailed("later", status=503, retry_after=retry_after), drawn) == delay


# Arguments.


@pytest.mark.parametrize("name", ["initial", "factor", "maximum", "reset_after"])
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf, 10**400, "1", None, True])
def test_refuses_a_wrong_number(name: str, value: object) -> None:
    """The error names the argument and what was expected."""
    with pytest.raises(ConfigurationError, match=f"^{name}: .* is not allowed; expected a number >= [01]$"):
        ReconnectPolicy(**{name: value})  # type: ignore[arg-type]


def test_refuses_a_shrinking_factor() -> None:
    """The waits must not become shorter."""
    with pytest.raises(ConfigurationError, match=r"^factor: 0\.5 "):
        ReconnectPolicy(factor=0.5)


def test_jitter_is_a_bool() -> None:
    """The text "no" from a configuration file would count as true."""
    with pytest.raises(ConfigurationError, match=r"^jitter: 'no' is not allowed"):
        ReconnectPolicy(jitter="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_refuses_a_wrong_number_of_attempts(value: object) -> None:
    """The error names the argument, the value and what was expected."""
    with pytest.raises(ConfigurationError, match=r"^attempts: ") as caught:
        ReconnectPolicy(attempts=value)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)
    assert "expected an int >= 1, or None" in str(caught.value)


@pytest.mark.parametrize("policy", [ReconnectPolicy(0, 1, 0, reset_after=0), ReconnectPolicy(attempts=1)])
def test_accepts_the_limits(policy: ReconnectPolicy) -> None:
    """Waits of 0, a factor of 1 and a single attempt are allowed."""
    assert next(policy.delays()) >= 0.0


def test_a_policy_is_immutable() -> None:
    """Many listeners may share one."""
    with pytest.raises(AttributeError):
        ReconnectPolicy().initial = 1.0  # type: ignore[misc]


def test_accepts_numbers_of_numpy() -> None:
    """The delays are Python's floats."""
    policy = ReconnectPolicy(np.float32(1.5), np.int64(2), np.int8(5), jitter=False, attempts=np.int16(3))
    assert policy == ReconnectPolicy(1.5, 2.0, 5.0, jitter=False, attempts=3)
    assert [repr(delay) for delay in itertools.islice(policy.delays(), 3)] == ["1.5", "3.0", "5.0"]


def test_each_server_of_a_round_has_a_wait_of_its_own() -> None:
    """The limit grows after each round. The waits within a round are drawn one by one."""
    steady = ReconnectPolicy(jitter=False).delays(servers=3)
    assert list(itertools.islice(steady, 7)) == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0]
    drawn = list(itertools.islice(ReconnectPolicy(factor=1.0).delays(random.Random(7), servers=3), 999))
    assert len(set(drawn)) == 999
    assert 0.2 < sum(drawn) / 999 < 0.3
