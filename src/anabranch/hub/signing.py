"""Signatures of forms, cookies and links in mails."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path


def load_secret(path: Path) -> bytes:
    """The key that signs forms and links; made once, readable by its owner only."""
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    if len(secret) >= 32:
        return secret
    path.parent.mkdir(parents=True, exist_ok=True)
    made, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # readable by its owner only, from the first byte
    with os.fdopen(made, "wb") as file:
        file.write(secrets.token_bytes(32))
    try:
        if secret:  # what is there is no key
            Path(name).replace(path)
        else:
            os.link(name, path)  # of two first starts the first one's key stays
    except FileExistsError:
        pass
    finally:
        Path(name).unlink(missing_ok=True)
    return path.read_bytes()


def sign(secret: bytes, purpose: str, text: str) -> str:
    """A signature of ``text`` that is good for one purpose only."""
    return hmac.new(secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def signed(secret: bytes, purpose: str, text: str, signature: str) -> bool:
    return hmac.compare_digest(sign(secret, purpose, text), signature)
