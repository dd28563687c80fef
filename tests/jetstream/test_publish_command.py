"""`finx-streamer publish` as a process, with a real NATS server: killed, restarted, and refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from nats.js.api import StreamConfig

from finx_streamer.server import LocalServer
from tests.support.cli import KEY, Running, run, run_in_terminal, running
from tests.support.nats import NatsServer
from tests.support.publishing import Script, ask, check_log, read_log, ticks_now, wait_for

PAIR, OTHER = "BTC:USDC", "ETH:USDC"


@pytest.fixture
def source() -> Script:
    return Script(PAIR, OTHER)


@pytest.fixture
def server(source: Script) -> Iterator[LocalServer]:
    with LocalServer(source, keys={KEY: 1}) as server:
        yield server


def arguments(nats_server: NatsServer, server: LocalServer, *more: str) -> list[str]:
    return ["publish", PAIR, OTHER, "--to", nats_server.url, "--endpoint", server.url, *more]


def has_begun(server: LocalServer, publishers: int = 1) -> None:
    server.wait_until(lambda stats: stats.streams == 2 * publishers)


def send_many(source: Script) -> None:
    """Send equal ticks. History can't have 1,000 ticks of one millisecond."""
    for part in range(10):
        source.send(ticks_now(100, first=100 * part) * 2)


def kill(command: Running, server: LocalServer, left: int = 0) -> None:
    command.send_signal(signal.SIGKILL)
    command.wait()
    server.wait_until(lambda stats: stats.streams == 2 * left)


