"""The API key appears nowhere: not in errors, causes, logs, traces, representations or on the terminal."""

from __future__ import annotations

import html
import io
import json
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import websocket

from finx_streamer import (
    ConfigurationError,
    ConnectionFailed,
    DecodeError,
    FinxStreamerError,
    FunctionClient,
    ReconnectPolicy,
    StreamListener,
    Tick,
)
from finx_streamer.config.api_key import ApiKey, KeySource
from finx_streamer.server import LocalServer, Tape
from tests.support.peers import (
    PAIR,
    PATIENCE,
    QUICK,
    Caller,
    Peer,
    Script,
    Seen,
    close_frame,
    frame,
    refuse,
    stay,
    tick,
)
from tests.support.program import run_program
from tests.support.secrets import KEY, MARK, assert_clean, give_key, spellings


class Everything:
    """Everything that can be read while a listener runs."""

    def __init__(self) -> None:
        self.log = io.StringIO()
        self.trace = io.StringIO()
        self.seen = Seen()
        self.texts: list[str] = []

    def add_error(self, error: BaseException | None) -> None:
        """Add an exception, its causes, and the local variables of all frames in their tracebacks."""
        if error is None:
            return
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.texts += ["".join(shown.format()), str(error), repr(error), repr(vars(error)), repr(error.args)]
        self.add_error(error.__cause__)
        self.add_error(error.__context__)

    def add_listener(self, listener: StreamListener) -> None:
        """Add a listener's representations, and the names of all threads."""
        self.texts += [repr(listener), str(listener), repr(listener.stats), str(listener.stats)]
        self.texts += [thread.name for thread in threading.enumerate()]


@pytest.fixture
def everything(capfd: pytest.CaptureFixture[str]) -> Iterator[Everything]:
    """Collects everything that can be read, and searches it for the key at the end of the test."""
    found = Everything()
    formatter = logging.Formatter("%(name)s %(message)s")
    root, library = logging.getLogger(), logging.getLogger("websocket")
    level, library_level = root.level, library.level
    logged, traced = logging.StreamHandler(found.log), logging.StreamHandler(found.trace)
    for handler in (logged, traced):
        handler.setFormatter(formatter)
    root.addHandler(logged)
    root.setLevel(logging.DEBUG)
    websocket.enableTrace(True, traced)
    try:
        yield found
    finally:
        websocket.enableTrace(False)
        library.removeHandler(traced)
        library.setLevel(library_level)
        root.removeHandler(logged)
        root.setLevel(level)
    for error in found.seen.errors:
        found.add_error(error)
    found.texts += [repr(found.seen.states)]
    assert found.texts
    for text in found.texts:
        assert_clean(text, "text")
    assert_clean(found.log.getvalue(), "log")
    assert_clean(found.trace.getvalue(), "trace")
    output, errors = capfd.readouterr()
    assert_clean(output + errors, "terminal")


def read_path(caller: Caller) -> str:
    """The path of the request, which contains the key."""
    caller.read_request()
    return caller.path


