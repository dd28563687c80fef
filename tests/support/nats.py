"""Real NATS servers on loopback: one, or a cluster of three. Each can be killed, stopped for a while and restarted."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import trustme

from tests.support.peers import PATIENCE
from tests.support.program import ROOT, Restartable

#: Where `make` puts a server that it has fetched.
_FETCHED = ROOT / ".venv" / "nats" / "usr" / "sbin" / "nats-server"
_HOST = "127.0.0.1"


def nats_program() -> str:
    """The path of `nats-server`. Without one, skip the test, or fail it if FINX_REQUIRE_NATS is set."""
    # Debian installs it where a user's PATH doesn't lead.
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin") or shutil.which(_FETCHED)
    if found is None:
        # Benchmarks don't have it.
        import pytest

        message = "nats-server is missing. On Debian and Ubuntu: make .venv/.nats"
        if os.environ.get("FINX_REQUIRE_NATS"):
            pytest.fail(f"{message} (FINX_REQUIRE_NATS is set)")
        pytest.skip(message)
    return found


def lasting_port() -> int:
    """A free port that stays free while a server is down: the system doesn't assign ports of this range."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as sock:
            try:
                sock.bind((_HOST, port))
            except OSError:
                continue
            return port


class NatsServer(Restartable):
    """A `nats-server` process, which ends with the `with` block.

    Args:
        folder: For its configuration, its log and JetStream's files. Created if it doesn't exist.
        jetstream: Lines for the configuration's block of that name, such as "max_file_store: 10MB". None: no JetStream.
        tls: Signs the server's certificate, and its clients' ones if `verify` is set.
        verify: Require a certificate of each client.
        config: More lines, such as "authorization { user: a, password: b }" or
            "authorization { users: [{ nkey: UABC… }] }".
        name: Its name in a cluster.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jetstream: str | None = "",
        tls: trustme.CA | None = None,
        verify: bool = False,
        config: str = "",
        name: str = "nats",
    ) -> None:
        config_file = folder / "nats.conf"
        super().__init__(name, [nats_program(), "--config", str(config_file)], folder / "log")
        self.folder = folder
        self.port, self._monitor = lasting_port(), lasting_port()
        self.url = f"{'nats' if tls is None else 'tls'}://{_HOST}:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f'listen: "{_HOST}:{self.port}"', f'http: "{_HOST}:{self._monitor}"', f"server_name: {name}", config]
        if jetstream is not None:
            lines += [f"jetstream {{ store_dir: {json.dumps(str(folder))}", jetstream, "}"]
        if tls is not None:
            files = {name: json.dumps(str(folder / name)) for name in ("ca.pem", "cert.pem", "key.pem")}
            certificate = tls.issue_cert(_HOST, "localhost")
            tls.cert_pem.write_to_path(folder / "ca.pem")
            certificate.private_key_pem.write_to_path(folder / "key.pem")
            for number, part in enumerate(certificate.cert_chain_pems):
                part.write_to_path(folder / "cert.pem", append=number > 0)
            lines += ["tls {", f"cert_file: {files['cert.pem']}", f"key_file: {files['key.pem']}"]
            lines += [f"ca_file: {files['ca.pem']}", "verify: true", "}"] if verify else ["}"]
        config_file.write_text("\n".join(lines) + "\n")
        self._jetstream = jetstream is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it accepts clients, with JetStream if it has one."""
        wait_until(self._is_ready, self)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((_HOST, self.port), timeout=1.0) as sock, sock.makefile("rb") as reader:
                # Even with TLS, the server begins with this line in clear text.
                line = reader.readline()
        except OSError:
            return False
        return line.startswith(b"INFO ") and bool(json.loads(line[5:]).get("jetstream")) == self._jetstream

    def about(self, page: str) -> Any:
        """A page of the server's monitoring, such as "jsz". None while the server can't answer."""
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{self._monitor}/{page}", timeout=1.0) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def restart(self) -> None:
        """Kill it if it runs. Start it on the same port, with the same files."""
        self.kill()
        self.start()


class NatsCluster:
    """Three servers with one JetStream, which end with the `with` block. `nodes` has them."""

    def __init__(self, folder: Path) -> None:
        ports = [lasting_port() for _ in range(3)]
        routes = ", ".join(f'"nats://{_HOST}:{port}"' for port in ports)
        self.nodes = [
            NatsServer(
                folder / f"n{number}",
                name=f"n{number}",
                config=f'cluster {{ name: finx, listen: "{_HOST}:{port}", routes: [{routes}] }}',
            )
            for number, port in enumerate(ports, start=1)
        ]
        #: The URLs of all nodes, separated by commas.
        self.url = ",".join(node.url for node in self.nodes)
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with self._ending as ending:
            for node in self.nodes:
                ending.callback(node.kill)
                node.launch()
            self.wait_ready()
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()

    def wait_ready(self) -> None:
        """Wait until the nodes that run agree on a leader among them, and have caught up with it."""
        running = [node for node in self.nodes if node.running]
        for node in running:
            wait_until(lambda node=node: self._leader_of(node) in [each.name for each in running], node)
            wait_until(lambda node=node: (node.about("healthz") or {}).get("status") == "ok", node)

    def _leader_of(self, node: NatsServer) -> str | None:
        return ((node.about("jsz") or {}).get("meta_cluster") or {}).get("leader")


def wait_until(condition: Callable[[], bool], server: NatsServer) -> None:
    """Wait for a condition on a running server. Fails with the end of its log."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        if not server.running or time.monotonic() > limit:
            end = "\n".join(server.log.splitlines()[-10:])
            raise AssertionError(f"{server.name} isn't ready, running: {server.running}. It logged:\n{end}")
        time.sleep(0.02)
