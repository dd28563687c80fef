"""Prices, Greeks and implied volatilities: against books, recordings, mpmath, QuantLib and themselves."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
import warnings
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from finx_streamer import greeks
from finx_streamer.errors import ConfigurationError
from finx_streamer.greeks import OptionValue, black76, black_scholes, implied_volatility

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "greeks" / "deribit_ticker.jsonl"
#: FinX sends five decimals.
HALF_A_DIGIT = 0.5e-5
DAY = 1 / 365
KINDS = ("call", "put")

#: The vendor's own example.
BY_THE_VENDOR = {
    "instrument_name": "BTC-26AUG22-20000-C",
    "timestamp": 1659760300724,
    "underlying_price": 23227.53,
    "mark_iv": 72.12,
    "mark_price": 0.1553,
    "greeks": {"delta": 0.83341, "gamma": 0.00006, "vega": 13.62974, "theta": -24.39797, "rho": 8.69414},
}
#: Two tickers of Deribit from the last day of a contract: one far in the money, one out of it.
ON_THE_LAST_DAY = [
    {
        "instrument_name": "BTC-12MAR25-65000-C",
        "timestamp": 1741731610450,
        "underlying_price": 83140.6237,
        "mark_iv": 159.47,
        "mark_price": 0.2182,
        "greeks": {"delta": 1.0, "gamma": 0.0, "vega": 0.0002, "theta": -0.01591, "rho": 0.71727},
    },
    {
        "instrument_name": "BTC-10SEP25-106000-P",
        "timestamp": 1757433676689,
        "underlying_price": 110714.7602,
        "mark_iv": 49.22,
        "mark_price": 0.0001,
        "greeks": {"delta": -0.01874, "gamma": 0.00002, "vega": 2.16672, "theta": -15.99927, "rho": -0.03815},
    },
]


def recorded() -> list[dict[str, Any]]:
    """The recorded tickers, if they are there."""
    if not RECORDINGS.exists():
        return []
    return [json.loads(line)["params"]["data"] for line in RECORDINGS.read_text(encoding="utf-8").splitlines()]


def contract(ticker: dict[str, Any]) -> tuple[float, float, float, str]:
    """The forward, strike, years and kind of a ticker."""
    _, expiry, strike, side = ticker["instrument_name"].split("-")
    end = datetime.strptime(f"{expiry} 08 +0000", "%d%b%y %H %z")
    left = end - datetime.fromtimestamp(ticker["timestamp"] / 1000, UTC)
    kind = {"C": "call", "P": "put"}[side]
    return ticker["underlying_price"], float(strike), left / timedelta(days=365), kind


def mpmath_value(
    forward: float, strike: float, years: float, volatility: float, kind: str, rate: float = 0.0
) -> tuple[Any, Any]:
    """The price and the delta with 60 digits."""
    mpmath = pytest.importorskip("mpmath", reason="needs mpmath: pip install mpmath")
    with mpmath.workdps(60):
        f, k, t, v, r = map(mpmath.mpf, (forward, strike, years, volatility, rate))
        sign = 1 if kind == "call" else -1
        deviation = v * mpmath.sqrt(t)
        d1 = mpmath.log(f / k) / deviation + deviation / 2
        n1, n2 = (mpmath.erfc(-sign * d / mpmath.sqrt(2)) / 2 for d in (d1, d1 - deviation))
        discount = mpmath.exp(-r * t)
        return discount * sign * (f * n1 - k * n2), discount * sign * n1


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats within bounds, spread over their orders of magnitude."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


kinds = st.sampled_from(KINDS)
rates = st.floats(-0.3, 0.3)


@st.composite
def options(draw: st.DrawFn, most: float = 3.0) -> tuple[float, float, float, float, str]:
    """The forward, strike, years, volatility and kind of options within a few standard deviations of the strike."""
    forward, years, volatility = draw(numbers(0.1, 1e5)), draw(numbers(0.003, 1.0)), draw(numbers(0.05, 1.5))
    distance = draw(st.floats(-most, most))
    return forward, forward * math.exp(distance * volatility * math.sqrt(years)), years, volatility, draw(kinds)


# --- Books -------------------------------------------------------------------------------------------------------


def test_hulls_example() -> None:
    """The example that runs through Hull's chapter on Greeks: a call on a stock, 20 weeks before it expires."""
    found = black_scholes(49, 50, 0.3846, 0.2, "call", 0.05)
    assert found == pytest.approx((2.4005, 0.5216, 0.0655, 0.12105, -0.01180, 0.08907), abs=5e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("years", "volatility", "calls", "puts"),
    [
        (0.1, 0.15, (0.0205, 1.8734, 9.9413), (9.9210, 1.8734, 0.0408)),
        (0.1, 0.25, (0.3150, 3.1217, 10.3556), (10.2155, 3.1217, 0.4551)),
        (0.1, 0.35, (0.9474, 4.3693, 11.1381), (10.8479, 4.3693, 1.2376)),
        (0.5, 0.15, (0.8069, 4.0232, 10.5769), (10.3192, 4.0232, 1.0646)),
        (0.5, 0.25, (2.7026, 6.6997, 12.7857), (12.2149, 6.6997, 3.2734)),
        (0.5, 0.35, (4.9329, 9.3679, 15.3086), (14.4452, 9.3679, 5.7963)),
    ],
)
def test_haugs_table_of_black76(
    years: float, volatility: float, calls: tuple[float, ...], puts: tuple[float, ...], kind: str
) -> None:
    """Haug's table of options on futures: strike 100, interest 10 %, futures at 90, 100 and 110."""
    found = [black76(future, 100, years, volatility, kind, 0.1).price for future in (90, 100, 110)]
    assert found == pytest.approx(calls if kind == "call" else puts, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "price"),
    [
        ((60, 65, 0.25, 0.30, "call", 0.08), 2.1334),
        ((100, 95, 0.5, 0.20, "put", 0.10, 0.05), 2.4648),
        ((19, 19, 0.75, 0.28, "call", 0.10, 0.10), 1.7011),
        ((19, 19, 0.75, 0.28, "put", 0.10, 0.10), 1.7011),
        ((75, 70, 0.5, 0.35, "put", 0.10, 0.05), 4.0870),
        ((1.56, 1.60, 0.5, 0.12, "call", 0.06, 0.08), 0.0291),
    ],
)
def test_haugs_prices(arguments: tuple[Any, ...], price: float) -> None:
    """Haug's examples of a stock, of stock indices, of a future and of a currency."""
    assert black_scholes(*arguments).price == pytest.approx(price, abs=1e-4)