def refuse_and_quote(status: str, headers: str = "", times: int = 10**6) -> Script:
    """A script that refuses the handshake, with path and key in the status line, the headers and the body."""

    def script(caller: Caller) -> None:
        path = read_path(caller)
        body = f"no {path} {KEY} {json.dumps(KEY)}"
        caller.send(
            f"HTTP/1.1 {status} {path} {KEY}\r\nX-Path: {path}\r\nX-Key: {KEY}\r\n"
            f"{headers.replace('PATH', path)}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        caller.wait_until_left()

    return script


def answer_and_quote(*sent: bytes) -> Script:
    """A script that answers the handshake with these bytes. PATH and KEY are replaced."""

    def script(caller: Caller) -> None:
        path = read_path(caller)
        caller.send(*(data.replace(b"PATH", path.encode()).replace(b"KEY", KEY.encode()) for data in sent))
        caller.leave()

    return script


FAILURES: dict[str, Script] = {
    "401": refuse_and_quote("401"),
    "403": refuse_and_quote("403"),
    "404": refuse_and_quote("404"),
    "429": refuse_and_quote("429", "Retry-After: PATH\r\n"),
    "500": refuse_and_quote("500"),
    "200": refuse_and_quote("200"),
    "redirect": refuse_and_quote("302", "Location: wss://elsewhere.example/PATH?key=PATH\r\n"),
    "no http": answer_and_quote(b"GET PATH KEY\r\n\r\n"),
    "no status": answer_and_quote(b"HTTP/1.1 PATH KEY\r\n\r\n"),
    "no accept": answer_and_quote(b"HTTP/1.1 101 KEY\r\nX-Key: KEY\r\nLocation: PATH\r\n\r\n"),
    "bad header": answer_and_quote(b"HTTP/1.1 101 KEY\r\nPATH KEY\r\n\r\n"),
    "no status, at length": answer_and_quote(b"HTTP/1.1" + b"x" * 60 + b" KEY\r\n\r\n"),
    "cut": answer_and_quote(b"HTTP/1.1 101 KEY\r\nPATH KEY\r\n"),
    "cut in the body": answer_and_quote(b"HTTP/1.1 401 No\r\n\r\nno such key: " + KEY[:8].encode()),
    "a long body": answer_and_quote(b"HTTP/1.1 401 No\r\n\r\n" + b"so sorry, " * 19 + b"key KEY"),
    "nothing": answer_and_quote(b""),
    "close reason": stay(close_frame(1008, f"key {KEY} revoked".encode())),
    "close reason, cut": stay(close_frame(1011, b"no " + KEY[:12].encode())),
    "close reason, cut in an escape": stay(close_frame(1011, quote(f"no {KEY[:7]}", safe="")[:-1].encode())),
    "HTML": refuse("400 No", body=f"no {html.escape(KEY)} <p>"),
    "in two pieces": answer_and_quote(b"HTTP/1.1 400 No\r\n\r\nno key " + KEY[:9].encode()),
    "close reason, quoted": stay(close_frame(1011, f"key {quote(KEY, safe='')}".encode())),
    "not utf-8": stay(frame(KEY.encode() + b"\xff")),
    "not a frame": stay(frame(KEY, rsv=7)),
    "not a close": stay(close_frame(999, KEY.encode())),
}


@pytest.mark.parametrize("callable_key", [False, True], ids=["str", "callable"])
@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)
def test_failures_do_not_show_the_key(everything: Everything, script: Script, callable_key: bool) -> None:
    """A failed connection doesn't show the key, even if the server quotes it."""
    with Peer(script) as peer:
        # The key is not in a local variable, because the local variables of this frame are searched, too.
        listener = everything.seen.listener(peer.url, api_key=give_key if callable_key else KEY, reconnect=None).start()
        try:
            listener.join(PATIENCE)
        except ConnectionFailed as error:
            everything.add_error(error)
        everything.add_listener(listener)
    assert len(everything.seen.errors) >= 1


@pytest.mark.parametrize("on_error", [True, False], ids=["on_error", "log"])
def test_messages_do_not_show_the_key(everything: Everything, on_error: bool) -> None:
    """Bad messages, errors and notices that quote the key reach callbacks and the log without it."""
    seen = everything.seen

    def broken(tick: Tick) -> None:
        raise ValueError("the callback's own")

    in_json = json.dumps(KEY)
    sent = [
        frame(f"broken {KEY}"),
        frame(f"broken {quote(KEY)} {quote(KEY, safe='')}"),
        frame(f"[{in_json}]"),
        frame(f'{{"error": {in_json}}}'),
        frame(json.dumps({"error": {"key": KEY, KEY: 1}})),
        frame(f'{{"results": "error", "resultData": "bad key {quote(KEY, safe="")}"}}'),
        frame(f'{{"keepAlive": true, "APIKey": {in_json}}}'),
        frame(json.dumps({"pair": KEY, "price": "1"})),
        frame(json.dumps({"pair": PAIR, "price": KEY, "date": KEY, "time": KEY, "exchange": "X"})),
        frame('{{"error": {}}}'.format(in_json.replace("/", "\\/"))),
        frame('{{"error": "{}"}}'.format("".join(f"\\u{ord(letter):04x}" for letter in KEY))),
        frame(f"broken {''.join(f'%{ord(letter):02x}' for letter in KEY)}"),
        frame(b"binary " + KEY.encode(), 0x2),
    ]
    with Peer(stay(*sent, tick(1))) as peer:
        listener = seen.listener(peer.url, api_key=KEY, on_tick=broken, on_error=seen.on_error if on_error else None)
        listener.on_tick(seen.on_tick)
        with listener:
            seen.wait_ticks(1)
            everything.add_listener(listener)
    everything.texts += [repr(notice) for notice in seen.notices]
    assert len(seen.notices) == 1
    assert bool(seen.of_type(DecodeError)) == on_error


