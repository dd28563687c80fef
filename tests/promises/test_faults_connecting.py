"""What can go wrong while connecting, on real sockets, and what the user sees of it.

Refusals by status, garbage in the handshake, and the deadlines of one attempt are in test_transport.py; which errors
are tried again, and keys that are refused, in test_network.py; proxies in test_proxies.py.
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

NEVER_AGAIN = ReconnectPolicy(initial=3_600.0, maximum=3_600.0, jitter=False)
#: A name that no resolver knows.
NAME = "ticks.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts it."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """A server's TLS context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def theirs(authority: trustme.CA) -> ssl.SSLContext:
    """The TLS context of a server at 127.0.0.1."""
    return server_context(authority.issue_cert("127.0.0.1"))


def ended_by(seen: Seen, url: str, **settings: Any) -> ConnectionFailed:
    """The error that ends a listener at its first attempt."""
    listener = seen.listener(url, **settings).start()
    with pytest.raises(ConnectionFailed) as caught:
        listener.join(PATIENCE)
    assert listener.state is State.FAILED
    assert [caught.value] == seen.errors
    return caught.value


# Handshakes that do not end.


def mute(caller: Caller) -> None:
    """Accepts, and says nothing."""
    caller.wait_until_left()


def dribble(data: bytes) -> Script:
    """A script that sends a byte at a time, for longer than anybody would wait."""

    def script(caller: Caller) -> None:
        for byte in data:
            caller.send(bytes([byte]))
            time.sleep(0.05)  # the pace of a hostile server, and no waiting for anything

    return script


