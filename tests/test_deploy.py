"""The files in docs/deploy are accepted by the programs that they are for."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer import StreamListener
from finx_streamer.jetstream import JetStreamPublisher, Nats
from finx_streamer.server import JetStreamMarket, LocalServer, SimulatedMarket
from tests.support.nats import lasting_port, nats_program
from tests.support.peers import PATIENCE
from tests.support.program import ROOT, program_environment
from tests.support.publishing import ask

DEPLOY = ROOT / "docs" / "deploy"
PROGRAM = "/opt/finx/bin/finx-streamer"
UNITS = sorted(DEPLOY.glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units(unit: Path, tmp_path: Path) -> None:
    """systemd knows all of their settings."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    installed = tmp_path / unit.name.replace("@", "@8765")
    installed.write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, installed.name in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_commands_of_units(unit: Path) -> None:
    """Each unit's command exists and has all of the options that the unit uses."""
    command = re.search(rf"ExecStart={PROGRAM} ((?:.*\\\n)*.*)", unit.read_text(encoding="utf-8"))
    assert command is not None
    name, *arguments = command[1].replace("\\\n", " ").split()
    shown = subprocess.run(
        [sys.executable, "-m", "finx_streamer", name, "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=program_environment(COLUMNS="300"),
    ).stdout
    assert [each for each in arguments if each.startswith("--") and f"{each} " not in shown] == []


async def ignore(error: Exception) -> None:
    """What NATS reports besides: that a message isn't permitted."""


def write_configuration(tmp_path: Path, authority: trustme.CA) -> str:
    """The text of nats.conf, with a folder and certificates of this test in it."""
    certificate = authority.issue_cert("nats-1.internal", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    text = (DEPLOY / "nats.conf").read_text(encoding="utf-8")
    return text.replace("/etc/nats/", f"{tmp_path}/").replace("/var/lib/nats", str(tmp_path / "store"))


def test_nats_configuration(tmp_path: Path) -> None:
    """nats-server accepts it."""
    (tmp_path / "nats.conf").write_text(write_configuration(tmp_path, trustme.CA()), encoding="utf-8")
    command = [nats_program(), "-t", "-c", str(tmp_path / "nats.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rights_in_nats(tmp_path: Path) -> None:
    """They are enough for a publisher and for a gateway. A gateway can't write ticks."""
    authority = trustme.CA()
    text = write_configuration(tmp_path, authority)
    text = re.sub(r"^cluster \{.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'"[^"]*_HASH"', '"secret"', text).replace("0.0.0.0:4222", f"127.0.0.1:{(port := lasting_port())}")
    (tmp_path / "nats.conf").write_text(text, encoding="utf-8")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def login(user: str) -> Nats:
        return Nats(urls=f"tls://127.0.0.1:{port}", user=user, password="secret", ssl_context=trusting)

    with subprocess.Popen([nats_program(), "-c", str(tmp_path / "nats.conf"), "-l", str(tmp_path / "log")]) as server:
        try:
            with (
                JetStreamPublisher(login("publisher")) as publisher,
                LocalServer(SimulatedMarket(pairs=["BTC:USDC"], limit=20, wait_for=1)) as source,
            ):
                listener = StreamListener("BTC:USDC", endpoint=source.url, api_key="demo", parse_price=str)
                publisher.attach(listener)
                assert publisher.connect(timeout=PATIENCE)
                with listener:
                    source.wait_finished()
                    with LocalServer(JetStreamMarket(login("gateway"))) as gateway:
                        gateway.wait_until(lambda stats: stats.ticks_stored == 20, timeout=PATIENCE)
                        assert gateway.stats.log is not None
                        assert gateway.stats.log.error is None
            login_of_gateway = {"user": "gateway", "password": "secret", "tls": trusting}
            with pytest.raises(TimeoutError):
                ask(
                    f"tls://127.0.0.1:{port}",
                    lambda client: client.jetstream(timeout=1.0).publish("finx.v1.ticks.MINE.BTC.USDC", b"{}"),
                    error_cb=ignore,
                    **login_of_gateway,
                )
        finally:
            server.kill()