def test_haugs_greeks() -> None:
    """Haug's examples of each Greek. His vega, theta and rho are per 100 %, per year and per 100 %."""
    assert black76(105, 100, 0.5, 0.36, "call", 0.1).delta == pytest.approx(0.5946, abs=5e-5)
    assert black76(105, 100, 0.5, 0.36, "put", 0.1).delta == pytest.approx(-0.3566, abs=5e-5)
    assert black_scholes(55, 60, 0.75, 0.3, "call", 0.1).gamma == pytest.approx(0.0278, abs=5e-5)
    assert black_scholes(55, 60, 0.75, 0.3, "put", 0.105, 0.0355).vega * 100 == pytest.approx(18.5027, abs=5e-5)
    assert black_scholes(430, 405, 1 / 12, 0.2, "put", 0.07, 0.05).theta * 365 == pytest.approx(-31.1924, abs=5e-5)
    assert black_scholes(72, 75, 1, 0.19, "call", 0.09).rho * 100 == pytest.approx(38.7325, abs=5e-5)


# --- Tickers -----------------------------------------------------------------------------------------------------


def check_ticker(ticker: dict[str, Any]) -> None:
    """Compare a ticker with our values, as exactly as its digits allow."""
    forward, strike, years, kind = contract(ticker)
    found = black76(forward, strike, years, ticker["mark_iv"] / 100, kind)
    sent = dict(ticker["greeks"])
    if years < DAY:
        # Their forward has moved since they computed theta, and theta changes by 6 % per $1 there.
        assert found.theta == pytest.approx(sent.pop("theta"), rel=0.015)
    assert {name: getattr(found, name) for name in sent} == {
        name: pytest.approx(value, rel=0, abs=2e-4 * abs(value) + HALF_A_DIGIT) for name, value in sent.items()
    }


