"""Prices, Greeks and implied volatilities of European options, in FinX's units.

FinX's Greeks are Deribit's: Black-76 on the forward of the expiry, without interest. `black76` reproduces them. Only
the standard library is used: `math.erfc` is accurate far in the tails, where `1 - erf` has no digits left.
"""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any, NamedTuple

from .errors import ConfigurationError

_ROOT_OF_HALF = math.sqrt(0.5)
_ROOT_OF_2_PI = math.sqrt(2.0 * math.pi)
#: A vol point, or 1 %.
_PERCENT = 0.01
#: In years, as FinX counts them: ACT/365.
_DAY = 1 / 365
#: No product or quotient of numbers within these bounds overflows.
_LOWEST, _HIGHEST = 1e-100, 1e100
#: The greatest exponent of a discount factor.
_MOST_INTEREST = 100.0
#: `implied_volatility` refuses a price if its rounding changes the volatility by more than this fraction.
_MOST_DOUBT = 1e-6
#: A step of Newton's method that is a smaller fraction than this leaves an error of about its square.
_LAST_STEP = 1e-8
#: Newton's method needs fewer than 10. Bisection, its fallback, needs one per bit.
_MOST_STEPS = 100


class OptionValue(NamedTuple):
    """The value of one option. Prices are in the currency of the strike: dollars for FinX's contracts.

    Attributes:
        price (float): Price of the option. FinX sends prices in coins of the underlying: divide by the forward.
        delta (float): Change of the price per $1 of the underlying: of the forward for `black76`, of the spot price for
            `black_scholes`.
        gamma (float): Change of the delta per $1 of the underlying.
        vega (float): Change of the price per vol point, i.e. for 1 % more volatility.
        theta (float): Change of the price over the next day, or over the time left if that is less: the present rate,
            times the smaller of both. A loss is at most the price.
        rho (float): Change of the price for 1 % more interest at the same spot price. The forward rises with the rate,
            for `black76` as well.

    Source: D. Without interest, these are the values of FinX's contract tickers.
    """

    price: float
    delta: float
    gamma: float
    vega: float
    theta: float
    rho: float


def black76(
    forward: float, strike: float, years: float, volatility: float, kind: str, rate: float = 0.0
) -> OptionValue:
    """Value an option on a forward or future with the model of Black (1976).

    With FinX's `underlying_price`, strike, `mark_iv / 100` and no rate, this gives FinX's Greeks.

    Args:
        forward: Price of the underlying for delivery at the expiry, > 0.
        strike: Strike price, > 0.
        years: Time to the expiry, in years of 365 days. At 0 or less, the option has expired: its price is its
            intrinsic value, and its gamma, vega, theta and rho are 0.
        volatility: Volatility per year as a fraction, >= 0: 0.2 for 20 %. FinX's `mark_iv` is in percent.
        kind: "call" or "put".
        rate: Interest per year, continuously compounded, as a fraction. It discounts the price, the delta and all
            other Greeks.

    Raises:
        ConfigurationError: An argument is wrong. It is a `ValueError`, too.
    """
    forward = _checked_price("forward", forward)
    return _value(forward, strike, years, volatility, kind, rate, 0.0)


def black_scholes(
    spot: float,
    strike: float,
    years: float,
    volatility: float,
    kind: str,
    rate: float = 0.0,
    dividend: float = 0.0,
) -> OptionValue:
    """Value an option on something that you can buy now, with the model of Black, Scholes and Merton (1973).

    Args:
        spot: Price of the underlying now, > 0.
        strike: As for `black76`.
        years: As for `black76`.
        volatility: As for `black76`.
        kind: "call" or "put".
        rate: Interest per year, continuously compounded, as a fraction.
        dividend: Dividend yield per year, continuously compounded, as a fraction. For a currency pair, the interest of
            the base currency.

    Raises:
        ConfigurationError: An argument is wrong. It is a `ValueError`, too.
    """
    spot = _checked_price("spot", spot)
    rate = _number("rate", rate)
    return _value(spot, strike, years, volatility, kind, rate, rate - _number("dividend", dividend))


