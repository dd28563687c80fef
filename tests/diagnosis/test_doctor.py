"""`doctor` in the situations that users meet: each has its finding, and its advice."""

from __future__ import annotations

import datetime
import email.utils
import json
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from finx_streamer import ConfigurationError, doctor
from finx_streamer.diagnosis.limits import within
from finx_streamer.diagnosis.report import Check, Report, Verdict
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.cli import run
from tests.support.peers import PAIR, Caller, Peer, frame, free_port, refuse
from tests.support.tls import client_context, server_context

NETWORK = ["DNS", "TCP", "TLS", "handshake", "clock", "tick history"]


def found(report: Report) -> dict[str, Check]:
    """The checks by their names."""
    return {check.name: check for check in report.checks}


def verdicts(report: Report) -> list[str]:
    """The verdicts of the network checks."""
    return [found(report)[name].verdict.value for name in NETWORK]


def examine(url: str, **arguments: Any) -> Report:
    return doctor(endpoint=url, **{"api_key": "doctor-key"} | arguments)


def test_all_is_well_with_the_demo() -> None:
    """It takes no key and no network, and confirms what the local server does as we assume."""
    report = doctor(endpoint="demo")
    assert report.ok
    assert {check.verdict for check in report.checks} <= {Verdict.OK, Verdict.NOTE}
    assert found(report)["API key"].found == "not needed"
    said = {check.name: check.found.partition(":")[0] for check in report.assumptions}
    assert said == {
        "streams under streaming/ (S)": "confirmed",
        "streams under streamer/ (D)": "confirmed",
        "enveloped ticks (S)": "confirmed",
        "second wire (D)": "confirmed",
        "keepAlive answer (D)": "confirmed",
        "unknown function (O)": "confirmed",
        "unknown pair is 404 (O)": "confirmed",
        "wrong key is 401 (O)": "refuted",
        "snap: at or before (D)": "confirmed",
        "page of 1,000 ticks (D)": "confirmed",
        "history: strictly after (O)": "confirmed",
        "closed after 300 s (D)": "not seen",
    }
    assert str(report).endswith("all is well")
    assert json.loads(report.to_json())["checks"][0]["name"] == "endpoint"


def test_no_server() -> None:
    """TCP fails, and the rest is skipped."""
    report = examine(f"ws://127.0.0.1:{free_port()}/")
    assert not report.ok
    assert verdicts(report) == ["ok", "failed", "skipped", "skipped", "skipped", "skipped"]
    assert "connection refused" in found(report)["TCP"].found
    assert report.assumptions == ()


def test_no_network() -> None:
    """A name that can't be resolved."""
    report = examine("wss://no-such-host.invalid/")
    assert verdicts(report) == ["failed", "skipped", "skipped", "skipped", "skipped", "skipped"]
    assert found(report)["DNS"].advice == "Check the network, and the host in the endpoint or proxy."


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to connect with."""
    monkeypatch.delenv("FINX_API_KEY", raising=False)
    report = doctor(endpoint="ws://127.0.0.1:9/")
    assert [check.name for check in report.checks if check.verdict is Verdict.FAILED] == ["API key"]
    assert report.checks[-1].name == "API key"


def test_a_wrong_key() -> None:
    """It is refused in the handshake, and never shown."""
    with LocalServer(SimulatedMarket([PAIR]), keys={"another"}) as server:
        report = examine(server.url)
    handshake = found(report)["handshake"]
    assert (handshake.verdict, handshake.advice[:18]) == (Verdict.FAILED, "Check the API key.")
    assert "401" in handshake.found
    assert "doctor-key" not in f"{report}{report.to_json()}"


def test_an_expired_certificate() -> None:
    """The advice names the clock, too."""
    authority = trustme.CA()
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    expired = authority.issue_cert("127.0.0.1", not_before=yesterday - datetime.timedelta(9), not_after=yesterday)
    with LocalServer(SimulatedMarket([PAIR]), ssl_context=server_context(expired)) as server:
        report = examine(server.url, ssl_context=client_context(authority))
    tls = found(report)["TLS"]
    assert tls.verdict is Verdict.FAILED
    assert "expired" in tls.found
    assert tls.advice == "The certificate has expired, or this machine's clock is wrong."


def test_tls_that_works() -> None:
    """The protocol and the certificate's end are shown. It ends soon, so this is a note."""
    authority = trustme.CA()
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    context = server_context(authority.issue_cert("127.0.0.1", not_after=soon))
    with LocalServer(SimulatedMarket([PAIR]), ssl_context=context) as server:
        report = examine(server.url, ssl_context=client_context(authority))
    tls = found(report)["TLS"]
    assert (tls.verdict, tls.advice) == (Verdict.NOTE, "It expires soon.")
    assert "TLSv1.3 in " in tls.found
    assert "certificates from ssl_context" in tls.found
    assert f"valid until {soon:%Y-%m-%d}" in tls.found
    assert report.ok