def test_the_vendors_example() -> None:
    """Each Greek of the vendor's example agrees within 0.02 % and its last digit."""
    check_ticker(BY_THE_VENDOR)


@pytest.mark.parametrize("ticker", ON_THE_LAST_DAY, ids=lambda ticker: ticker["instrument_name"])
def test_theta_on_the_last_day(ticker: dict[str, Any]) -> None:
    """Theta covers the time left, but not more than the price. Both rules are needed: each explains one ticker."""
    forward, strike, years, kind = contract(ticker)
    found = black76(forward, strike, years, ticker["mark_iv"] / 100, kind)
    assert found.theta == pytest.approx(ticker["greeks"]["theta"], rel=0.003)
    assert found.delta == pytest.approx(ticker["greeks"]["delta"], abs=2e-5)
    assert found.vega == pytest.approx(ticker["greeks"]["vega"], rel=0.001, abs=HALF_A_DIGIT)
    assert (found.theta == -found.price) is (kind == "put")


@pytest.mark.skipif(not RECORDINGS.exists(), reason=f"needs the recorded tickers in {RECORDINGS}")
def test_recorded_tickers() -> None:
    """Each Greek of 60 recorded tickers agrees within 0.02 % and its last digit."""
    tickers = recorded()
    assert len(tickers) == 60
    for ticker in tickers:
        check_ticker(ticker)


@pytest.mark.skipif(not RECORDINGS.exists(), reason=f"needs the recorded tickers in {RECORDINGS}")
def test_implied_volatility_of_recorded_prices() -> None:
    """The price of each recorded ticker gives its `mark_iv`, as exactly as the digits of both allow."""
    for ticker in recorded():
        forward, strike, years, kind = contract(ticker)
        price = ticker["mark_price"] * forward
        found = implied_volatility(price, forward, strike, years, kind) * 100
        vega = black76(forward, strike, years, found / 100, kind).vega
        assert found == pytest.approx(ticker["mark_iv"], abs=0.005 + (1e-6 * forward + 3e-4 * price) / vega)


# --- Relations ---------------------------------------------------------------------------------------------------


@given(options(most=30.0), rates)
def test_put_call_parity(option: tuple[float, float, float, float, str], rate: float) -> None:
    """A call minus a put with the same strike is a forward, in each Greek."""
    forward, strike, years, volatility, _ = option
    call, put = (black76(forward, strike, years, volatility, kind, rate) for kind in KINDS)
    discount = math.exp(-rate * years)
    assert call.price - put.price == pytest.approx(discount * (forward - strike), abs=1e-14 * (forward + strike))
    assert call.delta - put.delta == pytest.approx(discount, rel=1e-14)
    assert (call.gamma, call.vega) == (put.gamma, put.vega)
    assert call.rho - put.rho == pytest.approx(0.01 * discount * strike * years, rel=1e-13)


@given(options(), rates, rates)
def test_black_scholes_is_black76_on_the_forward(
    option: tuple[float, float, float, float, str], rate: float, dividend: float
) -> None:
    """Only the underlying of the delta and of the gamma differs, and theta with it."""
    forward, strike, years, volatility, kind = option
    growth = math.exp((rate - dividend) * years)
    on_forward = black76(forward, strike, years, volatility, kind, rate)
    on_spot = black_scholes(forward / growth, strike, years, volatility, kind, rate, dividend)
    scaled = on_forward._replace(delta=on_forward.delta * growth, gamma=on_forward.gamma * growth**2, theta=0.0)
    assert on_spot._replace(theta=0.0) == pytest.approx(scaled, rel=1e-9)