def implied_volatility(
    price: float, forward: float, strike: float, years: float, kind: str, rate: float = 0.0
) -> float:
    """Find the volatility at which `black76` gives a price.

    Args:
        price: Price of the option, in the currency of the strike: FinX's price in coins times the forward.
        forward: As for `black76`.
        strike: As for `black76`.
        years: As for `black76`, > 0.
        kind: "call" or "put".
        rate: As for `black76`.

    Returns:
        The volatility per year as a fraction: 0.2 for 20 %.

    Raises:
        ConfigurationError: An argument is wrong, no volatility gives this price, or the price doesn't determine the
            volatility: its last digit matters more than a millionth of the volatility. That happens deep in the money,
            where almost all of the price is intrinsic value. It is a `ValueError`, too.
    """
    price = _number("price", price)
    forward, strike = _checked_price("forward", forward), _checked_price("strike", strike)
    years = _number("years", years)
    if years <= 0.0:
        raise _refusal("years", years, "more than 0: an expired option has no implied volatility")
    sign = _sign(kind)
    discount = _growth(-_number("rate", rate), years)
    undiscounted = price / discount
    intrinsic = max(sign * (forward - strike), 0.0)
    time_value, limit = undiscounted - intrinsic, min(forward, strike)
    if not 0.0 < time_value < limit:
        low, high = discount * intrinsic, discount * (intrinsic + limit)
        raise _refusal("price", price, f"more than {low!r} and less than {high!r}, as for every volatility")
    moneyness = _log_ratio(forward, strike)
    deviation = _solve(time_value, forward, strike, moneyness)
    volatility = deviation / math.sqrt(years)
    d1 = moneyness / deviation + deviation / 2
    slope = deviation * forward * _density(d1)
    doubt = math.ulp(undiscounted) + sys.float_info.epsilon * (1 + abs(d1)) * slope / deviation
    if doubt > _MOST_DOUBT * slope:
        raise _refusal(
            "price",
            price,
            f"a price with more time value: rounding this one changes the volatility (near {volatility:.2g}). "
            "Try the out-of-the-money option with the same strike",
        )
    return volatility


def _value(
    spot: float, strike: float, years: float, volatility: float, kind: str, rate: float, carry: float
) -> OptionValue:
    """Value an option on something whose forward price grows at the rate `carry`: 0 for a forward itself."""
    strike = _checked_price("strike", strike)
    years = max(_number("years", years), 0.0)
    volatility = _number("volatility", volatility)
    if volatility < 0.0:
        raise _refusal("volatility", volatility, "a fraction >= 0, such as 0.2 for 20 %")
    sign = _sign(kind)
    discount, growth = _growth(-_number("rate", rate), years), _growth(carry, years)
    forward = spot * growth
    root = math.sqrt(years)
    deviation = volatility * root
    moneyness = _log_ratio(forward, strike)
    # Without any uncertainty left, only the side of the strike counts.
    center = moneyness / deviation if deviation else math.copysign(math.inf, moneyness) if moneyness else 0.0
    d1, d2 = center + deviation / 2, center - deviation / 2
    price = discount * (max(sign * (forward - strike), 0.0) + _time_value(forward, strike, d1, d2))
    delta = sign * discount * growth * _normal(sign * d1)
    density = discount * growth * _density(d1)
    horizon = min(_DAY, years)
    # d1 is infinite at the expiry, except at the strike, where gamma is.
    gamma = density / (spot * deviation) if deviation else 0.0
    decay = spot * density * volatility / (2 * root) if root else 0.0
    theta = horizon * (rate * price - carry * spot * delta - decay)
    return OptionValue(
        price=price,
        delta=delta,
        gamma=gamma,
        vega=_PERCENT * spot * density * root,
        theta=max(theta, -price),
        rho=_PERCENT * sign * strike * years * discount * _normal(sign * d2),
    )


