"""`doctor` in the situations that users meet: each has its finding, and its advice."""

from __future__ import annotations

import datetime
import email.utils
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trustme

from finx_streamer import ConfigurationError, Endpoint, doctor
from finx_streamer.diagnosis.limits import Deadline
from finx_streamer.diagnosis.report import Check, Report, Verdict
from finx_streamer.server import LocalServer, SimulatedMarket
from tests.support.cli import run
from tests.support.peers import PAIR, TEXT, Caller, Peer, close_frame, frame, free_port, leave_after, refuse
from tests.support.tls import client_context, server_context

NETWORK = ["DNS", "TCP", "TLS", "handshake", "first message", "clock", "tick history"]
#: Checked with a server of this test, because not every server has them.
SECOND_WIRE = {
    "second wire: spot rates (D)",
    "unixDate and UTCDate (D)",
    "list of contracts (D)",
    "contract stream (D)",
    "five-minute matrix (D)",
}


def found(report: Report) -> dict[str, Check]:
    """The checks by their names."""
    return {check.name: check for check in report.checks}


def verdicts(report: Report) -> list[str]:
    """The verdicts of the network checks."""
    return [found(report)[name].verdict.value for name in NETWORK]


def said(report: Report) -> dict[str, str]:
    """Whether each assumption was confirmed, refuted or not seen, by its name."""
    return {check.name: re.split(" by this server|:", check.found)[0] for check in report.assumptions}


def examine(url: str | Endpoint, **arguments: Any) -> Report:
    return doctor(endpoint=url, **{"api_key": "doctor-key"} | arguments)


def test_all_is_well_with_the_demo() -> None:
    """It takes no key and no network, and confirms what the local server does as we assume."""
    report = doctor(endpoint="demo")
    assert report.ok
    assert {check.verdict for check in report.checks} <= {Verdict.OK, Verdict.NOTE}
    assert found(report)["API key"].found == "not needed"
    findings = said(report)
    assert findings.pop("page: of one UTC day (D)") in ("confirmed", "not seen")  # the demo has one hour of ticks
    assert {name: finding for name, finding in findings.items() if name not in SECOND_WIRE} == {
        "streams under streaming/ (S)": "confirmed",
        "streams under streamer/ (D)": "confirmed",
        "ticks in an envelope (S)": "confirmed",
        "ticks with date and time (S)": "confirmed",
        "prices are strings (S)": "confirmed",
        "closed after 300 s (D)": "not seen",
        "unknown pair is 404 (O)": "confirmed",
        "wrong key is 401 or 403 (O)": "not seen",
        "authenticate (D)": "confirmed",
        "keepAlive (D)": "confirmed",
        "referenceData (D)": "confirmed",
        "unknown function: error (O)": "confirmed",
        "forms of time (O)": "confirmed",
        "snap: at or before (D)": "confirmed",
        "page: 1,000 ticks (D)": "confirmed",
        "page: the first ones (O)": "confirmed",
        "page: not sorted (D)": "confirmed",
        "page: strictly after (O)": "confirmed",
    }
    assert str(report).endswith("all is well")
    assert json.loads(report.to_json())["checks"][0]["name"] == "endpoint"


def test_ticks_with_microseconds() -> None:
    """Some exchanges have them, but a request has milliseconds."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=500_500) - datetime.timedelta(minutes=1)
    ticks = [
        {"pair": PAIR, "date": f"{time:%Y-%m-%d}", "time": f"{time:%H:%M:%S.%f}Z", "exchange": "X", "price": "1"}
        for time in (now - datetime.timedelta(seconds=20), now)
    ]
    with LocalServer(SimulatedMarket([PAIR], limit=0), keys={"doctor-key"}) as server:
        server.import_ticks(ticks)
        findings = said(examine(server.url))
    assert findings["snap: at or before (D)"] == "confirmed"
    assert findings["page: strictly after (O)"] == "not seen"


def test_our_own_server_says_nothing_about_finx() -> None:
    """Its answers are as we assume because we wrote it. Only another server's count."""
    with LocalServer(SimulatedMarket([PAIR]), keys={"doctor-key"}) as server:
        own = examine(server.url).assumptions
    with Peer(finx(frame(json.dumps(FLAT)), answers={"keepAlive": [{"keepAlive": True}]})) as peer:
        other = examine(peer.url).assumptions
    seen = [check.found for check in own if check.verdict is not Verdict.SKIPPED]
    assert len(seen) > 10
    assert {re.match(r"\w+ by this server, not by FinX: .", found) is not None for found in seen} == {True}
    assert {"this server" in check.found for check in other} == {False}
    assert {check.found.partition(":")[0] for check in other} == {"confirmed", "refuted", "not seen"}


