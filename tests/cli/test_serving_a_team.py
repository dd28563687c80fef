"""`finx-streamer serve` for a team: TLS, keys, limits, the request log and the bounds of the store."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pty
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from finx_streamer.server import LocalServer
from tests.support.cli import COMMAND, TIMEOUT, Running, environment, run, running, wait_until
from tests.support.tls import peer_context

Dial = Callable[..., ClientConnection]

ALICE, BOB = "the-secret-key-of-alice", "the-secret-key-of-bob"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority that issues the certificates."""
    return trustme.CA()


class Files:
    """The files of a server, private and valid."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.keys, self.log = folder / "keys", folder / "requests.jsonl"
        self._authority = authority
        self.issue()
        self.write_keys(ALICE, "", BOB)

    def issue(self, *names: str) -> None:
        """Replace the certificate and its key."""
        issued = self._authority.issue_cert("127.0.0.1", *names)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)

    def write_keys(self, *lines: str) -> None:
        self.keys.write_text("\n".join(lines))
        self.keys.chmod(0o600)

    @property
    def options(self) -> list[str]:
        named = {"tls-cert": self.certificate, "tls-key": self.key, "keys-file": self.keys, "request-log": self.log}
        return ["serve", "--port", "0", *(part for name, file in named.items() for part in (f"--{name}", str(file)))]


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """What clients trust."""
    return peer_context(authority)


@pytest.fixture
def serving(files: Files) -> Iterator[tuple[Running, str]]:
    """A server with all files, and its URL."""
    with running(*files.options) as command:
        yield command, command.stdout.readline().split()[-1]


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Connects to a server. All connections are closed at the end."""
    with contextlib.ExitStack() as stack:

        def dial(url: str, key: str, trust: ssl.SSLContext | None = None, path: str = "/BTC:USDC") -> ClientConnection:
            return stack.enter_context(connect(f"{url}streaming/{key}{path}", ssl=trust, proxy=None))

        yield dial


def names_of(url: str, trust: ssl.SSLContext) -> list[str]:
    """The names in the certificate that a new connection gets."""
    with connect(f"{url}streaming/{ALICE}", ssl=trust, proxy=None) as peer:
        assert isinstance(peer.socket, ssl.SSLSocket)
        return [name for kind, name in peer.socket.getpeercert()["subjectAltName"] if kind == "DNS"]


def reload(command: Running, lines: int) -> list[str]:
    """Send SIGHUP, and return what the server says about it."""
    command.send_signal(signal.SIGHUP)
    return [command.stderr.readline().removeprefix("finx-streamer: ").rstrip() for _ in range(lines)]


def test_serves_over_tls(serving: tuple[Running, str], trust: ssl.SSLContext, dial: Dial) -> None:
    """Clients verify the certificate. The example has a placeholder for a name in it."""
    command, url = serving
    assert url.startswith("wss://127.0.0.1:")
    assert json.loads(dial(url, BOB, trust).recv(timeout=TIMEOUT))["resultData"]["pair"] == "BTC:USDC"
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(url, BOB, ssl.create_default_context())
    command.stdout.readline()
    assert "--endpoint wss://HOST:" in command.stdout.readline()
    command.send_signal()
    assert command.finish()[::2] == (0, "finx-streamer: stopped\n")


def test_sighup_reloads_everything(
    files: Files, serving: tuple[Running, str], trust: ssl.SSLContext, dial: Dial
) -> None:
    """Open connections go on, except those of removed keys. New ones get the new certificate."""
    command, url = serving
    kept, gone = dial(url, ALICE, trust), dial(url, BOB, trust)
    assert names_of(url, trust) == []
    files.issue("new.example")
    files.write_keys(ALICE, "another-secret")
    files.log.rename(files.log.with_suffix(".1"))
    assert reload(command, 3) == [
        "reloaded 2 API keys; 1 connection closed",
        "reloaded the certificate",
        "reopened the request log",
    ]
    assert names_of(url, trust) == ["new.example"]
    with contextlib.suppress(ConnectionClosed):
        while gone.recv(timeout=TIMEOUT):
            pass
    assert gone.close_code == 1008
    for key in (BOB, "nonsense"):
        with pytest.raises(InvalidStatus):
            dial(url, key, trust)
    dial(url, "another-secret", trust).close()
    for _ in range(100):
        kept.recv(timeout=TIMEOUT)
    kept.close()
    command.send_signal(signal.SIGTERM)
    assert command.finish()[0] == 0
    new, old = (file.read_text() for file in (files.log, files.log.with_suffix(".1")))
    assert '"status": 101' in old
    assert {line["key"] for line in map(json.loads, (old + new).splitlines())} == {None, 1, 2, 3}
    for secret in (ALICE, BOB, "another-secret", "nonsense"):
        assert secret not in new + old


