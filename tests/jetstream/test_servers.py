"""The NATS servers that other tests use: JetStream keeps what it acknowledged, even if a process is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')
import nats
from nats.js.errors import NoStreamResponseError, ServerError

from tests.support.nats import NatsCluster, NatsServer
from tests.support.nats_users import credentials_user, nkey_user
from tests.support.tls import client_context


def ask(url: str, request: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    """The result of a request to JetStream, on a connection of its own."""

    async def asked() -> Any:
        servers = url.split(",")
        async with await nats.connect(servers, allow_reconnect=False, error_cb=_ignore, **options) as client:
            return await request(client.jetstream())

    return asyncio.run(asyncio.wait_for(asked(), 20.0))


def streams(url: str, **options: Any) -> int:
    """How many streams there are."""
    return int(ask(url, lambda jetstream: jetstream.account_info(), **options).streams)


async def _ignore(error: Exception) -> None:
    """The client raises it, too."""


def test_a_killed_server_keeps_its_stream(nats_server: NatsServer) -> None:
    ask(nats_server.url, lambda jetstream: jetstream.add_stream(name="S", subjects=["s"]))
    assert ask(nats_server.url, lambda jetstream: jetstream.publish("s", b"1")).seq == 1
    url = nats_server.url
    nats_server.restart()
    assert nats_server.url == url
    assert ask(url, lambda jetstream: jetstream.publish("s", b"2")).seq == 2


def test_a_paused_server_answers_later(nats_server: NatsServer) -> None:
    nats_server.pause()
    assert nats_server.about("varz") is None
    assert nats_server.running
    nats_server.resume()
    nats_server.wait_ready()


def test_a_cluster_goes_on_without_one_of_its_nodes(nats_cluster: NatsCluster) -> None:
    ask(nats_cluster.url, lambda jetstream: jetstream.add_stream(name="S", subjects=["s"], num_replicas=3))
    assert ask(nats_cluster.url, _publish).seq == 1
    node = nats_cluster.nodes[0]
    node.kill()
    nats_cluster.wait_ready()
    assert ask(nats_cluster.url, _publish).seq == 2
    node.restart()
    nats_cluster.wait_ready()
    assert ask(node.url, lambda jetstream: jetstream.get_msg("S", 2)).data == b"x"


async def _publish(jetstream: Any) -> Any:
    """Publish once the stream has a leader again."""
    while True:
        try:
            return await jetstream.publish("s", b"x", timeout=1.0)
        except (nats.errors.Error, TimeoutError):
            await asyncio.sleep(0.1)


def test_a_server_without_jetstream(tmp_path: Path) -> None:
    with NatsServer(tmp_path, jetstream=None) as server, pytest.raises(NoStreamResponseError):
        ask(server.url, lambda jetstream: jetstream.publish("s", b"", timeout=5.0))


def test_limits_of_the_disk(tmp_path: Path) -> None:
    async def add_large(jetstream: Any) -> None:
        await jetstream.add_stream(name="S", subjects=["s"], max_bytes=2_000_000)

    with NatsServer(tmp_path, jetstream="max_file_store: 1MB") as server, pytest.raises(ServerError, match="storage"):
        ask(server.url, add_large)


@pytest.mark.parametrize("verify", [False, True], ids=["server", "both"])
def test_tls(tmp_path: Path, verify: bool) -> None:
    authority = trustme.CA()
    trusting = client_context(authority)
    with NatsServer(tmp_path / "nats", tls=authority, verify=verify) as server:
        if verify:
            assert server.about("varz")["tls_verify"]
            authority.issue_cert("client.example").configure_cert(trusting)
        assert server.url.startswith("tls://")
        assert server.about("varz")["tls_required"]
        assert streams(server.url, tls=trusting) == 0


def test_users(tmp_path: Path) -> None:
    config = "authorization { user: a, password: b }"
    with NatsServer(tmp_path, config=config) as server:
        assert streams(server.url, user="a", password="b") == 0
        assert server.about("varz")["auth_required"]


def test_an_nkey(tmp_path: Path) -> None:
    config, seed = nkey_user(tmp_path)
    with NatsServer(tmp_path / "nats", config=config) as server:
        assert streams(server.url, nkeys_seed=str(seed)) == 0
        assert server.about("varz")["auth_required"]


def test_a_credentials_file(tmp_path: Path) -> None:
    config, credentials = credentials_user(tmp_path)
    with NatsServer(tmp_path / "nats", config=config) as server:
        assert streams(server.url, user_credentials=str(credentials)) == 0
        assert server.about("varz")["auth_required"]


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, config="nonsense {")
    with pytest.raises(AssertionError, match="Parse error"), server:
        pass


def test_a_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: None)
    monkeypatch.delenv("FINX_REQUIRE_NATS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nats-server is missing"):
        NatsServer(tmp_path)
    monkeypatch.setenv("FINX_REQUIRE_NATS", "1")
    with pytest.raises(pytest.fail.Exception, match="nats-server is missing"):
        NatsServer(tmp_path)