def test_no_server() -> None:
    """TCP fails, and the rest is skipped."""
    report = examine(f"ws://127.0.0.1:{free_port()}/")
    assert not report.ok
    assert verdicts(report) == ["ok", "failed"] + 5 * ["skipped"]
    assert "connection refused" in found(report)["TCP"].found
    assert report.assumptions == ()


def test_no_network() -> None:
    """A name that can't be resolved."""
    report = examine("wss://no-such-host.invalid/")
    assert verdicts(report) == ["failed"] + 6 * ["skipped"]
    assert found(report)["DNS"].advice == "Check the network, and the host in the endpoint or proxy."


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to the server is checked all the same, up to the handshake."""
    monkeypatch.delenv("FINX_API_KEY", raising=False)
    with Peer(finx(frame(json.dumps(FLAT)), answers={})) as peer:
        report = doctor(endpoint=peer.url)
    assert [check.name for check in report.checks if check.verdict is Verdict.FAILED] == ["API key", "handshake"]
    assert found(report)["TCP"].verdict is Verdict.OK


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
    assert "; certificates from ssl_context" in tls.found
    assert tls.advice == "The server's certificate is out of date, or this machine's clock is wrong."


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
    """DNS and TCP are the proxy's. The tunnel through it fails. Its password isn't shown."""

    def forbid(caller: Caller) -> None:
        caller.read_request()
        caller.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with Peer(*[forbid] * 4) as peer:
        report = examine("wss://ticks.example/", proxy=f"http://user:secret-word@127.0.0.1:{peer.port}")
    assert verdicts(report)[:3] == ["ok", "ok", "skipped"]
    tunnel = found(report)["tunnel"]
    assert tunnel.verdict is Verdict.FAILED
    assert "403" in tunnel.found
    assert "Check the proxy's user and password, and that it allows ticks.example:443." in tunnel.advice
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
    assert found(report)["first message"].verdict is Verdict.OK


def test_a_step_that_hangs_is_left_behind() -> None:
    """DNS has no timeout of its own."""
    deadline, released = Deadline(0.01), threading.Event()
    with pytest.raises(TimeoutError):
        deadline.run(released.wait)
    released.set()


def test_the_waits_of_a_step_share_one_deadline() -> None:
    """A second wait has only what the first has left: nothing."""
    deadline, released = Deadline(0.01), threading.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            deadline.run(released.wait)
        assert deadline.left == 0
    released.set()


def test_a_server_that_never_answers_the_handshake() -> None:
    """It says after how long, and the next steps are skipped."""
    with Peer(lambda caller: caller.wait_until_left()) as peer:
        report = examine(peer.url)
    assert verdicts(report) == ["ok", "ok", "ok", "failed", "skipped", "skipped", "skipped"]
    assert "did not answer in time" in found(report)["handshake"].found


def leave() -> NoReturn:
    sys.exit("no vault here")


def fail() -> NoReturn:
    raise OSError("no vault here")


@pytest.mark.parametrize(("callable_", "name"), [(leave, "SystemExit"), (fail, "OSError")])
def test_a_key_callable_that_raises(callable_: Any, name: str) -> None:
    """It is a finding, also if it ends the interpreter elsewhere."""
    report = doctor(endpoint="ws://127.0.0.1:9/", api_key=callable_)
    assert found(report)["API key"] == Check(
        "API key", Verdict.FAILED, f"the api_key callable raised {name}", "Check your api_key callable."
    )


def test_where_the_key_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the argument, in the environment, or in a file; never what it is."""
    url = f"ws://127.0.0.1:{free_port()}/"
    assert found(examine(url))["API key"].found == "found in the argument api_key"
    monkeypatch.setenv("FINX_API_KEY", "another-doctor-key")
    assert found(doctor(endpoint=url))["API key"].found == "found in the variable FINX_API_KEY"
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text("a-third-doctor-key\n")
    shown = run("doctor", "--endpoint", url, "--api-key-file", str(file)).stdout
    assert f"found in the file {file}" in " ".join(shown.split())
    assert "a-third-doctor-key" not in shown


def finx(*stream: bytes, answers: dict[str, Any]) -> Any:
    """A script that sends these frames on streams, and answers functions: each with some messages, or an error."""

    def script(caller: Caller) -> None:
        caller.welcome()
        if caller.path.count("/") == 3:
            caller.send(*stream)
            caller.wait_until_left()
        while (read := caller.read_frame())[0] == TEXT:
            request = json.loads(read[1])
            assert request["APIKey"] == "doctor-key"
            for message in answers.get(request["functionName"], [{"error": "unknown function"}]):
                caller.send(frame(json.dumps(message)))

    return script