@given(options(), rates, rates)
def test_greeks_are_derivatives(option: tuple[float, float, float, float, str], rate: float, dividend: float) -> None:
    """Each Greek is what a small change does to the price, in FinX's units."""
    spot, strike, years, volatility, kind = option
    found = black_scholes(spot, strike, years, volatility, kind, rate, dividend)
    small = 1e-4 * min(1.0, volatility * math.sqrt(years))

    def value(up: float = 0.0, later: float = 0.0, wilder: float = 0.0, dearer: float = 0.0) -> OptionValue:
        return black_scholes(spot * (1 + up), strike, years - later, volatility + wilder, kind, rate + dearer, dividend)

    def slope(change: str, step: float, of: str = "price") -> float:
        up, down = (getattr(value(**{change: sign * step}), of) for sign in (1, -1))
        return float((up - down) / (2 * step))

    def near(expected: float, scale: float) -> Any:
        return pytest.approx(expected, rel=1e-5, abs=1e-7 * scale)

    assert found.delta == near(slope("up", small) / spot, 1.0)
    assert found.gamma == near(slope("up", small, "delta") / spot, found.gamma + 1 / spot)
    assert found.vega == near(slope("wilder", small * volatility) / 100, spot * math.sqrt(years) / 100)
    assert found.rho == near(slope("dearer", small) / 100, strike * years)
    per_year = slope("later", small * years)
    scale = spot * volatility / math.sqrt(years)
    assert found.theta == near(max(per_year * min(DAY, years), -found.price), scale)


@given(options(), rates)
def test_greeks_of_black76_are_derivatives(option: tuple[float, float, float, float, str], rate: float) -> None:
    """Delta and theta are for a moving or fixed forward. Rho is for a fixed spot price: the forward rises."""
    forward, strike, years, volatility, kind = option
    found = black76(forward, strike, years, volatility, kind, rate)
    step = 1e-4 * min(1.0, volatility * math.sqrt(years))

    def slope(of: Any) -> float:
        return float((of(step).price - of(-step).price) / (2 * step))

    delta = slope(lambda h: black76(forward * (1 + h), strike, years, volatility, kind, rate)) / forward
    assert found.delta == pytest.approx(delta, rel=1e-5, abs=1e-6)
    rho = slope(lambda h: black76(forward * math.exp(h * years), strike, years, volatility, kind, rate + h)) / 100
    assert found.rho == pytest.approx(rho, rel=1e-5, abs=1e-7 * strike * years)
    decay = slope(lambda h: black76(forward, strike, years * (1 - h), volatility, kind, rate)) / years
    expected = max(decay * min(DAY, years), -found.price)
    assert found.theta == pytest.approx(expected, rel=1e-5, abs=1e-7 * forward * volatility / math.sqrt(years))


@given(options(most=30.0), rates)
def test_prices_have_bounds(option: tuple[float, float, float, float, str], rate: float) -> None:
    """A price is at least the intrinsic value, at most the forward or strike, and rises with the volatility."""
    forward, strike, years, volatility, kind = option
    found = black76(forward, strike, years, volatility, kind, rate)
    low = black76(forward, strike, years, 0.0, kind, rate).price
    high = math.exp(-rate * years) * (forward if kind == "call" else strike)
    assert low <= found.price <= high * (1 + 1e-15)
    assert found.price <= black76(forward, strike, years, volatility * 1.01, kind, rate).price
    assert found.theta >= -found.price
    assert min(found.gamma, found.vega) >= 0.0


# --- Tails -------------------------------------------------------------------------------------------------------


