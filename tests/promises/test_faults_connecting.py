"""Faults while connecting: hanging handshakes, name resolution, redirects, TLS, descriptors and keys.

Statuses, malformed handshakes and retries are tested in tests/connection, tests/streaming and tests/config.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from finx_streamer import CallTimeout, ConnectionFailed, FunctionClient, ProtocolError, ReconnectPolicy, State
from finx_streamer.connection.websocket import MAX_HEADER
from tests.support.peers import PAIR, PATIENCE, Caller, Peer, Script, Seen, free_port, refuse, stay, tick, watched
from tests.support.program import program_command, program_environment, run_program
from tests.support.tls import client_context, server_context

NO_RETRY = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
#: A name that no resolver can resolve.
NAME = "ticks.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that the system doesn't trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting_context(authority: trustme.CA) -> ssl.SSLContext:
    """A client's TLS context that trusts the authority."""
    return client_context(authority)


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """The TLS context of a server at 127.0.0.1."""
    return server_context(authority.issue_cert("127.0.0.1"))


def first_error(seen: Seen, url: str, **settings: Any) -> ConnectionFailed:
    """Wait for a listener to end at its first attempt, and return its error."""
    listener = seen.listener(url, **settings).start()
    with pytest.raises(ConnectionFailed) as caught:
        listener.join(PATIENCE)
    assert listener.state is State.FAILED
    assert seen.errors == [caught.value]
    return caught.value


def mute(caller: Caller) -> None:
    """Accept the connection and send nothing."""
    caller.wait_until_left()


def dribble(data: bytes) -> Script:
    """A script that sends one byte at a time, for longer than any timeout."""

    def script(caller: Caller) -> None:
        for byte in data:
            caller.send(bytes([byte]))
            time.sleep(0.05)  # The pace of a hostile server.

    return script