SHARED: dict[str, Any] = {"wire": "subscribe"}


@pytest.mark.parametrize("form", ["python", "command"])
def test_the_stream_of_a_second_wire(form: str) -> None:
    """The pair is requested on a shared connection, and its first tick is timed."""
    with LocalServer(SimulatedMarket([PAIR]), keys={"doctor-key"}) as server:
        if form == "command":
            command = ("doctor", "--endpoint", server.url, "--wire", "subscribe", "--json")
            shown = run(*command, FINX_API_KEY="doctor-key").stdout
            checks = {each["name"]: each["found"] for each in json.loads(shown)["checks"]}
        else:
            report = examine(Endpoint(server.url, **SHARED))
            assert report.ok
            checks = {check.name: check.found for check in report.checks}
            assert (
                said(report)["streams under streaming/ (S)"] == said(report)["unknown pair is 404 (O)"] == "confirmed"
            )
            assert said(report)["ticks in an envelope (S)"] == "not seen"
    assert checks["endpoint"] == f"{server.url}, all streams on one connection"
    assert re.match(r"the server confirmed the pair after \d+ ms; a tick after \d+ ms: ", checks["first message"])


def shared_wire(*messages: Any, answers: dict[str, Any]) -> Any:
    """A script that answers the request of the pair with these messages, and functions as `finx` does."""
    return finx(answers={"getSpotRates": messages, **answers})


def test_a_pair_that_is_refused_silently() -> None:
    """FinX confirms nothing, so this looks like a quiet pair. Both are said."""
    with Peer(shared_wire(answers={"tickSnap": [no_tick()]})) as peer:
        report = examine(Endpoint(peer.url, **SHARED))
    first = found(report)["first message"]
    assert (first.verdict, first.found) == (Verdict.NOTE, "no tick within 5 s")
    assert first.advice.startswith("FinX may have refused BTC:USDC silently: check it. The pair may be quiet now")


def test_a_pair_that_is_refused() -> None:
    """Our server says why."""
    with LocalServer(SimulatedMarket(["ETH:USDC"]), keys={"doctor-key"}) as server:
        report = examine(Endpoint(server.url, **SHARED))
    first = found(report)["first message"]
    assert first.verdict is Verdict.FAILED
    assert "unknown pair BTC:USDC" in first.found
    assert first.advice == "Check the pair and the key."


def test_ticks_of_the_second_wire_are_timed_from_the_request() -> None:
    """Answers to other functions may come first."""
    with Peer(shared_wire({"keepAlive": True}, FLAT, answers={})) as peer:
        report = examine(Endpoint(peer.url, **SHARED))
    first = found(report)["first message"]
    assert re.match(r"no tick after \d+ ms, but .*keepAlive.*; a tick after \d+ ms: 1.50 on X", first.found)
    assert first.verdict is Verdict.NOTE


def test_a_second_wire_that_is_somewhere_else() -> None:
    """A 404 isn't about the pair."""
    with Peer(refuse("404 Not Found")) as peer:
        report = examine(Endpoint(peer.url, **SHARED))
    assert (
        found(report)["handshake"].advice == 'Try Endpoint(url, prefix="streaming", wire="subscribe"), or wire="url".'
    )


FLAT = {"pair": PAIR, "unixDate": 1659897295, "UTCDate": "2022-08-07T18:34:55.000Z", "exchange": "X", "price": "1.50"}
CONTRACT = "BTC-26AUG22-20000-C"


def test_the_second_wire_is_confirmed() -> None:
    """Flat ticks come after a message that is none. Contracts are listed, and their streams and the matrix come."""
    answers = {
        "getSpotRates": [{"keepAlive": True}, FLAT],
        "listDeribitContracts": [["ETH-19AUG22", CONTRACT]],
        "getDeribitContractStream": [{"instrument_name": CONTRACT, "delta": "0.8"}],
        "getFiveMinMatrix": [[{"instrument_name": CONTRACT}]],
    }
    with Peer(finx(frame(json.dumps(FLAT)), answers=answers)) as peer:
        report = examine(peer.url)
    findings = said(report)
    assert {findings[name] for name in SECOND_WIRE} == {"confirmed"}
    # This server's stream has the later form of ticks.
    assert (findings["ticks in an envelope (S)"], findings["ticks with date and time (S)"]) == ("refuted", "refuted")
    assert findings["snap: at or before (D)"] == "not seen"