def test_a_working_stream_does_not_show_the_key(everything: Everything) -> None:
    """A listener with keepAlive, reconnects and the library's trace doesn't show the key."""

    def answer(caller: Caller) -> None:
        caller.welcome(tick(1))
        for _ in range(3):
            caller.read_frame()
            caller.send(frame('{"keepAlive":true}'))
        caller.reset()

    seen = everything.seen
    with Peer(answer) as peer, seen.listener(peer.url, api_key=KEY, keep_alive=0.02, reconnect=QUICK) as listener:
        seen.wait_ticks(3)
        everything.add_listener(listener)
    assert "request header" in everything.trace.getvalue()
    assert "keepAlive" in everything.trace.getvalue()


def test_the_local_server_does_not_show_the_key(everything: Everything) -> None:
    """The local server's logs and representations don't show its keys."""
    tape = Tape([{"pair": PAIR, "date": "2022-07-02", "time": "15:30:55Z", "exchange": "X", "price": "1"}], speed=None)
    seen = everything.seen
    with LocalServer(tape, keys={KEY}) as server:
        with seen.listener(server.url, api_key=KEY) as listener:
            seen.wait_ticks(1)
            server.revoke_key(KEY)
            seen.wait_errors(1)
            everything.add_listener(listener)
        everything.texts += [repr(server), repr(server.stats)]