@given(
    numbers(1e-3, 1e6),
    numbers(0.01, 3.0),
    st.floats(-36.0, 36.0),
    kinds,
    rates,
)
@example(100.0, 0.05, 35.0, "call", 0.0)
@example(100.0, 0.05, -35.0, "put", 0.1)
@example(100.0, 0.05, 0.0, "put", 0.1)
@example(100.0, 1e-6, 10.0, "call", 0.0)
def test_deep_tails(forward: float, deviation: float, distance: float, kind: str, rate: float) -> None:
    """Prices down to 1e-280 have digits. They lose some because two probabilities nearly cancel, but never all."""
    strike = forward * math.exp(distance * deviation)
    found = black76(forward, strike, 0.25, deviation / 0.5, kind, rate)
    price, delta = mpmath_value(forward, strike, 0.25, deviation / 0.5, kind, rate)
    lost = (1 + distance**2) * (1 + (1 + abs(distance)) / deviation)
    assume(abs(delta) > 1e-300)
    assert found.price == pytest.approx(float(price), rel=4 * sys.float_info.epsilon * lost, abs=0.0)
    assert found.delta == pytest.approx(float(delta), rel=8 * sys.float_info.epsilon * (1 + distance**2), abs=0.0)


# --- Implied volatility ------------------------------------------------------------------------------------------


def implied_or_none(price: float, *contract: Any) -> float | None:
    """The implied volatility, or None if the error says that this price has none or doesn't determine it."""
    try:
        return implied_volatility(price, *contract)
    except ConfigurationError as error:
        if re.match(r"price: .* expected (more than .*, the intrinsic|a price that determines)", str(error)):
            return None
        raise