def test_a_second_wire_with_other_ticks_is_refuted() -> None:
    """Ticks in an envelope, and errors in place of lists."""
    enveloped = {"results": "streaming", "resultData": FLAT}
    with Peer(finx(frame(json.dumps(FLAT)), answers={"getSpotRates": [enveloped]})) as peer:
        findings = said(examine(peer.url))
    assert [findings[name] for name in sorted(SECOND_WIRE)] == [
        "not seen",  # contract stream
        "refuted",  # five-minute matrix
        "refuted",  # list of contracts
        "refuted",  # spot rates
        "not seen",  # unixDate and UTCDate
    ]


def now_tick() -> dict[str, str]:
    """A tick that is sent a minute from now."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)
    return {"pair": PAIR, "date": f"{then:%Y-%m-%d}", "time": f"{then:%H:%M:%S}Z", "exchange": "X", "price": "1"}


def no_tick() -> dict[str, str]:
    """What a snap answers if there is no tick."""
    return {"error": "there is no tick"}


@pytest.mark.parametrize(("answer", "verdict"), [(no_tick, "note"), (now_tick, "failed")])
def test_a_stream_that_is_silent(answer: Callable[[], dict[str, str]], verdict: str) -> None:
    """A quiet pair is worth a note. If tick history has newer ticks, the stream doesn't work."""
    # Not earlier: the tests may have begun minutes ago.
    snap = answer()
    date = email.utils.format_datetime(datetime.datetime.now(datetime.UTC), usegmt=True)

    def script(caller: Caller) -> None:
        caller.send(caller.acceptance(f"Date: {date}"))
        while True:
            caller.read_frame()
            caller.send(frame(json.dumps(snap)))

    with Peer(script) as peer:
        report = examine(peer.url)
    first, history = found(report)["first message"], found(report)["tick history"]
    assert (first.verdict, first.found) == (Verdict.NOTE, "no tick within 5 s")
    assert first.advice.startswith("The pair may be quiet now")
    assert history.verdict == verdict
    assert report.ok == (verdict == "note")


@pytest.mark.parametrize(
    ("message", "verdict"), [({"error": "no such pair"}, Verdict.FAILED), ({"isAuth": True}, Verdict.NOTE)]
)
def test_a_first_message_that_is_no_tick(message: dict[str, Any], verdict: Verdict) -> None:
    """It is shown. An error ends the wait, and after a notice a tick may come."""
    with Peer(finx(frame(json.dumps(message)), frame(json.dumps(FLAT)), answers={})) as peer:
        report = examine(peer.url)
    first = found(report)["first message"]
    assert first.verdict is verdict
    assert f"but {json.dumps(message)}" in first.found
    assert ("a tick after" in first.found) == (verdict is Verdict.NOTE)


def test_a_flood_without_ticks() -> None:
    """The wait for a tick ends, although there is always another message to read."""

    def script(caller: Caller) -> None:
        caller.welcome()
        while True:
            caller.send(frame('{"isAuth":true}') * 1_000)

    with Peer(script) as peer:
        report = examine(peer.url)
    first = found(report)["first message"]
    assert first.verdict is Verdict.NOTE
    assert first.found.endswith("no tick within 5 s")


def test_a_stream_that_ends_before_its_first_tick() -> None:
    """The reason is the server's."""
    with Peer(leave_after(close_frame(1013, b"busy"))) as peer:
        report = examine(peer.url)
    first = found(report)["first message"]
    assert first.verdict is Verdict.FAILED
    assert "1013" in first.found


def test_both_families_of_a_name() -> None:
    """DNS and TCP are shown for each family that the name has."""
    with LocalServer(SimulatedMarket([PAIR])) as server:
        report = examine(server.url.replace("127.0.0.1", "localhost"))
    dns, tcp = found(report)["DNS"].found, found(report)["TCP"].found
    assert "IPv4: 1 in " in dns
    assert "IPv6: " in dns
    assert "IPv4: connected in " in tcp


def test_a_captive_portal_with_its_own_certificate() -> None:
    """The finding names the CAs that don't know it, and the advice names the portal."""
    authority = trustme.CA()
    with Peer(refuse("200 OK"), context=server_context(authority.issue_cert("login.example"))) as peer:
        report = examine(peer.url)
    tls = found(report)["TLS"]
    assert tls.verdict is Verdict.FAILED
    assert "; certificates from " in tls.found
    assert "A captive portal: log in with your browser." in tls.advice


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
    first = found(report)["first message"]
    assert first.verdict is Verdict.NOTE
    assert first.found.startswith("no tick after ")