HANGING = {
    "HTTP, never": ("ws", mute),
    "HTTP, a byte at a time": ("ws", dribble(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-Filler: more\r\n" * 1_000)),
    "TLS, never": ("wss", mute),
    "TLS, a byte at a time": ("wss", dribble(b"\x16\x03\x03\x40\x00" + bytes(16_384))),
}


@pytest.mark.parametrize(("scheme", "script"), HANGING.values(), ids=HANGING)
def test_endless_handshake_times_out(seen: Seen, scheme: str, script: Script) -> None:
    """After connect_timeout, the attempt fails with an error that names the server, and is retried."""
    with Peer(script, mute) as peer:
        url = peer.url.replace("ws:", f"{scheme}:")
        with seen.listener(url, connect_timeout=0.4):
            seen.wait_errors(1)
            peer.wait_accepted(2)
    error = seen.errors[0]
    assert isinstance(error, ConnectionFailed)
    assert error.will_retry
    assert f"127.0.0.1:{peer.port} did not answer in time" in str(error)


@pytest.mark.parametrize(("scheme", "script"), HANGING.values(), ids=HANGING)
def test_stop_during_a_handshake(seen: Seen, scheme: str, script: Script) -> None:
    """stop() ends a handshake at any point, closes its connection, and nothing connects afterwards."""
    noting, started, left = watched(script)
    with Peer(noting) as peer:
        listener = seen.listener(peer.url.replace("ws:", f"{scheme}:"), connect_timeout=3_600.0).start()
        assert started.wait(PATIENCE)
        assert listener.stop()
        assert left.wait(PATIENCE)
        assert peer.accepted == 1
    assert seen.errors == []


def test_header_of_a_megabyte_is_permanent_error(seen: Seen) -> None:
    """A response header beyond the limit ends the listener."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(b"HTTP/1.1 101 Switching Protocols\r\nX-Filler: " + b"x" * (1 << 20) + b"\r\n\r\n")

    with Peer(script) as peer:
        error = first_error(seen, peer.url)
        assert peer.accepted == 1
    assert type(error) is ProtocolError
    assert f"header of over {MAX_HEADER} bytes" in str(error)


def test_unreachable_address_is_retried(seen: Seen) -> None:
    """An unreachable address fails by the system's error or connect_timeout, and is retried."""
    with seen.listener("wss://[2001:db8::1]:9/", connect_timeout=0.4, reconnect=NO_RETRY):
        seen.wait_errors(1)
    error = seen.of_type(ConnectionFailed)[0]
    assert error.will_retry
    assert "[2001:db8::1]:9" in str(error)


@pytest.fixture
def hanging_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event, list[int]]]:
    """Make the resolver hang for `NAME`. Yields events for the query and for its answer, and the port to find."""
    queried, may_answer, port = threading.Event(), threading.Event(), [9]
    lookup = socket.getaddrinfo

    def hang(host: str, service: int, *arguments: Any) -> Any:
        if host != NAME:
            return lookup(host, service, *arguments)
        queried.set()
        may_answer.wait(PATIENCE)
        return lookup("127.0.0.1", port[0], *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield queried, may_answer, port
    may_answer.set()


def test_hanging_resolver_times_out(seen: Seen, hanging_resolver: Any) -> None:
    """A hanging name resolution can't be interrupted, but the attempt ends after connect_timeout and is retried."""
    with seen.listener(f"wss://{NAME}/", connect_timeout=0.2):
        seen.wait_errors(2)
    assert "no connection within 0.2 s" in str(seen.errors[0])
    assert [error.will_retry for error in seen.of_type(ConnectionFailed)[:2]] == [True, True]


def test_stop_during_name_resolution(seen: Seen, hanging_resolver: Any) -> None:
    """stop() doesn't wait for the resolver, and a late answer connects nothing."""
    queried, may_answer, port = hanging_resolver
    with Peer(stay(tick(1))) as peer:
        port[0] = peer.port
        listener = seen.listener(f"ws://{NAME}/", connect_timeout=3_600.0, allow_insecure=True).start()
        assert queried.wait(PATIENCE)
        worker = next(
            thread for thread in threading.enumerate() if thread.name.startswith(f"{listener.name}-handshake")
        )
        assert listener.stop()
        may_answer.set()
        worker.join(PATIENCE)
        assert not worker.is_alive()
        assert peer.accepted == 0
    assert seen.errors == []


def test_call_times_out_during_name_resolution(hanging_resolver: Any) -> None:
    """A call ends within its timeout."""
    with (
        FunctionClient("demo", f"wss://{NAME}/", timeout=0.2) as client,
        pytest.raises(CallTimeout, match="still connecting"),
    ):
        client.tick_snap(PAIR)


def test_silent_name_server(tmp_path: Path) -> None:
    """If the name server is silent, the attempt times out and the process can exit."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:3\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c"]
    steps = [
        "ip link set lo up",
        f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf",
        f"mount --bind {tmp_path}/nsswitch.conf /etc/nsswitch.conf",
    ]
    ready = " && ".join(steps)
    command = shlex.join(program_command("silent_name_server"))
    if not shutil.which("unshare") or subprocess.run([*inside, ready], capture_output=True, check=False).returncode:
        pytest.skip("unshare cannot create namespaces here, so the name server cannot be changed")
    child = subprocess.run(
        [*inside, f"{ready} && exec {command}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=program_environment(),
    )
    assert child.returncode == 0, child.stderr
    assert "no connection within 0.5 s" in child.stdout
    assert child.stdout.endswith("stopped\n")


@pytest.mark.parametrize("where", ["the same host", "another host", "http"])
@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"])
def test_redirect_is_permanent_error(seen: Seen, status: str, where: str) -> None:
    """The error names the redirect's target and what to do, and the key isn't sent there."""
    with Peer(stay()) as other:
        location = {
            "the same host": "/streamer/",
            "another host": other.url,
            "http": other.url.replace("ws:", "http:"),
        }[where]
        with Peer(refuse(status, f"Location: {location}\r\n")) as peer:
            error = first_error(seen, peer.url, api_key="a-key-of-mine")
            assert (peer.accepted, other.accepted) == (1, 0)
    assert error.status == int(status[:3])
    assert f"a redirect to {location!r} is not followed: a login page on the way, or a wrong endpoint=" in str(error)


def self_signed() -> ssl.SSLContext:
    """The TLS context of a server with a self-signed certificate."""
    context, issuer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
    with issuer.cert_pem.tempfile() as certificate, issuer.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    return context


CERTIFICATES: dict[str, tuple[Callable[[trustme.CA], ssl.SSLContext], str]] = {
    "expired": (
        lambda ca: server_context(ca.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))),
        "certificate has expired",
    ),
    "another host's": (lambda ca: server_context(ca.issue_cert("ws.finx.io")), "not valid for '127.0.0.1'"),
    "self-signed": (lambda ca: self_signed(), "self-signed certificate"),
    "of an unknown authority": (
        lambda ca: server_context(trustme.CA().issue_cert("127.0.0.1")),
        "unable to get local issuer certificate",
    ),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_invalid_certificate_is_permanent_error(
    seen: Seen, authority: trustme.CA, trusting_context: ssl.SSLContext, name: str
) -> None:
    """The error says what is wrong with the certificate, and the key isn't sent."""
    make, fault = CERTIFICATES[name]
    with Peer(stay(), context=make(authority)) as peer:
        error = first_error(seen, peer.url, ssl_context=trusting_context)
        assert peer.requests == [b""]
    assert f"the certificate of 127.0.0.1:{peer.port} is refused" in str(error)
    assert fault in str(error).replace("self signed", "self-signed")


def test_ssl_context_can_trust_a_private_authority(
    seen: Seen, server_tls: ssl.SSLContext, trusting_context: Any
) -> None:
    """A server that is refused by default is accepted with ssl_context."""
    with Peer(stay(tick(1)), context=server_tls) as peer:
        assert first_error(Seen(), peer.url).permanent
        with seen.listener(peer.url, ssl_context=trusting_context):
            seen.wait_ticks(1)
    assert seen.errors == []


def test_tls_1_0_is_refused(seen: Seen, authority: trustme.CA, trusting_context: ssl.SSLContext) -> None:
    """An outdated TLS version ends the listener, and the error names it."""
    context = server_context(authority.issue_cert("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    with Peer(stay(), context=context) as peer:
        error = first_error(seen, peer.url, ssl_context=trusting_context)
        assert peer.requests == [b""]
    assert "TLS with 127.0.0.1" in str(error)
    # OpenSSL's term for it differs from version to version.
    assert any(word in str(error) for word in ("VERSION", "PROTOCOL", "legacy sigalg")), error


@pytest.mark.parametrize("end", [Caller.reset, Caller.leave])
def test_interrupted_tls_handshake_is_retried(
    seen: Seen, server_tls: ssl.SSLContext, trusting_context: ssl.SSLContext, end: Callable[[Caller], None]
) -> None:
    """A reset or end of TCP during the TLS handshake is retried."""

    def cut_off(caller: Caller) -> None:
        caller.sock.recv(4_096)
        end(caller)

    def secured(caller: Caller) -> None:
        caller.sock = server_tls.wrap_socket(caller.sock, server_side=True)
        stay(tick(1))(caller)

    with Peer(cut_off, secured) as peer:
        url = peer.url.replace("ws:", "wss:")
        with seen.listener(url, ssl_context=trusting_context):
            seen.wait_ticks(1)
    assert [error.will_retry for error in seen.of_type(ConnectionFailed)] == [True]


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's certificate in a file."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def subject_hash(certificate: Path) -> str:
    """The name under which OpenSSL finds a certificate in a directory."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed here, so the hash of a certificate is unknown")
    command = [openssl, "x509", "-noout", "-hash", "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_error_hints_at_a_missing_ca_file(
    seen: Seen, server_tls: ssl.SSLContext, trusting_context: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without CAs every certificate is refused: the error says what to check, and a context of your own works."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authorities.pem")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with Peer(stay(tick(1)), context=server_tls) as peer:
        error = first_error(Seen(), peer.url)
        with seen.listener(peer.url, ssl_context=trusting_context):
            seen.wait_ticks(1)
    assert "let SSL_CERT_FILE or REQUESTS_CA_BUNDLE name a file with its CA (the first that is set wins)" in str(error)
    assert "or pass ssl_context=" in str(error)


def test_system_authorities_are_trusted(
    seen: Seen, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, authority_file: Path
) -> None:
    """An authority that the system trusts needs no ssl_context."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority_file))
    with Peer(stay(tick(1)), context=server_tls) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_the_bundle_of_requests_is_trusted(
    seen: Seen, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, authority_file: Path, form: str
) -> None:
    """Companies with an inspecting proxy set REQUESTS_CA_BUNDLE on each machine."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    if form == "directory":
        authority_file.rename(authority_file.with_name(f"{subject_hash(authority_file)}.0"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority_file if form == "file" else authority_file.parent))
    with Peer(stay(tick(1)), context=server_tls) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)


@pytest.mark.parametrize("winner", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_variables_of_openssl_win(
    seen: Seen, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, authority_file: Path, winner: str
) -> None:
    """REQUESTS_CA_BUNDLE isn't even read then. An empty variable counts as not set."""
    authority_file.with_name(f"{subject_hash(authority_file)}.0").write_bytes(authority_file.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.setenv(winner, str(authority_file if winner == "SSL_CERT_FILE" else authority_file.parent))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/authorities.pem")
    with Peer(stay(tick(1)), context=server_tls) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)


@pytest.mark.parametrize(("content", "fault"), [(None, "no such file"), (b"", "it holds no certificate")])
def test_an_unusable_bundle_is_named(
    seen: Seen, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: Any, fault: str
) -> None:
    """The error is permanent, and says which variable names which file. The key isn't sent."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with Peer(stay(), context=server_tls) as peer:
        error = first_error(seen, peer.url)
        assert peer.requests in ([], [b""])
    assert error.permanent
    assert f"the environment variable REQUESTS_CA_BUNDLE names '{bundle}', which can't be used: {fault}" in str(error)


def run_starved(url: str, left: int, first: int, **environment: str) -> list[str]:
    """What a listener prints if it has `left` descriptors from attempt `first` until its second error."""
    child = run_program("scarcity", "few_descriptors", url, left, first, **environment)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout.splitlines()


def test_lack_of_descriptors_is_retried() -> None:
    """Without free descriptors, attempts fail, and a later one succeeds."""

    def leave(caller: Caller) -> None:
        caller.welcome(tick(1))
        caller.leave()

    with Peer(leave, stay(tick(2))) as peer:
        lines = run_starved(peer.url, 0, 2)
    assert lines[0] == "tick"
    assert lines[-1] == "tick"
    assert "without a close frame" in lines[1]
    assert len([line for line in lines if "too many open files" in line and "next attempt in" in line]) == 3


def test_lack_of_descriptors_does_not_reject_the_certificate(server_tls: ssl.SSLContext, authority_file: Path) -> None:
    """If no descriptor is left to read the authority's file, the certificate isn't refused."""
    authority_file.rename(authority_file.with_name(f"{subject_hash(authority_file)}.0"))
    folder = {"SSL_CERT_FILE": "/nowhere.pem", "SSL_CERT_DIR": str(authority_file.parent)}

    def cut_off(caller: Caller) -> None:
        caller.sock.recv(4_096)
        caller.leave()

    def secured(caller: Caller) -> None:
        caller.sock = server_tls.wrap_socket(caller.sock, server_side=True)
        stay(tick(1))(caller)

    # No descriptor is left for the creation of the context, or, after a failed attempt, for the verification.
    for first, scripts in ((1, [secured]), (2, [cut_off, secured])):
        with Peer(*scripts) as peer:
            lines = run_starved(peer.url.replace("ws:", "wss:"), 1, first, **folder)
        assert lines[-1] == "tick"
        assert len([line for line in lines if "too many open files" in line and "next attempt in" in line]) == 3, lines


def test_hanging_key_callable_times_out(seen: Seen) -> None:
    """The attempt ends after connect_timeout, the next one asks again, and a late key connects nothing."""
    free = threading.Event()
    calls: list[int] = []

    def key() -> str:
        calls.append(1)
        if len(calls) == 1:
            free.wait(PATIENCE)
            return "late"
        return "in-time"

    with Peer(stay(tick(1))) as peer:
        with seen.listener(peer.url, api_key=key, connect_timeout=1.0) as listener:
            seen.wait_ticks(1)
            worker = next(t for t in threading.enumerate() if t.name.startswith(f"{listener.name}-handshake"))
            free.set()
            worker.join(PATIENCE)
            assert not worker.is_alive()
        assert [request.split(b"\r\n")[0] for request in peer.requests] == [b"GET /streaming/in-time/BTC:USDC HTTP/1.1"]
    stuck = "no connection within 1 s: name resolution or the api_key callable hangs"
    assert [error.reason for error in seen.of_type(ConnectionFailed)] == [stuck]


def test_refused_connection_is_retried(seen: Seen) -> None:
    """A port without a listener is reported as refused, and retried."""
    port = free_port()
    with seen.listener(f"ws://127.0.0.1:{port}/", reconnect=NO_RETRY):
        seen.wait_errors(1)
    assert f"127.0.0.1:{port}: connection refused" in str(seen.errors[0])
    with contextlib.suppress(IndexError):
        assert seen.of_type(ConnectionFailed)[0].will_retry