def test_the_bundle_of_requests_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor names the CAs that are used, and not OpenSSL's default."""
    authority, bundle = trustme.CA(), tmp_path / "company.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = server_context(authority.issue_cert("127.0.0.1"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with LocalServer(SimulatedMarket([PAIR]), ssl_context=context) as server:
        report = examine(server.url)
    assert f"certificates from {bundle}, " in found(report)["TLS"].found


@pytest.mark.parametrize("answer", [refuse("302 Found", "Location: https://login.example/\r\n"), refuse("200 OK")])
def test_a_captive_portal(answer: Any) -> None:
    """It answers in the server's place."""
    with Peer(answer, answer) as peer:
        report = examine(peer.url)
    handshake = found(report)["handshake"]
    assert handshake.verdict is Verdict.FAILED
    assert "captive portal" in handshake.advice


def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS and TCP are the proxy's. Its password isn't shown."""

    def forbid(caller: Caller) -> None:
        caller.read_request()
        caller.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with Peer(*[forbid] * 4) as peer:
        report = examine("wss://ticks.example/", proxy=f"http://user:secret-word@127.0.0.1:{peer.port}")
    assert verdicts(report)[:3] == ["ok", "ok", "failed"]
    assert "403" in found(report)["TLS"].found
    assert found(report)["proxy"].found == f"http://127.0.0.1:{peer.port}"
    assert "secret-word" not in str(report)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_an_hour_off(hours: int) -> None:
    """The server's Date header and the ticks show it. The other checks go on."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    tick = {"pair": PAIR, "date": f"{then:%Y-%m-%d}", "time": f"{then:%H:%M:%S}Z", "exchange": "X", "price": "1"}

    def script(caller: Caller) -> None:
        caller.send(caller.acceptance(f"Date: {email.utils.format_datetime(then, usegmt=True)}"))
        caller.send(frame(json.dumps({"results": "streaming", "resultData": tick})))
        caller.wait_until_left()

    with Peer(*[script] * 20) as peer:
        report = examine(peer.url)
    clock = found(report)["clock"]
    assert (clock.verdict, clock.advice) == (Verdict.FAILED, "Set this machine's clock, for example with NTP.")
    assert clock.found.startswith("-3" if hours > 0 else "+3")
    assert found(report)["handshake"].verdict is Verdict.OK


def test_a_step_that_hangs_is_left_behind() -> None:
    """DNS has no timeout of its own."""
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(2))
    assert time.monotonic() - started < 2


def test_a_wrong_argument_is_refused() -> None:
    """Like those of a listener."""
    with pytest.raises(ConfigurationError, match="pair"):
        doctor("BTCUSDC", "demo")


def test_the_command_prints_one_line_per_check() -> None:
    """The exit code says whether all is well."""
    healthy = run("doctor", "--endpoint", "demo")
    assert healthy.returncode == 0
    assert healthy.stdout.startswith("ok      endpoint ")
    assert healthy.stdout.endswith("\nall is well\n")
    broken = run("doctor", "--endpoint", f"ws://127.0.0.1:{free_port()}/", "--json")
    assert broken.returncode == 1
    assert json.loads(broken.stdout)["ok"] is False


def test_a_first_message_that_is_nested_too_deep() -> None:
    """A server that sends nonsense causes a finding, and no exception."""

    def script(caller: Caller) -> None:
        caller.welcome(frame("[" * 100_000))
        caller.wait_until_left()

    with Peer(script) as peer:
        report = examine(peer.url)
    assert found(report)["handshake"].verdict is Verdict.NOTE
