"""Signatures of forms, cookies and links in mails."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from anabranch.lab.runs import write_atomically


def load_secret(path: Path) -> bytes:
    """The key that signs forms and links; made once, readable by its owner only."""
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    if len(secret) < 32:
        secret = secrets.token_bytes(32)
        write_atomically(path, secret)
        path.chmod(0o600)
    return secret


def sign(secret: bytes, purpose: str, text: str) -> str:
    """A signature of ``text`` that is good for one purpose only."""
    return hmac.new(secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()


def signed(secret: bytes, purpose: str, text: str, signature: str) -> bool:
    return hmac.compare_digest(sign(secret, purpose, text), signature)
