"""`Nats`: its URLs, its credentials, and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

pytest.importorskip("nats", reason='needs the extra: pip install "finx-streamer[jetstream]"')

from finx_streamer import ConfigurationError
from finx_streamer.jetstream import Nats

VARIABLES = ("URL", "USER", "PASSWORD", "CREDS", "NKEY", "CA", "CERT", "KEY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(f"NATS_{name}", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ("nats://a", ("nats://a:4222",)),
        (" nats://a:1 , tls://b ", ("nats://a:1", "tls://b:4222")),
        (["nats://[::1]:5", "nats://a"], ("nats://[::1]:5", "nats://a:4222")),
        (["nats://a", "nats://a:4222"], ("nats://a:4222",)),
    ],
)
def test_urls(given: Any, urls: tuple[str, ...]) -> None:
    assert Nats.of(given).urls == urls
    assert str(Nats.of(given)) == ", ".join(urls)


@pytest.mark.parametrize(
    "url", ["", "a", "http://a", "nats://", "nats://a:x", "nats://a:99999", "nats://a/path", 5, [], [5], "nats://[a"]
)
def test_other_urls_are_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="NATS"):
        Nats.of(url) if isinstance(url, str | list) else Nats(urls=[url])


@pytest.mark.parametrize(
    "url",
    [
        "nats://finx:s3cret@a",
        "nats://s3cret@a",
        "nats://finx:s3cret/x@a",
        "nats://finx:s3cret#x@a",
        "nats://finx:s3cret,x@a",
        "nats://finx:s3cret[@a",
        "finx:s3cret@a:4222",
        ["nats://a", "nats://finx:s3cret?@a"],
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="NATS_PASSWORD") as raised:
        Nats.of(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("name", ["NKEY", "CREDS"])
def test_a_seed_instead_of_a_file_is_not_shown(environment: pytest.MonkeyPatch, name: str) -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    environment.setenv(f"NATS_{name}", f"-----BEGIN USER NKEY SEED-----\n{seed}\n")
    with pytest.raises(ConfigurationError, match="can't be read") as raised:
        Nats.of("nats://a")
    assert seed[10:] not in str(raised.value)


def test_errors_carry_no_password(environment: pytest.MonkeyPatch) -> None:
    """A debugger or a crash report may show the local variables of their frames."""
    environment.setenv("NATS_PASSWORD", "s3cret")
    for refused in (lambda: Nats(urls="nats://a", password="s3cret"), lambda: Nats.of("nats://a")):
        with pytest.raises(ConfigurationError) as raised:
            refused()
        for entry in raised.traceback[1:]:
            assert "s3cret" not in repr(entry.frame.f_locals)


def test_the_environment(environment: pytest.MonkeyPatch) -> None:
    for name, value in {"URL": "nats://a,nats://b", "USER": "finx", "PASSWORD": "s3cret", "CREDS": ""}.items():
        environment.setenv(f"NATS_{name}", value)
    found = Nats.of(None)
    assert (found.urls, found.user, found.password) == (("nats://a:4222", "nats://b:4222"), "finx", "s3cret")
    assert "s3cret" not in repr(found)
    assert Nats.of(found) is found


def test_without_a_url_it_says_what_to_set() -> None:
    with pytest.raises(ConfigurationError, match="NATS_URL"):
        Nats.of(None)


@pytest.mark.parametrize(
    "settings",
    [
        {"user": "a"},
        {"password": "a"},
        {"user": "a", "password": "b", "nkey_file": __file__},
        {"nkey_file": __file__, "credentials_file": __file__},
        {"nkey_file": "/no/such/file"},
        {"ssl_context": True},
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Nats(urls="nats://a", **settings)


def test_the_files_of_tls(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    environment.setenv("NATS_CA", str(tmp_path / "ca.pem"))
    environment.setenv("NATS_CERT", str(tmp_path / "cert.pem"))
    with pytest.raises(ConfigurationError, match="NATS_CERT and NATS_KEY are needed together"):
        Nats.of("tls://a")
    environment.setenv("NATS_KEY", str(tmp_path / "key.pem"))
    context = Nats.of("tls://a").ssl_context
    assert context is not None
    assert len(context.get_ca_certs()) == 1
    environment.setenv("NATS_CA", str(tmp_path / "missing.pem"))
    with pytest.raises(ConfigurationError, match="expected PEM files"):
        Nats.of("tls://a")
