"""Connections to real NATS servers: every way to log in, and every way to be refused."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')
import nkeys

from finx_streamer import AuthenticationError, ConfigurationError, ConnectionFailed, PublishError
from finx_streamer.jetstream import JetStreamPublisher, Nats
from finx_streamer.jetstream.connection import connected, find_stream
from tests.support.nats import NatsServer, lasting_port
from tests.support.publishing import wait_for
from tests.support.tls import client_context

#: Seeds of two users.
SEED, OTHER_SEED = (
    b"SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    b"SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU",
)


def connect(settings: Nats) -> Any:
    """Connect, and ask for a stream that doesn't exist."""

    async def connect() -> Any:
        async with connected(settings, "test") as client:
            return await find_stream(client, "NONE")

    return asyncio.run(asyncio.wait_for(connect(), 20.0))


def test_one_of_several_servers_is_enough(nats_server: NatsServer) -> None:
    for _ in range(5):
        assert connect(Nats(urls=[f"nats://127.0.0.1:{lasting_port()}", nats_server.url])) is None


def test_a_server_that_is_away() -> None:
    with pytest.raises(ConnectionFailed, match="can't be reached: Connection refused") as raised:
        connect(Nats(urls=f"nats://127.0.0.1:{lasting_port()}"))
    assert not raised.value.permanent


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ConnectionFailed, match="can't be reached"):
        connect(Nats(urls="nats://no-such-host.invalid"))


def test_an_nkey(tmp_path: Path) -> None:
    seed_file, other_file = tmp_path / "seed", tmp_path / "other"
    seed_file.write_bytes(SEED)
    other_file.write_bytes(OTHER_SEED)
    public = nkeys.from_seed(bytearray(SEED)).public_key.decode()
    with NatsServer(tmp_path / "n", config=f"authorization {{ users: [{{ nkey: {public} }}] }}") as server:
        assert connect(Nats(urls=server.url, nkey_file=seed_file)) is None
        for settings in ({"nkey_file": other_file}, {}):
            with pytest.raises(AuthenticationError, match="refuses the credentials"):
                connect(Nats(urls=server.url, **settings))


@pytest.mark.parametrize("text", [b"", b"garbage", SEED[:30], SEED.lower(), SEED + b"\n" + SEED])
@pytest.mark.parametrize("field", ["nkey_file", "credentials_file"])
def test_a_file_without_credentials(tmp_path: Path, field: str, text: bytes) -> None:
    """It's a clear error, also for a publisher, and the seed isn't shown."""
    path = tmp_path / "seed"
    path.write_bytes(text)
    public = nkeys.from_seed(bytearray(SEED)).public_key.decode()
    with NatsServer(tmp_path / "n", config=f"authorization {{ users: [{{ nkey: {public} }}] }}") as server:
        settings: Mapping[str, Any] = {"urls": server.url, field: path}
        with pytest.raises(ConfigurationError, match="seed can't be used"):
            connect(Nats(**settings))
        with (
            JetStreamPublisher(Nats(**settings)) as publisher,
            pytest.raises(ConfigurationError, match="can't be used"),
        ):
            publisher.connect(timeout=20.0)


def test_a_credentials_file(tmp_path: Path) -> None:
    """A JWT of a user, signed by an account, signed by an operator."""
    operator, account, system, user, other = (
        nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
            nkeys.PREFIX_BYTE_ACCOUNT,
        )
    )
    common = {"wildcards": True} | dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    streams = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    accounts = {
        each.public_key.decode(): sign(operator, each, "account", limits=limits)
        for each, limits in ((account, common | streams), (system, common))
    }
    preloaded = ", ".join(f"{name}: {token}" for name, token in accounts.items())
    config = (
        f"operator: {sign(operator, operator, 'operator')}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {preloaded} }}\nsystem_account: {system.public_key.decode()}"
    )
    unlimited = dict.fromkeys(("subs", "data", "payload"), -1)
    files = {}
    for name, issuer in (("good", account), ("bad", other)):
        token = sign(issuer, user, "user", **unlimited)
        files[name] = tmp_path / name
        files[name].write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
    with NatsServer(tmp_path / "n", config=config) as server:
        assert connect(Nats(urls=server.url, credentials_file=files["good"])) is None
        for settings in ({"credentials_file": files["bad"]}, {}):
            with pytest.raises(AuthenticationError, match="refuses the credentials"):
                connect(Nats(urls=server.url, **settings))


def sign(issuer: Any, subject: Any, kind: str, **more: Any) -> str:
    """A JWT of NATS."""

    def encode(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).decode().rstrip("=")

    claims = {
        "jti": os.urandom(8).hex(),
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": kind,
        "nats": {"type": kind, "version": 2, **more},
    }
    head = json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()
    text = f"{encode(head)}.{encode(json.dumps(claims).encode())}"
    return f"{text}.{encode(issuer.sign(text.encode()))}"


def test_a_user_without_rights(tmp_path: Path) -> None:
    """NATS doesn't answer, so the publisher waits, and says so."""
    user = "user: a, password: b, permissions: { publish: [none], subscribe: ['_INBOX.>'] }"
    errors: list[PublishError] = []
    with (
        NatsServer(tmp_path / "n", config=f"authorization {{ users: [{{ {user} }}] }}") as server,
        JetStreamPublisher(Nats(urls=server.url, user="a", password="b"), on_error=errors.append) as publisher,
    ):
        wait_for(lambda: errors)
        assert "no answer in time" in errors[0].reason
        assert not publisher.connect(timeout=0.0)


def test_tls(tmp_path: Path) -> None:
    """The server's certificate is verified, and the client's one is sent."""
    authority, stranger = trustme.CA(), trustme.CA()
    with NatsServer(tmp_path / "n", tls=authority, verify=True) as server:
        context = client_context(authority)
        authority.issue_cert("client@localhost").configure_cert(context)
        assert connect(Nats(urls=server.url, ssl_context=context)) is None
        with pytest.raises(ConnectionFailed, match="its certificate isn't trusted") as raised:
            connect(Nats(urls=server.url, ssl_context=client_context(stranger)))
        assert raised.value.permanent
        with pytest.raises(ConnectionFailed):
            connect(Nats(urls=server.url, ssl_context=client_context(authority)))


def test_tls_is_not_given_up(tmp_path: Path, nats_server: NatsServer) -> None:
    """A password isn't sent in clear text, where TLS is wanted."""
    settings: Mapping[str, Any] = {"user": "a", "password": "b"}
    for url, more in (
        (nats_server.url.replace("nats:", "tls:"), {}),
        (nats_server.url, {"ssl_context": client_context(trustme.CA())}),
    ):
        with pytest.raises(ConnectionFailed, match="doesn't use TLS") as raised:
            connect(Nats(urls=url, **settings, **more))
        assert raised.value.permanent


def test_no_jetstream(tmp_path: Path) -> None:
    with (
        NatsServer(tmp_path / "n", jetstream=None) as server,
        pytest.raises(ConfigurationError, match="NATS has no JetStream here"),
    ):
        connect(Nats(urls=server.url))