@pytest.mark.parametrize(
    ("breaks", "says", "stays"),
    [
        ("keys", "--keys-file {keys}: the file has no keys; expected one per line", "keys stay"),
        ("no keys", "--keys-file {keys}: No such file or directory", "keys stay"),
        ("key", "--tls-key {key}: the file isn't a private key in PEM format", "certificate stays"),
        (
            "pair",
            "--tls-key {key}: the key isn't the one of the certificate {certificate}",
            "certificate stays",
        ),
        ("no certificate", "--tls-cert {certificate}: No such file or directory", "certificate stays"),
    ],
)
def test_sighup_keeps_what_it_cannot_replace(
    files: Files, serving: tuple[Running, str], trust: ssl.SSLContext, breaks: str, says: str, stays: str
) -> None:
    """One line says what is wrong. Everything else is reloaded, and the next SIGHUP can correct it."""
    command, url = serving
    files.issue("new.example")
    match breaks:
        case "keys":
            files.keys.write_text("\n \n")
        case "no keys":
            files.keys.unlink()
        case "key":
            files.key.write_text("rubbish")
        case "pair":
            before = files.key.read_bytes()
            files.issue("new.example")
            files.key.write_bytes(before)
        case _:
            files.certificate.unlink()
    lines = reload(command, 3)
    assert f"error: {says.format(**vars(files))}; the earlier {stays} in use" in lines
    assert sum(line.startswith("error") for line in lines) == 1
    assert names_of(url, trust) == (["new.example"] if "keys" in breaks else [])
    files.issue("newest.example")
    files.write_keys(ALICE, BOB)
    assert reload(command, 3)[0] == "reloaded 2 API keys; 0 connections closed"
    assert names_of(url, trust) == ["newest.example"]


def test_many_sighups_drop_no_connection(
    files: Files, serving: tuple[Running, str], trust: ssl.SSLContext, dial: Dial
) -> None:
    """Also in the middle of handshakes."""
    command, url = serving
    peer = dial(url, BOB, trust)
    for _ in range(30):
        command.send_signal(signal.SIGHUP)
        assert names_of(url, trust) == []
        peer.recv(timeout=TIMEOUT)
    command.send_signal()
    assert command.finish()[0] == 0


def test_sighup_without_files_ends_nothing(dial: Dial) -> None:
    """`kill -HUP` means reload, also if there is nothing to reload."""
    with running("serve", "--port", "0") as command:
        url = command.stdout.readline().split()[-1]
        peer = dial(url, "demo")
        command.send_signal(signal.SIGHUP)
        for _ in range(20):
            peer.recv(timeout=TIMEOUT)
        command.send_signal()
        assert command.finish()[::2] == (0, "finx-streamer: stopped\n")


def test_a_closed_terminal_ends_the_server(tmp_path: Path, dial: Dial) -> None:
    """It would otherwise run on unseen: the system sends SIGHUP for that, too."""
    output = tmp_path / "output"
    if shutil.which("setsid") is None:
        pytest.skip("setsid is not installed; it gives a process a terminal")
    leader, follower = pty.openpty()
    with output.open("w") as file:
        command = ["setsid", "--ctty", *COMMAND, "serve", "--port", "0"]
        process = subprocess.Popen(command, stdin=follower, stdout=file, stderr=file, env=environment())
    os.close(follower)
    try:
        wait_until(lambda: "listen:" in output.read_text(), "the server runs")
        process.send_signal(signal.SIGHUP)  # the terminal is still there
        dial(output.read_text().split()[1], "demo").recv(timeout=TIMEOUT)
        os.close(leader)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
    assert output.read_text().endswith("finx-streamer: stopped\n")


def test_the_request_log_on_standard_output(files: Files, dial: Dial) -> None:
    """It has nothing else, so that a program can read it."""
    with running("serve", "--port", "0", "--keys-file", str(files.keys), "--request-log", "-") as command:
        url, *_ = [command.stderr.readline().split()[-1] for _ in range(3)]
        peer = dial(url, BOB)
        peer.recv(timeout=TIMEOUT)
        peer.close()
        with pytest.raises(InvalidStatus):
            dial(url, "nonsense")
        command.send_signal(signal.SIGHUP)
        assert command.stderr.readline() == "finx-streamer: reloaded 2 API keys; 0 connections closed\n"
        command.send_signal()
        code, out, err = command.finish()
    assert (code, err) == (0, "finx-streamer: stopped\n")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["handshake", "end", "handshake"]