def test_it_publishes_until_ctrl_c(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """And says how many ticks there were."""
    with running(*arguments(nats_server, server)) as command:
        has_begun(server)
        source.send(ticks_now(3) + ticks_now(2, OTHER))
        check_log(nats_server.url, source)
        command.send_signal()
        code, out, err = command.finish()
    assert (code, out) == (0, "")
    assert re.fullmatch(
        r"finx-streamer: 5 ticks published, 0 known already, 0 waiting, 0 lost, 0 gaps, in [\d.]+ s; "
        r"0 reconnects, 0 errors\n",
        err,
    )


def test_in_a_terminal_it_shows_its_progress(nats_server: NatsServer, server: LocalServer) -> None:
    shown, code = run_in_terminal(*arguments(nats_server, server), ctrl_c_after="0 gaps, 0 ticks/s")
    assert code == 0
    assert "0 ticks published, 0 known already, 0 waiting, 0 lost, 0 gaps, 0 ticks/s" in shown


def test_a_kill_in_mid_stream_loses_nothing(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """What was missed meanwhile comes from history, once."""
    for number in range(3):
        with running(*arguments(nats_server, server)) as command:
            has_begun(server)
            for part in range(10):
                source.send(ticks_now(200, first=number * 10_000 + part * 100) + ticks_now(20, OTHER) * 2)
            kill(command, server)
            source.send(ticks_now(50))
    with running(*arguments(nats_server, server)):
        has_begun(server)
        source.send(ticks_now(1))
        check_log(nats_server.url, source)


def test_two_that_are_killed_in_turn_lose_nothing(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """And both at once."""
    options = arguments(nats_server, server)
    with running(*options) as first, running(*options) as second:
        has_begun(server, 2)
        send_many(source)
        kill(first, server, 1)
        send_many(source)
        with running(*options) as third:
            has_begun(server, 2)
            send_many(source)
            kill(second, server, 1)
            kill(third, server)
    source.send(ticks_now(100) * 2)
    with running(*options), running(*options):
        has_begun(server, 2)
        source.send(ticks_now(100) * 2)
        check_log(nats_server.url, source)


def test_it_starts_while_nats_is_away(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    """It says so, waits, and Ctrl-C still ends it."""
    nats_server.kill()
    with running(*arguments(nats_server, server)) as command:
        assert "can't be reached: Connection refused; ticks wait" in command.stderr.readline()
        nats_server.start()
        has_begun(server)
        source.send(ticks_now(1))
        check_log(nats_server.url, source)
        command.send_signal()
        assert command.wait() == 0
    nats_server.kill()
    with running(*arguments(nats_server, server)) as command:
        assert "can't be reached" in command.stderr.readline()
        command.send_signal(signal.SIGTERM)
        assert command.wait() == 0


def test_it_says_when_nats_goes_and_comes_back(nats_server: NatsServer, source: Script, server: LocalServer) -> None:
    with running(*arguments(nats_server, server)) as command:
        has_begun(server)
        nats_server.kill()
        assert command.stderr.readline() == "finx-streamer: publishing: NATS: the connection was lost; ticks wait\n"
        source.send(ticks_now(1))
        nats_server.start()
        assert command.stderr.readline() == "finx-streamer: publishing: NATS accepts ticks again\n"
        check_log(nats_server.url, source)


def test_the_options_set_up_the_stream(nats_server: NatsServer, server: LocalServer) -> None:
    options = ["--stream", "TICKS", "--max-age", "12h", "--max-bytes", "20MB", "--replicas", "1"]
    with running(*arguments(nats_server, server, *options)):
        has_begun(server)
        config = ask(nats_server.url, lambda client: client.jetstream().stream_info("TICKS")).config
        assert (config.max_age, config.max_bytes, config.num_replicas) == (43_200, 20_000_000, 1)
        assert (config.subjects, config.duplicate_window) == (["finx.v1.>"], 120)


def test_a_stream_with_other_settings_is_refused(nats_server: NatsServer, server: LocalServer) -> None:
    """The message names each difference. Settings that weren't given aren't compared."""
    config = StreamConfig(name="FINX", subjects=["finx.>"], max_age=3_600, max_bytes=1_000_000)
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    done = run(*arguments(nats_server, server, "--max-age", "1d", "--max-bytes", "2MB"))
    assert done.returncode == 2
    assert done.stderr.startswith("finx-streamer: error: stream FINX has other settings: max_age: ")
    assert "max_bytes: 1000000 instead of 2000000; change it with nats stream edit FINX" in done.stderr
    with running(*arguments(nats_server, server, "--max-age", "1h")):
        has_begun(server)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (StreamConfig(name="FINX", subjects=["finx.v1.ticks.>"]), "which don't include finx.v1.>"),
        (StreamConfig(name="FINX", subjects=["finx.v1.>"], no_ack=True), "sends no acknowledgements"),
        (StreamConfig(name="OTHER", subjects=["finx.v1.ticks.>"]), "subjects overlap"),
    ],
)
def test_an_unsuitable_stream_is_refused(
    config: StreamConfig, problem: str, nats_server: NatsServer, server: LocalServer
) -> None:
    ask(nats_server.url, lambda client: client.jetstream().add_stream(config))
    done = run(*arguments(nats_server, server))
    assert done.returncode == 2
    assert problem in done.stderr


def test_more_replicas_than_servers_are_refused(nats_server: NatsServer, server: LocalServer) -> None:
    done = run(*arguments(nats_server, server, "--replicas", "3"))
    assert done.returncode == 2
    assert "stream FINX can't be created: replicas > 1 not supported in non-clustered mode" in done.stderr


def test_nats_without_jetstream_is_refused(tmp_path: Path, server: LocalServer) -> None:
    with NatsServer(tmp_path / "plain", jetstream=None) as plain:
        done = run(*arguments(plain, server))
    assert done.returncode == 2
    assert "NATS has no JetStream here; start nats-server with -js" in done.stderr


def test_a_password_comes_from_the_environment(tmp_path: Path, source: Script, server: LocalServer) -> None:
    """A wrong one is refused, and none is shown."""
    secret = "s3cret-of-nats"
    with NatsServer(tmp_path / "n", config=f"authorization {{ user: finx, password: {secret} }}") as nats_server:
        for wrong in ({}, {"NATS_USER": "finx", "NATS_PASSWORD": "wr0ng"}):
            done = run(*arguments(nats_server, server), **wrong)
            assert done.returncode == 1
            assert f"NATS at {nats_server.url} refuses the credentials" in done.stderr
            assert "wr0ng" not in done.stderr
        with running(*arguments(nats_server, server), NATS_USER="finx", NATS_PASSWORD=secret) as command:
            has_begun(server)
            source.send(ticks_now(1))
            wait_for(lambda: read_log(nats_server.url, user="finx", password=secret))
            assert secret not in Path(f"/proc/{command.process.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--to", "nats://user:password@127.0.0.1"], "must not contain a user, password or token"),
        (["--to", "http://127.0.0.1"], "expected nats://HOST[:PORT] or tls://HOST[:PORT]"),
        (["--to", "nats://127.0.0.1", "--max-age", "x"], "--max-age: 'x' is not allowed"),
        (["--to", "nats://127.0.0.1", "--max-bytes", "x"], "--max-bytes: 'x' is not allowed"),
        (["--to", "nats://127.0.0.1", "--stream", "a.b"], "stream: 'a.b' is not allowed"),
    ],
)
def test_wrong_options_are_refused(options: list[str], problem: str) -> None:
    done = run("publish", PAIR, *options)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_wrong_key_ends_it(nats_server: NatsServer, server: LocalServer) -> None:
    done = run(*arguments(nats_server, server), FINX_API_KEY="wrong")
    assert done.returncode == 1
    assert "error:" in done.stderr