@given(
    numbers(1e-3, 1e6),
    numbers(1e-5, 30.0),
    numbers(0.001, 10.0),
    st.floats(-38.0, 38.0),
    kinds,
    rates,
)
@example(100.0, 1.0, 0.2, 0.0, "call", 0.0)
@example(100.0, 1.0, 0.2, -9.0, "call", 0.0)
@example(100.0, 1.0, 10.0, 9.0, "put", 0.0)
@example(3.0, 1e-5, 0.001, 20.0, "call", 0.0)
def test_implied_volatility_inverts_black76(
    forward: float, years: float, volatility: float, distance: float, kind: str, rate: float
) -> None:
    """It finds the volatility to nearly the last digit that the price has, or says that there are too few."""
    deviation = volatility * math.sqrt(years)
    assume(abs(distance) * deviation < 100)
    strike = forward * math.exp(distance * deviation)
    priced = black76(forward, strike, years, volatility, kind, rate)
    last_digit = math.ulp(priced.price) + math.ulp(0.0) * (forward + strike)
    digits = last_digit / (100 * priced.vega * volatility) if priced.vega else math.inf
    lost = sys.float_info.epsilon * (2 + abs(distance) + deviation) / deviation
    found = implied_or_none(priced.price, forward, strike, years, kind, rate)
    if found is None:
        assert digits + lost > 1e-8
    else:
        assert found == pytest.approx(volatility, rel=8 * (digits + lost) + 1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_price_without_a_volatility(kind: str) -> None:
    """The error names the prices that have one."""
    forward = 100.0 if kind == "call" else 80.0
    strike = 180.0 - forward
    for price in (-1.0, 0.0, 19.9, 20.0, 100.0, 200.0):
        with pytest.raises(
            ConfigurationError, match=r"^price: .* more than 20.0, the intrinsic value, and less than 100.0"
        ):
            implied_volatility(price, forward, strike, 1.0, kind)


def test_price_that_does_not_determine_the_volatility() -> None:
    """Far in the money, the error names the option to use instead, which does."""
    call, put = (black76(100.0, 30.0, 0.1, 0.6, kind).price for kind in KINDS)
    with pytest.raises(ConfigurationError, match=r"rounding the price changes it\. Far in the money, use the put"):
        implied_volatility(call, 100.0, 30.0, 0.1, "call")
    assert implied_volatility(put, 100.0, 30.0, 0.1, "put") == pytest.approx(0.6, rel=1e-13)


def test_expired_option_has_no_implied_volatility() -> None:
    """Its price is the intrinsic value, with any volatility."""
    for years in (0.0, -1.0):
        with pytest.raises(ConfigurationError, match=r"years: .* expired"):
            implied_volatility(10.0, 100.0, 95.0, years, "call")


# --- Edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [0.0, -0.5])
@pytest.mark.parametrize(("kind", "price", "delta"), [("call", 10.0, 1.0), ("put", 0.0, 0.0)])
def test_expired_option(years: float, kind: str, price: float, delta: float) -> None:
    """It has its intrinsic value, and nothing changes it but the underlying."""
    assert black76(110.0, 100.0, years, 0.5, kind, 0.1) == (price, delta, 0.0, 0.0, 0.0, 0.0)
    assert black_scholes(110.0, 100.0, years, 0.5, kind, 0.1, 0.2) == (price, delta, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("kind", "delta"), [("call", 0.5), ("put", -0.5)])
def test_expired_option_at_the_strike(kind: str, delta: float) -> None:
    """Its delta is halfway, and its infinite gamma is left out."""
    assert black76(100.0, 100.0, 0.0, 0.5, kind) == (0.0, delta, 0.0, 0.0, 0.0, 0.0)


def test_no_volatility() -> None:
    """The price is the discounted intrinsic value. At the strike, the first vol point has the full vega."""
    found = black76(110.0, 100.0, 1.0, 0.0, "call", 0.05)
    assert found.price == pytest.approx(10 * math.exp(-0.05))
    assert (found.gamma, found.vega) == (0.0, 0.0)
    assert black76(100.0, 100.0, 1.0, 0.0, "call").vega == pytest.approx(
        black76(100.0, 100.0, 1.0, 0.01, "call").price, rel=1e-5
    )


extremes = st.sampled_from([1e-100, 1e-30, 1.0, 1e30, 1e100])
sizes = st.sampled_from([0.0, 5e-324, 1e-100, 1.0, 1e100])


@given(extremes, extremes, sizes, sizes, kinds)
@example(1e-100, 1e-100, 1.0, 5e-324, "call")
def test_extreme_arguments_give_numbers(
    forward: float, strike: float, years: float, volatility: float, kind: str
) -> None:
    """Nothing overflows, divides by zero or gives NaN."""
    found = black76(forward, strike, years, volatility, kind)
    assert not any(math.isnan(value) for value in found)
    assert math.isfinite(found.price)
    if years > 0.0:
        assert (implied_or_none(found.price, forward, strike, years, kind) or 0.0) >= 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward": 0.0}, "forward: 0.0 is not allowed; expected a price from 1e-100 to 1e\\+100"),
        ({"strike": -1.0}, "strike: -1.0 is not allowed; expected a price"),
        ({"years": math.nan}, "years: nan is not allowed; expected a number"),
        ({"volatility": -0.2}, "volatility: -0.2 is not allowed; expected a fraction >= 0"),
        ({"volatility": True}, "volatility: True is not allowed; expected a number"),
        ({"forward": math.inf}, "forward: inf is not allowed; expected a number"),
        ({"forward": 10**400}, "forward: 10{400} is not allowed; expected a number"),
        ({"strike": "100"}, "strike: '100' is not allowed; expected a number"),
        ({"strike": None}, "strike: None is not allowed; expected a number"),
        ({"rate": math.nan}, "rate: nan is not allowed; expected a number"),
        ({"rate": 500.0}, "rate: 500.0 is not allowed; expected a fraction per year"),
        ({"kind": "C"}, "kind: 'C' is not allowed; expected 'call' or 'put'"),
        ({"kind": None}, "kind: None is not allowed; expected 'call' or 'put'"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    """The error is a ValueError that names the argument, its value and what is expected."""
    arguments = {"forward": 100.0, "strike": 100.0, "years": 0.5, "volatility": 0.2, "kind": "call"} | changes
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        black76(**arguments)
    volatility = arguments.pop("volatility")
    if volatility == 0.2:
        with pytest.raises(ConfigurationError, match=f"^{message}"):
            implied_volatility(5.0, **arguments)
    assert issubclass(ConfigurationError, ValueError)


@pytest.mark.parametrize("name", ["spot", "dividend"])
def test_wrong_arguments_of_black_scholes(name: str) -> None:
    """They are named as in its signature."""
    arguments: dict[str, Any] = {"spot": 1.0, "strike": 1.0, "years": 1.0, "volatility": 0.2, "kind": "call"}
    with pytest.raises(ConfigurationError, match=f"^{name}: nan"):
        black_scholes(**arguments | {name: math.nan})


@pytest.mark.parametrize("number", [int, np.float32, np.float64, np.int64, Fraction])
def test_any_real_number_is_accepted(number: Any) -> None:
    """The result is Python's floats."""
    found = black76(number(100), number(110), number(1), number(2), "call", number(0))
    assert found == black76(100.0, 110.0, 1.0, 2.0, "call")
    assert set(map(type, found)) == {float}


def test_a_value_is_frozen() -> None:
    """Its fields have names and can't be assigned."""
    found = black76(100.0, 110.0, 1.0, 0.5, "call")
    assert found._fields == ("price", "delta", "gamma", "vega", "theta", "rho")
    with pytest.raises(AttributeError):
        found.price = 1.0  # type: ignore[misc]


def test_it_needs_only_the_standard_library() -> None:
    """And the errors of the package."""
    imports = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(Path(greeks.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert set(imports) - sys.stdlib_module_names == {"errors"}


# --- QuantLib ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantlib() -> Any:
    """QuantLib. Its wrapper warns about its own types on some versions of Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("QuantLib", reason="needs QuantLib: pip install QuantLib")


@given(option=options(most=6.0), rate=rates, dividend=rates)
def test_quantlib_agrees(
    quantlib: Any, option: tuple[float, float, float, float, str], rate: float, dividend: float
) -> None:
    """QuantLib gives the same values, per year and per 100 %."""
    spot, strike, years, volatility, kind = option
    forward = spot * math.exp((rate - dividend) * years)
    payoff = quantlib.PlainVanillaPayoff(quantlib.Option.Call if kind == "call" else quantlib.Option.Put, strike)
    theirs = quantlib.BlackCalculator(payoff, forward, volatility * math.sqrt(years), math.exp(-rate * years))
    horizon = min(DAY, years)
    near = {"rel": 1e-6, "abs": 1e-11 * (spot + strike)}
    for ours, price, delta, gamma in (
        (
            black76(forward, strike, years, volatility, kind, rate),
            forward,
            theirs.deltaForward(),
            theirs.gammaForward(),
        ),
        (
            black_scholes(spot, strike, years, volatility, kind, rate, dividend),
            spot,
            theirs.delta(spot),
            theirs.gamma(spot),
        ),
    ):
        assert ours.price == pytest.approx(theirs.value(), **near)
        assert ours.delta == pytest.approx(delta, rel=1e-6, abs=1e-11)
        assert ours.gamma == pytest.approx(gamma, rel=1e-6, abs=1e-11 / spot)
        assert ours.vega == pytest.approx(theirs.vega(years) / 100, **near)
        assert ours.rho == pytest.approx(theirs.rho(years) / 100, **near)
        theta = max(theirs.theta(price, years) * horizon, -ours.price)
        assert ours.theta == pytest.approx(theta, rel=1e-6, abs=1e-11 * (spot + strike) * (1 + volatility))
