"""Users of a NATS server that log in with an NKey or a credentials file: the server's configuration, and the file."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import nkeys

_NO_LIMIT = dict.fromkeys(("subs", "data", "payload"), -1)
_ACCOUNT_LIMITS = dict.fromkeys(("conn", "mem_storage", "disk_storage", "streams", "consumer"), -1)


def nkey_user(folder: Path) -> tuple[str, Path]:
    """A user with an NKey, and the file with its seed."""
    user = _Key(nkeys.PREFIX_BYTE_USER)
    path = folder / "user.nk"
    path.write_bytes(user.seed)
    return f"authorization {{ users: [{{ nkey: {user.public} }}] }}", path


def credentials_user(folder: Path) -> tuple[str, Path]:
    """A user of an account, with an operator, and the credentials file."""
    operator = _Key(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = _Key(nkeys.PREFIX_BYTE_ACCOUNT), _Key(nkeys.PREFIX_BYTE_ACCOUNT)
    user = _Key(nkeys.PREFIX_BYTE_USER)
    lines = [f"operator: {operator.sign(operator, 'operator')}", f"system_account: {system.public}"]
    lines += ["resolver: MEMORY", "resolver_preload {"]
    lines.append(f"{account.public}: {operator.sign(account, 'account', limits=_NO_LIMIT | _ACCOUNT_LIMITS)}")
    # JetStream isn't allowed in the system's account.
    lines += [f"{system.public}: {operator.sign(system, 'account', limits=_NO_LIMIT)}", "}"]
    path = folder / "user.creds"
    jwt = account.sign(user, "user", **_NO_LIMIT)
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return "\n".join(lines), path


class _Key:
    def __init__(self, kind: int) -> None:
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def sign(self, subject: _Key, kind: str, **claims: Any) -> str:
        """A JWT that says who the subject is."""
        parts = (
            {"typ": "JWT", "alg": "ed25519-nkey"},
            {
                "jti": subject.public,
                "iat": 1_600_000_000,
                "iss": self.public,
                "name": kind,
                "sub": subject.public,
                "nats": {**claims, "type": kind, "version": 2},
            },
        )
        text = b".".join(_encode(json.dumps(part).encode()) for part in parts)
        return (text + b"." + _encode(self._pair.sign(text))).decode()


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
