"""Live exchanges: `ExchangeMarket`, and one adapter per exchange. Needs the extra `live`.

Each module of this package that defines an `Adapter` adds an exchange. docs/adding-an-exchange.md explains how.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from .adapter import Adapter


@cache
def find_adapters() -> dict[str, type[Adapter]]:
    """Return the adapter of each exchange, by the exchange's name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {kind.name: kind for kind in found if issubclass(kind, Adapter) and kind is not Adapter}
