"""API keys of the commands: from the environment, and from files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from finx_streamer.server import LocalServer
from tests.support.cli import COMMAND, KEY, TIMEOUT, environment, run, running


def test_a_refused_key_is_one_line_without_the_key(server: LocalServer) -> None:
    """The exit code 1 says that the command line was right."""
    result = run("listen", "BTC:USDC", "--endpoint", server.url, FINX_API_KEY="wrong-secret")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert result.stderr.startswith("finx-streamer: error: BTC:USDC: ")
    assert "wrong-secret" not in result.stderr


def test_the_file_is_stripped_and_beats_the_environment(server: LocalServer, tmp_path: Path) -> None:
    """Editors end a file with a newline."""
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n\n")
    options = ["--api-key-file", str(file), "--limit", "1"]
    result = run("listen", "BTC:USDC", "--endpoint", server.url, *options, FINX_API_KEY="wrong-secret")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)


def test_the_file_is_read_at_each_attempt(busy_server: LocalServer, tmp_path: Path) -> None:
    """Keys rotate every 24 hours, and the command needn't be restarted for that."""
    file = tmp_path / "key"
    file.write_text(KEY)
    with running("listen", "BTC:USDC", "--endpoint", busy_server.url, "--api-key-file", str(file)) as command:
        command.stdout.readline()
        connections = busy_server.stats.connections_total
        busy_server.add_key("the-next-key")
        file.write_text("the-next-key")
        busy_server.revoke_key(KEY)
        busy_server.wait_until(lambda stats: stats.connections_total > connections and stats.streams == 1, TIMEOUT)


def test_a_file_that_disappears_is_reported_and_retried(server: LocalServer, tmp_path: Path) -> None:
    """The message names the file and the reason, and the command uses the file as soon as it is back."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    with running("listen", "BTC:USDC", "--endpoint", server.url, "--api-key-file", str(file)) as command:
        command.stdout.readline()
        connections = server.stats.connections_total
        file.unlink()
        server.drop_connections()
        while "reading --api-key-file" not in (line := command.stderr.readline()):
            assert line
        assert line.endswith(f": --api-key-file {file}: No such file or directory\n")
        file.write_text(KEY)
        server.wait_until(lambda stats: stats.connections_total > connections and stats.streams == 1, TIMEOUT)


def test_a_pipe_can_hold_the_key(server: LocalServer) -> None:
    """`--api-key-file <(pass finx)` is a pipe, which can be read only once."""
    read, write = os.pipe()
    os.write(write, KEY.encode())
    os.close(write)
    options = ["--endpoint", server.url, "--limit", "1", "--api-key-file", f"/dev/fd/{read}"]
    result = subprocess.run(
        [*COMMAND, "listen", "BTC:USDC", *options],
        pass_fds=[read],
        capture_output=True,
        timeout=TIMEOUT,
        env=environment(FINX_API_KEY=""),
        check=False,
    )
    os.close(read)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_missing_key_is_wrong_usage() -> None:
    """The line says how to pass a key."""
    result = run("listen", "BTC:USDC", FINX_API_KEY="")
    assert result.returncode == 2
    assert result.stderr == "finx-streamer: error: no API key: set FINX_API_KEY, or pass --api-key-file FILE\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"\xff\xfe", "the file isn't UTF-8 text"),
    ],
)
def test_an_unusable_file_is_wrong_usage(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """The file is checked before anything is started."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    result = run("listen", "BTC:USDC", "--api-key-file", str(file))
    assert result.returncode == 2
    assert result.stderr == f"finx-streamer: error: --api-key-file {file}: {reason}\n"


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_warns_about_a_file_that_others_can_read(tmp_path: Path, mode: int, warns: bool) -> None:
    """Both options for files with keys warn, and don't show a key."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(mode)
    with running("serve", "--port", "0", "--keys-file", str(keys)) as command:
        url = command.stdout.readline().split()[-1]
        result = run("listen", "BTC:USDC", "--endpoint", url, "--api-key-file", str(keys), "--limit", "1")
        command.send_signal()
        code, _, err = command.finish()
    assert (code, result.returncode) == (0, 0)
    for stderr, option in ((err, "--keys-file"), (result.stderr, "--api-key-file")):
        assert (f"warning: {option} {keys}: other users can read or change this file" in stderr) == warns
        assert KEY not in stderr