def test_a_failing_key_callable_does_not_show_the_last_key(everything: Everything) -> None:
    """The callable's exception becomes the cause, and an earlier key isn't shown."""
    answers: Iterator[Callable[[], str]] = iter([lambda: KEY, lambda: str(1 // 0), lambda: KEY])
    listen = everything.seen.listener
    with (
        Peer(stay(close_frame(1012)), stay(tick(1))) as peer,
        listen(peer.url, api_key=lambda: next(answers)()) as listener,
    ):
        everything.seen.wait_ticks(1)
        everything.add_listener(listener)
    assert [type(error.__cause__) for error in everything.seen.errors] == [type(None), ZeroDivisionError]


@pytest.mark.parametrize(
    "settings",
    [{"api_key": f"{KEY} {KEY}"}, {"api_key": [KEY]}, {"endpoint": f"wss://x.example/?{KEY}"}, {"endpoint": KEY}],
)
def test_configuration_errors_do_not_show_the_key(settings: dict[str, Any]) -> None:
    """The error doesn't repeat a malformed key, or a key in place of the URL."""
    with Peer(refuse("401 No")) as peer, pytest.raises(FinxStreamerError):
        Seen().listener(peer.url, api_key=KEY).start().join(PATIENCE)
    with pytest.raises(FinxStreamerError) as caught:
        StreamListener(PAIR, **settings)
    assert_clean(str(caught.value), "str")
    assert_clean(repr(caught.value), "repr")


def test_the_search_finds_every_spelling() -> None:
    """`assert_clean` fails for each spelling of the key."""
    for spelling in spellings(KEY):
        with pytest.raises(AssertionError):
            assert_clean(f"… {spelling} …", "here")
    assert not re.search(MARK, "nothing here", re.IGNORECASE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": "s3cr3t-of-mine and more"},
        {"endpoint": "nowhere"},
        {"endpoint": "s3cr3t-of-mine"},
        {"endpoint": "ftp://s3cr3t-of-mine/"},
        {"endpoint": "wss://x.example/?s3cr3t-of-mine"},
        {"endpoint": "ws://s3cr3t-of-mine.example/"},
        {"api_key": None, "endpoint": "s3cr3t-of-mine"},
        {"queue_size": 0},
        {"proxy": "ftp://proxy:8080"},
    ],
)
@pytest.mark.parametrize("kind", [StreamListener, FunctionClient])
def test_refused_arguments_do_not_show_the_key(
    wrong: dict[str, Any], kind: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the traceback of a refusal, no frame of this package has the key in a local variable."""
    monkeypatch.setenv("FINX_API_KEY", "s3cr3t-of-mine")
    if kind is FunctionClient and "queue_size" in wrong:
        wrong = {"connections": 0}
    with pytest.raises(ConfigurationError) as caught:
        kind(**({"api_key": "s3cr3t-of-mine"} | wrong))
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "finx_streamer" in frame.filename and "tests" not in frame.filename]
    assert ours
    assert "s3cr3t-of-mine" not in str([frame.locals for frame in ours])
    assert "s3cr3t-of-mine" not in str(caught.value)


#: Longer than the part of a value that an error shows.
LONG_KEY = "s3cr3t-" * 9


@pytest.mark.parametrize(
    "refused",
    [
        lambda: StreamListener(LONG_KEY, api_key=LONG_KEY),
        lambda: StreamListener("s3cr3t-x", api_key="s3cr3t-x"),
        lambda: StreamListener(PAIR, api_key=LONG_KEY).add(LONG_KEY),
        lambda: StreamListener(PAIR, api_key=LONG_KEY, exchanges=[LONG_KEY]),
        lambda: StreamListener(PAIR, api_key=LONG_KEY, overflow=LONG_KEY),
        lambda: StreamListener(PAIR, api_key=LONG_KEY, name=[LONG_KEY]),  # type: ignore[arg-type]
        lambda: StreamListener(PAIR, api_key=LONG_KEY, name=LONG_KEY.encode()),  # type: ignore[arg-type]
        lambda: (KeySource.from_argument(LONG_KEY), ReconnectPolicy(initial=LONG_KEY)),  # type: ignore[arg-type]
        lambda: (KeySource.from_argument(LONG_KEY), ReconnectPolicy(attempts=LONG_KEY)),  # type: ignore[arg-type]
        lambda: (KeySource.from_argument(LONG_KEY), ReconnectPolicy(jitter=[LONG_KEY])),  # type: ignore[arg-type]
        lambda: FunctionClient(api_key=LONG_KEY).tick_snap(LONG_KEY),
        lambda: FunctionClient(api_key=LONG_KEY).tick_snap(PAIR, LONG_KEY),
    ],
)
def test_a_misplaced_key_is_not_shown_in_part(refused: Callable[[], object]) -> None:
    """A value is redacted before it's shortened, and no symbol is suggested for it."""
    with pytest.raises(ConfigurationError) as caught:
        refused()
    assert_clean(f"{caught.value} {caught.value!r}", "refusal")


@pytest.mark.parametrize("raw", ["x" * 992 + KEY, {"pair": "x" * 64 + KEY}, {"pair": PAIR, "date": ["x", {"y": KEY}]}])
def test_an_answer_without_ticks_does_not_show_a_part_of_the_key(everything: Everything, raw: object) -> None:
    """An error that shows the start of an answer doesn't show a part of the key."""

    def answer(caller: Caller) -> None:
        caller.welcome()
        caller.read_frame()
        caller.send(frame(json.dumps({"0": raw})))
        caller.wait_until_left()

    with Peer(answer) as peer, FunctionClient(api_key=KEY, endpoint=peer.url, on_bad="raise") as client:
        with pytest.raises(DecodeError) as caught:
            client.tick_history(PAIR, "2022-07-02", "2022-07-03")
        everything.texts += [str(caught.value), repr(caught.value), repr(vars(caught.value))]


def test_a_tick_left_out_does_not_show_the_key(everything: Everything, caplog: pytest.LogCaptureFixture) -> None:
    """The log quotes the tick."""
    bad = {"pair": PAIR, "date": "2022-07-02", "time": "15:30:55.817Z", "exchange": "X", "price": KEY}

    def answer(caller: Caller) -> None:
        caller.welcome()
        caller.read_frame()
        caller.send(frame(json.dumps({"0": bad})))
        caller.wait_until_left()

    with Peer(answer) as peer, FunctionClient(api_key=KEY, endpoint=peer.url) as client:
        assert next(client.iter_tick_history(PAIR, "2022-07-02", "2022-07-02T23:00"), None) is None
    assert "is not a decimal number" in caplog.text
    everything.texts.append(caplog.text)


@pytest.mark.parametrize("status", ["401 No", "500 No"])
def test_a_call_does_not_show_its_arguments(everything: Everything, status: str) -> None:
    """In the traceback of a failed call, no frame has the arguments, one of which may be a misplaced key."""
    with (
        Peer(refuse(status)) as peer,
        FunctionClient(api_key=KEY, endpoint=peer.url, reconnect=None) as client,
    ):
        for ask in (lambda: client.reference_data(KEY), lambda: client.call("x", a=KEY, b=[KEY])):
            with pytest.raises(ConnectionFailed) as caught:
                ask()
            everything.add_error(caught.value)


def test_a_binary_key_file_is_not_shown(everything: Everything, tmp_path: Path) -> None:
    """The errors about a key file that isn't text don't have its bytes, nor do their causes."""
    pytest.importorskip("typer")
    from finx_streamer.cli.key_files import api_key

    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbf" + KEY.encode())
    file.chmod(0o600)
    source = KeySource.from_argument(api_key(file))
    assert source.current() == ApiKey(KEY)
    file.write_bytes(KEY.encode() + b"\xff")
    with pytest.raises(ConfigurationError, match="the file isn't UTF-8 text") as refused:
        api_key(file)
    with pytest.raises(ConnectionFailed) as failed:
        source.current()
    everything.add_error(refused.value)
    everything.add_error(failed.value)


# Gaps and the command line.


def fill_a_gap(seen: Seen, url: str, server: LocalServer, everything: Everything) -> None:
    """Interrupt a stream and wait until its gap is handled."""
    with seen.listener(url, api_key=KEY, backfill=True) as listener:
        server.wait_connected()
        server.emit(numbered_tick(1))
        seen.wait_ticks(1)
        server.drop_connections(only="streams")
        seen.wait_for(lambda: listener.stats.reconnects == 1)
        server.wait_connected()
        server.emit(numbered_tick(2))
        seen.wait_for(lambda: len(seen.gaps) == 1)
        everything.add_listener(listener)
    everything.texts += [repr(seen.gaps), str(seen.gaps[0])]


def numbered_tick(number: int) -> dict[str, str]:
    """A tick as it's sent."""
    return {"pair": PAIR, "date": "2022-07-02", "time": f"15:30:{number:02}Z", "exchange": "X", "price": f"{number}"}


@pytest.mark.parametrize("fault", ["none", "error", "drop", "reset", "refused", "quoted"])
def test_filling_a_gap_does_not_show_the_key(everything: Everything, fault: str) -> None:
    """However the history calls end, no error, log or trace shows the key."""
    with LocalServer(Tape([numbered_tick(1)], wait_for=99), keys={KEY}, resumable=False) as server:
        match fault:
            case "error" | "quoted":
                server.fail_functions(None, f"no history for {KEY}" if fault == "quoted" else "no history")
            case "drop" | "reset":
                server.drop_functions(2, reset=fault == "reset")
            case "refused":
                server.fail_functions(None, "APIKey is not accepted")
        fill_a_gap(everything.seen, server.url, server, everything)
    assert everything.seen.gaps[0].filled is (fault in ("none", "drop", "reset"))


ENDS = ("well", "401", "500", "closed", "not JSON", "key as endpoint", "key as file")


@pytest.mark.parametrize(
    ("end", "source"),
    [
        *((end, "environment") for end in ENDS),
        ("well", "file"),
        ("key as file", "file"),
        *(pytest.param(end, "file", marks=pytest.mark.slow) for end in ENDS[1:-1]),
    ],
)
@pytest.mark.parametrize("command", ["history", "snap", "listen"])
def test_the_command_line_does_not_show_the_key(
    command: str, end: str, source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With logging at DEBUG and the library's trace, no command prints the key, however it ends."""
    pytest.importorskip("typer")
    script = {
        "401": refuse_and_quote("401"),
        "500": refuse_and_quote("500"),
        "closed": stay(close_frame(1008, f"bad key {KEY}".encode())),
        "not JSON": stay(frame(f"no {KEY}"), close_frame(1008)),
    }.get(end, stay(close_frame(1008)))
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    environment = {"FINX_API_KEY": KEY} if source == "environment" else {}
    with Peer(script) as peer, LocalServer(Tape([numbered_tick(1)], speed=None), keys={KEY}) as server:
        url = server.url if end == "well" else peer.url
        arguments = [command, PAIR, "--endpoint", KEY if end == "key as endpoint" else url]
        arguments += {"history": ["--start", "2022-07-02", "--end", "2022-07-03"], "snap": [], "listen": []}[command]
        if command == "listen":
            arguments += ["--duration", "0.3"]
        elif end in ("500", "not JSON"):
            # These are retried until the timeout.
            arguments += ["--timeout", "1"]
        if source == "file":
            arguments += ["--api-key-file", str(keys if end != "key as file" else tmp_path / "nothing")]
        ran = run_program("loud_command", *arguments, **environment)
    assert_clean(ran.stdout, "output")
    assert_clean(ran.stderr, "terminal")
    assert "Traceback" not in ran.stderr
    if end in ("401", "500"):
        assert end in ran.stderr
