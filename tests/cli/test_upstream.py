"""`finx-streamer serve --upstream`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finx_streamer import Endpoint, State, StreamListener
from finx_streamer.server import LocalServer
from tests.support.cli import KEY, run, running, wait_until
from tests.support.market import PAIR, Market, prices, send
from tests.support.peers import Seen, free_port


@pytest.fixture
def upstream() -> Iterator[LocalServer]:
    with LocalServer(Market(PAIR), keys={KEY}, close_timeout=0.2) as server:
        yield server


def test_it_relays_to_its_own_keys(upstream: LocalServer, seen: Seen, tmp_path: Path) -> None:
    """The upstream's key isn't accepted, and is in no output and in no log."""
    keys, log = tmp_path / "keys", tmp_path / "requests.jsonl"
    keys.write_text("key-of-a-colleague\n")
    options = ["--port", "0", "--keys-file", str(keys), "--request-log", str(log), "--log-level", "debug"]
    dead = f"ws://127.0.0.1:{free_port()}/"
    with running("serve", PAIR, "--upstream", dead, "--upstream", upstream.url, *options) as command:
        shown = [command.stdout.readline() for _ in range(3)]
        url = shown[0].split()[-1]
        assert shown[1] == f"pairs:   {PAIR}\n"
        upstream.wait_connected()
        assert upstream.stats.connections == 1
        with seen.listener(url, api_key="key-of-a-colleague"):
            # Until the stream is open, no tick is for it.
            seen.wait_for(lambda: len(seen.states) == 2)
            send(upstream, 1, 2)
            seen.wait_ticks(2)
        refused = run("listen", PAIR, "--endpoint", url)
        assert (refused.returncode, "the API key was refused" in refused.stderr) == (1, True)
        command.send_signal()
        code, out, err = command.finish()
    assert prices(seen) == [1, 2]
    assert (code, out) == (0, "")
    assert f"{dead.split('/')[2]}: connection refused" in err
    assert KEY not in "".join(shown) + err + log.read_text()


def test_a_rejected_key_ends_it(upstream: LocalServer) -> None:
    """With one line that says so, instead of a server without ticks."""
    result = run("serve", PAIR, "--upstream", upstream.url, "--port", "0", FINX_API_KEY="the-wrong-key-of-the-firm")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "finx-streamer: error: the upstream: the API key was refused: the server answered 401"
    )
    assert "Traceback" not in result.stderr
    assert "wrong-key" not in result.stdout + result.stderr


def test_history_from_a_time_on_is_stored(upstream: LocalServer, seen: Seen) -> None:
    """And the wire of the upstream can be chosen."""
    send(upstream, *range(1, 11))
    options = ["--since", "2022-07-02T15:30:00.050Z", "--wire", "url", "--port", "0"]
    with running("serve", PAIR, "--upstream", upstream.url, *options) as command:
        url = command.stdout.readline().split()[-1]
        upstream.wait_connected()
        assert upstream.stats.symbols == {PAIR: 1}
        with seen.listener(url):
            seen.wait_for(lambda: len(seen.states) == 2)
            send(upstream, 11)
            seen.wait_for(lambda: 11 in prices(seen))  # the history comes before it
        ask = ("history", PAIR, "--start", "2022-07-02", "--endpoint", url)
        result = run(*ask, FINX_API_KEY="demo")
    assert result.returncode == 0, result.stderr
    found = [json.loads(line)["price"] for line in result.stdout.splitlines()]
    assert found == [f"{19_200 + number}.50" for number in range(5, 12)]


@pytest.mark.parametrize("wire", ["url", "subscribe"])
def test_a_relay_that_is_killed_costs_no_tick(upstream: LocalServer, seen: Seen, wire: Any) -> None:
    """Its clients go on at another relay of the same upstream, while ticks keep coming."""
    relay = ("serve", PAIR, "--upstream", upstream.url, "--port", "0")
    with running(*relay) as first, running(*relay) as second:
        urls = [each.stdout.readline().split()[-1] for each in (first, second)]
        upstream.wait_connected(2)
        endpoint: Any = [Endpoint(url, wire=wire) for url in urls]
        other = StreamListener(PAIR, endpoint=urls[1], api_key="demo")
        with seen.listener(endpoint, backfill=True), other:
            seen.wait_for(lambda: (PAIR, State.STREAMING) in seen.states)
            wait_until(lambda: other.stats.state is State.STREAMING, "the other relay has accepted a client")
            for number in range(1, 301):
                send(upstream, number)
                if number == 100:
                    seen.wait_ticks(1)
                    # A relay that lags behind would send ticks again.
                    wait_until(lambda: other.stats.ticks == 100, "the other relay is as far")
                    first.process.kill()
                elif number == 200:
                    seen.wait_for(lambda: seen.gaps)
            seen.wait_ticks(300)
    assert prices(seen) == list(range(1, 301))
    assert [gap.filled for gap in seen.gaps] == [True]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--upstream", "production"], "--upstream needs pairs, as in --upstream production BTC:USDC"),
        ([PAIR, "--upstream", "production", "--live"], "--live can't be used with --upstream"),
        ([PAIR, "--upstream", "production", "--tape", "t.jsonl"], "--tape can't be used with --upstream"),
        ([PAIR, "--upstream", "gamma"], "error: --upstream: 'gamma' is unknown"),
        ([PAIR, "--upstream", "ws://example.com/"], "would send the API key in clear text"),
        ([PAIR, "--upstream", "beta", "--upstream", "demo"], "'demo' can't be in a list"),
        (["--since", "1h"], "--since can only be used with --upstream"),
        (["--wire", "url"], "--wire can only be used with --upstream"),
    ],
)
def test_contradictory_options_are_refused(arguments: list[str], hint: str) -> None:
    result = run("serve", "--port", "0", *arguments)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert hint in result.stderr


def test_no_key_is_wrong_usage() -> None:
    result = run("serve", PAIR, "--upstream", "production", FINX_API_KEY="")
    assert (result.returncode, result.stderr) == (
        2,
        "finx-streamer: error: no API key: set FINX_API_KEY, or pass --api-key-file FILE\n",
    )
