"""The files in docs/deploy are accepted by the programs that they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.support.nats import nats_program
from tests.support.program import ROOT, program_environment

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


def test_nats_configuration(tmp_path: Path) -> None:
    """nats-server accepts the configuration, with the paths and hashes of this test in it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("nats-1.internal")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    text = (DEPLOY / "nats.conf").read_text(encoding="utf-8")
    text = text.replace("/etc/nats/", f"{tmp_path}/").replace("/var/lib/nats", str(tmp_path / "store"))
    (tmp_path / "nats.conf").write_text(text, encoding="utf-8")
    command = [nats_program(), "-t", "-c", str(tmp_path / "nats.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