def _solve(time_value: float, forward: float, strike: float, moneyness: float) -> float:
    """Find the standard deviation of the log price at the expiry that gives a time value.

    Newton's method within a shrinking bracket. It solves for a power of a logarithm of the time value, or of what the
    time value lacks to its limit, because that is almost proportional to the deviation.
    """
    limit = min(forward, strike)
    rich = time_value > limit / 2
    power = 0.5 if rich else -0.5
    depth = _depth(limit - time_value if rich else time_value, limit)
    target = depth**power
    low, high = 0.0, 20.0 + 2.0 * math.sqrt(2.0 * abs(moneyness))
    # A first guess as if the time value were limit * N(deviation / 2 - abs(moneyness) / deviation).
    quantile = math.sqrt(2.0 * depth)
    root = math.sqrt(quantile**2 + 2.0 * abs(moneyness))
    guess = root + quantile if rich else 2.0 * abs(moneyness) / (root + quantile)
    deviation = min(guess + _ROOT_OF_2_PI * time_value / limit, high)
    for _ in range(_MOST_STEPS):
        d1 = moneyness / deviation + deviation / 2
        d2 = d1 - deviation
        part = forward * _normal(-d1) + strike * _normal(d2) if rich else _time_value(forward, strike, d1, d2)
        depth = _depth(part, limit)
        error = depth**power - target
        low, high = (deviation, high) if error < 0.0 else (low, deviation)
        slope = 0.5 * forward * _density(d1) * depth ** (power - 1.0)
        step = error * part / slope if slope else math.inf
        if abs(step) < _LAST_STEP * deviation:
            return deviation - step
        deviation -= step
        if not low < deviation < high:
            deviation = (low + high) / 2
    return deviation


def _depth(part: float, limit: float) -> float:
    """The logarithm of `limit / part`, finite and positive even if rounding would make the quotient infinite or 1."""
    return max(math.log(limit) - math.log(max(part, math.ulp(0.0))), sys.float_info.epsilon)


def _time_value(forward: float, strike: float, d1: float, d2: float) -> float:
    """The undiscounted price of the option that is out of the money: the price of both without intrinsic value."""
    sign = 1.0 if forward < strike else -1.0
    return max(sign * (forward * _normal(sign * d1) - strike * _normal(sign * d2)), 0.0)


def _log_ratio(forward: float, strike: float) -> float:
    ratio = forward / strike
    # Near 1, the rounded ratio has lost digits of the difference.
    return math.log1p((forward - strike) / strike) if 0.5 < ratio < 2.0 else math.log(ratio)


def _normal(x: float) -> float:
    """The probability of less than `x` in a standard normal distribution."""
    return 0.5 * math.erfc(-x * _ROOT_OF_HALF)


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / _ROOT_OF_2_PI


def _growth(rate: float, years: float) -> float:
    interest = rate * max(years, 0.0)
    if abs(interest) > _MOST_INTEREST:
        raise ConfigurationError(
            f"rate: {rate!r} over {years!r} years is not allowed; expected a fraction per year, such as 0.05 for 5 %"
        )
    return math.exp(interest)


def _sign(kind: str) -> float:
    if kind == "call":
        return 1.0
    if kind == "put":
        return -1.0
    raise _refusal("kind", kind, "'call' or 'put'")


def _checked_price(name: str, value: float) -> float:
    value = _number(name, value)
    if value < _LOWEST:
        raise _refusal(name, value, f"a price from {_LOWEST:g} to {_HIGHEST:g}")
    return value


def _number(name: str, value: Any) -> float:
    """Return a real number as a float. Booleans aren't numbers."""
    is_number = type(value) is float or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    if not is_number or not -_HIGHEST <= value <= _HIGHEST:
        raise _refusal(name, value, f"a number from {-_HIGHEST:g} to {_HIGHEST:g}")
    return float(value)


def _refusal(name: str, value: object, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {value!r} is not allowed; expected {expected}")
