"""`Doctor`: runs all checks, from this machine outwards to the server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

import attrs

from .. import demo
from ..config import checks as check
from ..config.api_key import ENVIRONMENT_VARIABLE
from ..config.endpoint import Endpoint
from ..config.symbols import Pair
from ..connection.attempt import ConnectionConfig, describe_authorities
from .assumptions import Assumptions
from .limits import LIMIT
from .machine import machine_checks
from .network import NetworkChecks
from .report import Check, Report, Verdict


class Doctor:
    """Runs the checks. See `finx_streamer.doctor` for the arguments. `key_source` names where `api_key` comes from."""

    def __init__(
        self,
        pair: str | Pair,
        endpoint: str | Endpoint,
        api_key: str | Callable[[], str | None] | None,
        proxy: str | None,
        ssl_context: ssl.SSLContext | None,
        allow_insecure: bool,
        key_source: str = "the argument api_key",
    ) -> None:
        given = f"the variable {ENVIRONMENT_VARIABLE}" if api_key is None else key_source
        self._is_demo = endpoint == demo.NAME
        self._key_source = "not needed" if self._is_demo else f"found in {given}"
        self._pair = Pair.parse(str(check.pair(pair)))
        endpoint, api_key, proxy = demo.connection_arguments(self, endpoint, api_key, proxy)
        self._config = ConnectionConfig.from_arguments(
            api_key=api_key,
            endpoint=endpoint,
            proxy=proxy,
            allow_insecure=allow_insecure,
            ssl_context=ssl_context,
            connect_timeout=LIMIT,
        )
        self._network = NetworkChecks(self._config, self._pair, describe_authorities(ssl_context))

    def checks(self) -> Iterator[Check]:
        """Yield each check as soon as it is done."""
        shared = ", all streams on one connection" if self._config.endpoint.wire == "subscribe" else ""
        yield Check("endpoint", Verdict.OK, f"{self._config.endpoint.url}{shared}")
        for found in machine_checks(self._config, self._key_source):
            yield found
            # Without a key, the way to the server can still be checked.
            if found.verdict is Verdict.FAILED and found.name != "API key":
                return
        yield from self._network.run()

    def assumptions(self) -> Iterator[Check]:
        """Yield what is assumed about FinX, once `checks` has opened a stream."""
        if not self._network.streams:
            return
        config, message = self._config, self._network.message
        if config.endpoint.wire == "subscribe":
            # What is assumed about streams is about those with their own connection.
            config, message = attrs.evolve(config, endpoint=Endpoint(config.endpoint.url)), None
        yield from Assumptions(config, self._pair, message, self._is_demo, self._network.own_server).run()

    def report(self) -> Report:
        """Run everything."""
        return Report(tuple(self.checks()), tuple(self.assumptions()))
