"""Six exchanges and Deribit on loopback, with their real WebSocket and REST paths and formats.

They are written from the exchanges' documentation and from recorded messages, without the code of the adapters that
they test, so that a misreading can't be in both.
"""

from .deribit import Deribit
from .exchange import Exchange, Trade
from .ledger import Comparison, compare
from .server import EXCHANGES, LoopbackExchanges
from .venue import RestFault, Venue

__all__ = [
    "EXCHANGES",
    "Comparison",
    "Deribit",
    "Exchange",
    "LoopbackExchanges",
    "RestFault",
    "Trade",
    "Venue",
    "compare",
]