HANGING = {
    "HTTP, never": ("ws", mute),
    "HTTP, a byte at a time": ("ws", dribble(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-More: of it\r\n" * 1_000)),
    "TLS, never": ("wss", mute),
    "TLS, a byte at a time": ("wss", dribble(b"\x16\x03\x03\x40\x00" + bytes(16_384))),
}


@pytest.mark.parametrize(("scheme", "script"), HANGING.values(), ids=HANGING)
def test_a_handshake_that_does_not_end_is_bounded(seen: Seen, scheme: str, script: Script) -> None:
    """The attempt fails after connect_timeout, says who did not answer, and is tried again."""
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
def test_stop_in_the_middle_of_a_handshake(seen: Seen, scheme: str, script: Script) -> None:
    """stop() ends a handshake wherever it hangs, the server sees the client leave, and nothing connects afterwards."""
    noting, begun, left = watched(script)
    with Peer(noting) as peer:
        listener = seen.listener(peer.url.replace("ws:", f"{scheme}:"), connect_timeout=3_600.0).start()
        assert begun.wait(PATIENCE)
        assert listener.stop()
        assert left.wait(PATIENCE)
        assert peer.accepted == 1
    assert seen.errors == []


def test_a_header_of_a_megabyte_is_refused(seen: Seen) -> None:
    """It is not stored beyond the bound, and not asked for again."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(b"HTTP/1.1 101 Switching Protocols\r\nX-Filler: " + b"x" * (1 << 20) + b"\r\n\r\n")

    with Peer(script) as peer:
        error = ended_by(seen, peer.url)
        assert peer.accepted == 1
    assert type(error) is ProtocolError
    assert f"header of over {MAX_HEADER} bytes" in str(error)


def test_an_unreachable_address_is_bounded(seen: Seen) -> None:
    """An address that nobody has is an error, by the system's word or by connect_timeout, and is tried again."""
    with seen.listener("wss://[2001:db8::1]:9/", connect_timeout=0.4, reconnect=NEVER_AGAIN):
        seen.wait_errors(1)
    error = seen.of_type(ConnectionFailed)[0]
    assert error.will_retry
    assert "[2001:db8::1]:9" in str(error)


# Names.


@pytest.fixture
def stuck_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event, list[int]]]:
    """The system's resolver hangs with one name; the events: it was asked; it may answer. Then: the port it finds."""
    asked, may_answer, port = threading.Event(), threading.Event(), [9]
    lookup = socket.getaddrinfo

    def hang(host: str, service: int, *arguments: Any) -> Any:
        if host != NAME:
            return lookup(host, service, *arguments)
        asked.set()
        may_answer.wait(PATIENCE)
        return lookup("127.0.0.1", port[0], *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked, may_answer, port
    may_answer.set()


def test_a_resolver_that_hangs_is_bounded(seen: Seen, stuck_resolver: Any) -> None:
    """Nothing interrupts the system's resolver, but the attempt ends after connect_timeout, and others follow."""
    with seen.listener(f"wss://{NAME}/", connect_timeout=0.2):
        seen.wait_errors(2)
    assert "no connection within 0.2 s" in str(seen.errors[0])
    assert [error.will_retry for error in seen.of_type(ConnectionFailed)[:2]] == [True, True]


def test_stop_while_the_resolver_hangs(seen: Seen, stuck_resolver: Any) -> None:
    """stop() does not wait for it, and when it answers after all nothing connects."""
    asked, may_answer, port = stuck_resolver
    with Peer(stay(tick(1))) as peer:
        port[0] = peer.port
        listener = seen.listener(f"ws://{NAME}/", connect_timeout=3_600.0, allow_insecure=True).start()
        assert asked.wait(PATIENCE)
        worker = next(
            thread for thread in threading.enumerate() if thread.name.startswith(f"{listener.name}-handshake")
        )
        assert listener.stop()
        may_answer.set()
        worker.join(PATIENCE)
        assert not worker.is_alive()
        assert peer.accepted == 0
    assert seen.errors == []


def test_functions_do_not_wait_for_a_resolver_that_hangs(stuck_resolver: Any) -> None:
    """A call ends within its timeout."""
    with (
        FunctionClient("demo", f"wss://{NAME}/", timeout=0.2) as client,
        pytest.raises(CallTimeout, match="still connecting"),
    ):
        client.tick_snap(PAIR)


def test_a_name_server_that_does_not_answer(tmp_path: Path) -> None:
    """With a real resolver that waits for a silent name server the attempt is bounded, and the process exits."""
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
        pytest.skip("no namespaces of our own on this machine (unshare), to change the name server in")
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


# Redirects.


@pytest.mark.parametrize("where", ["the same host", "another host", "http"])
@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent"])
def test_a_redirect_ends_the_listener_and_gives_no_key_away(seen: Seen, status: str, where: str) -> None:
    """The error says where to and what to do; nobody else gets a connection, and so not the key."""
    with Peer(stay()) as other:
        location = {
            "the same host": "/streamer/",
            "another host": other.url,
            "http": other.url.replace("ws:", "http:"),
        }[where]
        with Peer(refuse(status, f"Location: {location}\r\n")) as peer:
            error = ended_by(seen, peer.url, api_key="a-key-of-mine")
            assert (peer.accepted, other.accepted) == (1, 0)
    assert int(status[:3]) == error.status
    assert f"a redirect to {location!r} is not followed: a login page on the way, or a wrong endpoint=" in str(error)


# TLS.


def self_signed() -> ssl.SSLContext:
    """A server that vouches for itself."""
    context, itself = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
    with itself.cert_pem.tempfile() as certificate, itself.private_key_pem.tempfile() as key:
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
def test_a_bad_certificate_ends_the_listener(
    seen: Seen, authority: trustme.CA, trusting: ssl.SSLContext, name: str
) -> None:
    """It is refused with its fault, though the authority be trusted, and no request with the key is sent."""
    make, fault = CERTIFICATES[name]
    with Peer(stay(), context=make(authority)) as peer:
        error = ended_by(seen, peer.url, ssl_context=trusting)
        assert peer.requests == [b""]
    assert f"the certificate of 127.0.0.1:{peer.port} is refused" in str(error)
    assert fault in str(error).replace("self signed", "self-signed")


def test_a_private_authority_works_with_its_context(seen: Seen, theirs: ssl.SSLContext, trusting: Any) -> None:
    """What is refused by default is accepted with ssl_context."""
    with Peer(stay(tick(1)), context=theirs) as peer:
        assert ended_by(Seen(), peer.url).permanent
        with seen.listener(peer.url, ssl_context=trusting):
            seen.wait_ticks(1)
    assert seen.errors == []


def test_a_server_of_tls_1_0_is_refused(seen: Seen, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """What is no longer safe is not spoken, and the error says that it is TLS's version."""
    context = server_context(authority.issue_cert("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    with Peer(stay(), context=context) as peer:
        error = ended_by(seen, peer.url, ssl_context=trusting)
        assert peer.requests == [b""]
    assert "TLS with 127.0.0.1" in str(error)
    # OpenSSL's own word for it, which is another one in each version.
    assert any(word in str(error) for word in ("VERSION", "PROTOCOL", "legacy sigalg")), error


@pytest.mark.parametrize("end", [Caller.reset, Caller.leave])
def test_tls_that_is_cut_off_in_the_handshake_is_tried_again(
    seen: Seen, theirs: ssl.SSLContext, trusting: ssl.SSLContext, end: Callable[[Caller], None]
) -> None:
    """A reset, or the end of TCP, in the middle of the TLS handshake is no verdict on the server."""

    def cut_off(caller: Caller) -> None:
        caller.sock.recv(4_096)
        end(caller)

    def secured(caller: Caller) -> None:
        caller.sock = theirs.wrap_socket(caller.sock, server_side=True)
        stay(tick(1))(caller)

    with Peer(cut_off, secured) as peer:
        url = peer.url.replace("ws:", "wss:")
        with seen.listener(url, ssl_context=trusting):
            seen.wait_ticks(1)
    assert [error.will_retry for error in seen.of_type(ConnectionFailed)] == [True]


@pytest.fixture
def stored(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's certificate in a file."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def test_a_missing_file_of_authorities_is_what_the_error_names(
    seen: Seen, theirs: ssl.SSLContext, trusting: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With nothing to verify with the server's certificate is not to blame; a context of the user's own still works."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authorities.pem")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with Peer(stay(tick(1)), context=theirs) as peer:
        error = ended_by(Seen(), peer.url)
        (tmp_path / "empty.pem").touch()
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "empty.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
        second = ended_by(Seen(), peer.url)
        with seen.listener(peer.url, ssl_context=trusting):
            seen.wait_ticks(1)
    assert "the file '/nowhere/authorities.pem' does not exist" in str(error)
    assert "SSL_CERT_FILE, or pass ssl_context=" in str(error)
    assert "empty.pem' holds none" in str(second)


def test_the_systems_file_of_authorities_is_used(
    seen: Seen, theirs: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, stored: Path
) -> None:
    """A private authority that the system knows needs no ssl_context."""
    monkeypatch.setenv("SSL_CERT_FILE", str(stored))
    with Peer(stay(tick(1)), context=theirs) as peer, seen.listener(peer.url):
        seen.wait_ticks(1)


# Descriptors.


def run_starved(url: str, left: int, first: int, **environment: str) -> list[str]:
    """What a listener prints that has `left` descriptors from attempt `first` on, and after two errors enough again."""
    child = run_program("scarcity", "few_descriptors", url, left, first, **environment)
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout.splitlines()


def test_descriptors_that_run_out_are_waited_for() -> None:
    """Attempts without a descriptor fail, are tried again, and succeed when there are some again."""

    def leave(caller: Caller) -> None:
        caller.welcome(tick(1))
        caller.leave()

    with Peer(leave, stay(tick(2))) as peer:
        told = run_starved(peer.url, 0, 2)
    assert told[0] == "tick"
    assert told[-1] == "tick"
    assert "without a close frame" in told[1]
    assert len([line for line in told if "too many open files" in line and "next attempt in" in line]) == 3


def test_a_last_descriptor_is_no_fault_of_the_certificate(theirs: ssl.SSLContext, stored: Path) -> None:
    """With one descriptor for the socket, and none to read the authority's file, the certificate is not refused."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine, to name a certificate by its hash")
    command = [openssl, "x509", "-noout", "-hash", "-in", str(stored)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    stored.rename(stored.with_name(f"{name}.0"))
    folder = {"SSL_CERT_FILE": "/nowhere.pem", "SSL_CERT_DIR": str(stored.parent)}

    def cut_off(caller: Caller) -> None:
        caller.sock.recv(4_096)
        caller.leave()

    def secured(caller: Caller) -> None:
        caller.sock = theirs.wrap_socket(caller.sock, server_side=True)
        stay(tick(1))(caller)

    # None left when the context is made; then, after an attempt that got no certificate, when it is to be verified.
    for first, scripts in ((1, [secured]), (2, [cut_off, secured])):
        with Peer(*scripts) as peer:
            told = run_starved(peer.url.replace("ws:", "wss:"), 1, first, **folder)
        assert told[-1] == "tick"
        assert len([line for line in told if "too many open files" in line and "next attempt in" in line]) == 3, told


# Keys.


def test_a_key_callable_that_hangs_is_bounded(seen: Seen) -> None:
    """The attempt ends after connect_timeout, a next one asks again, and no connection is made for the late answer."""
    free = threading.Event()
    calls: list[int] = []

    def key() -> str:
        calls.append(1)
        if len(calls) == 1:
            free.wait(PATIENCE)
            return "late"
        return "in-time"

    with Peer(stay(tick(1))) as peer:
        with seen.listener(peer.url, api_key=key, connect_timeout=0.3) as listener:
            seen.wait_ticks(1)
            worker = next(t for t in threading.enumerate() if t.name.startswith(f"{listener.name}-handshake"))
            free.set()
            worker.join(PATIENCE)
            assert not worker.is_alive()
        assert [request.split(b"\r\n")[0] for request in peer.requests] == [b"GET /streaming/in-time/BTC:USDC HTTP/1.1"]
    stuck = "no connection within 0.3 s: name resolution or the api_key callable hangs"
    assert [stuck] == [error.reason for error in seen.of_type(ConnectionFailed)]


def test_a_port_that_refuses_is_told_as_that(seen: Seen) -> None:
    """Nobody listens: the system's word for it, and another attempt."""
    port = free_port()
    with seen.listener(f"ws://127.0.0.1:{port}/", reconnect=NEVER_AGAIN):
        seen.wait_errors(1)
    assert f"127.0.0.1:{port}: connection refused" in str(seen.errors[0])
    with contextlib.suppress(IndexError):
        assert seen.of_type(ConnectionFailed)[0].will_retry