def test_a_request_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """The command line was right, so the exit code is 1."""
    result = run("serve", "--port", "0", "--request-log", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"finx-streamer: error: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "", "myhost.example"])
def test_clear_text_beyond_loopback_is_refused(host: str) -> None:
    """Before anything is opened. The error says what to do."""
    result = run("serve", "--port", "0", "--host", host)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "other machines would send their API keys in clear text; pass --tls-cert and --tls-key" in result.stderr
    assert "--allow-insecure" in result.stderr


def test_tls_beyond_loopback_is_allowed(files: Files, trust: ssl.SSLContext, dial: Dial) -> None:
    """With a keys file, there is no warning about the key demo."""
    with running(*files.options, "--host", "0.0.0.0") as command:
        url = command.stdout.readline().split()[-1]
        dial(url, ALICE, trust).recv(timeout=TIMEOUT)
        command.send_signal()
        _, _, err = command.finish()
    assert "API key demo" not in err


def test_limits_are_options(files: Files, dial: Dial) -> None:
    """The answer says which limit it is."""
    limits = ["--max-connections", "3", "--max-connections-per-key", "2", "--max-connections-per-address", "3"]
    with running("serve", "--port", "0", "--keys-file", str(files.keys), *limits) as command:
        url = command.stdout.readline().split()[-1]
        for _ in range(2):
            dial(url, ALICE)
        with pytest.raises(InvalidStatus) as caught:
            dial(url, ALICE)
        assert b"with this key; the limit is 2" in caught.value.response.body
        dial(url, BOB)
        with pytest.raises(InvalidStatus) as caught:
            dial(url, BOB)
        assert b"to this server; the limit is 3" in caught.value.response.body


def test_the_defaults_are_those_of_the_class() -> None:
    """`--help` shows them."""
    shown = re.sub(r"\s+", " ", run("serve", "--help").stdout)
    for name in ("max_connections", "max_connections_per_key", "max_connections_per_address"):
        default = inspect.signature(LocalServer).parameters[name].default
        option = shown[shown.index(f"--{name.replace('_', '-')} ") :]
        assert f"[default: {default};" in option[: option.index("--", 2)]


def test_the_store_is_bounded(tmp_path: Path, dial: Dial) -> None:
    """By age and by size, while the market plays."""
    store = tmp_path / "ticks.db"
    bounds = ["--store-age", "1s", "--store-size", "1MB"]
    with running("serve", "--port", "0", "--rate", "2000", "--store", str(store), *bounds) as command:
        url = command.stdout.readline().split()[-1]
        with dial(url, "demo", path="") as peer:
            call: dict[str, Any] = {"functionName": "referenceData", "APIKey": "demo", "securityId": "BTC:USDC"}

            def first_tick() -> str:
                peer.send(json.dumps(call))
                first = json.loads(peer.recv(timeout=TIMEOUT)).get("firstTick") or {"time": ""}
                return str(first["time"])

            begin = time.monotonic()
            while not (first := first_tick()):
                assert time.monotonic() - begin < TIMEOUT
            while first_tick() == first:
                assert time.monotonic() - begin < TIMEOUT
                time.sleep(0.05)
        command.send_signal()
        assert command.finish()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together; pass both"),
        (["--tls-key", "key.pem"], "--tls-cert and --tls-key belong together; pass both"),
        (["--tls-cert", "none", "--tls-key", "none"], "--tls-cert none: No such file or directory"),
        (["--tls-cert", __file__, "--tls-key", "none"], "the file isn't a certificate in PEM format"),
        (["--store-age", "7"], "--store-age: '7' is not allowed; expected a duration such as 12h, 7d or 4w"),
        (["--store-age", "0d"], "--store-age: '0d' is not allowed"),
        (["--store-age", "9" * 400 + "w"], "is not allowed"),
        (["--store-size", "2"], "--store-size: '2' is not allowed; expected a size such as 500MB or 2GB"),
        (["--store-size", "10KB"], "10000; expected 1,000,000 or more"),
        (["--max-connections", "0"], "--max-connections"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], hint: str) -> None:
    """The exit code says that the command line is wrong."""
    result = run("serve", "--port", "0", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert hint in re.sub(r"\s+", " ", result.stderr)


def test_unusable_tls_files_are_told_apart(files: Files) -> None:
    """A key that belongs to another certificate, that is encrypted or damaged, and files in each other's place."""
    old_key = files.key.read_bytes()
    files.issue()
    new_key = files.key.read_bytes()
    files.key.write_bytes(old_key)
    result = run(*files.options)
    assert result.stderr == (
        f"finx-streamer: error: --tls-key {files.key}: the key isn't the one of the certificate {files.certificate}\n"
    )
    files.key.write_bytes(new_key[: len(new_key) // 2])
    result = run(*files.options)
    assert (result.returncode, result.stderr.count("\n"), "unusable" in result.stderr) == (2, 1, True)
    files.key.write_bytes(files.certificate.read_bytes())
    assert "the file isn't a private key in PEM format" in run(*files.options).stderr
    files.key.write_bytes(new_key)
    key = serialization.load_pem_private_key(new_key, None)
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(*formats, serialization.BestAvailableEncryption(b"secret")))
    result = run(*files.options)
    assert result.returncode == 2
    assert result.stderr.endswith(f"--tls-key {files.key}: the key is encrypted; expected one without a passphrase\n")


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, False), (0o644, True)])
def test_warns_about_a_key_that_others_can_read(files: Files, mode: int, warns: bool) -> None:
    """The group may read it, as is usual for certificates."""
    files.key.chmod(mode)
    with running(*files.options) as command:
        command.stdout.readline()
        command.send_signal()
        _, _, err = command.finish()
    assert (f"warning: --tls-key {files.key}: other users can read or change this file" in err) == warns
