"""What ``hub.toml`` in the data folder says: the page's address, mail, the encoder."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anabranch.hub.encoder_files import find_encoder
from anabranch.lab.errors import LabError
from anabranch.lab.places import home

Security = Literal["starttls", "ssl", "none"]
_KEYS = ("server.address", "search.encoder")


@dataclass(frozen=True)
class SmtpConfig:
    """Where mail goes out.

    Args:
        security: "starttls", "ssl", or "none" for a server on this machine.
        password_env: name of the environment variable that holds the password; the password itself is never in a file.
        sender: the address in From.
    """

    host: str
    port: int = 587
    security: Security = "starttls"
    user: str = ""
    password_env: str = ""
    sender: str = "anabranch@localhost"


@dataclass(frozen=True)
class HubConfig:
    """``hub.toml`` in the data folder.

    Args:
        address: the page's address as readers reach it; links in mails begin with it. Empty: where it was reached last.
        smtp: where mail goes out; None writes files.
        encoder: what is searched by meaning with: a folder, or a model's name; empty for the usual one.
    """

    address: str = ""
    smtp: SmtpConfig | None = None
    encoder: str = ""


def load_config(path: Path | None = None) -> HubConfig:
    """The configuration; defaults where there is no file.

    Raises:
        LabError: it cannot be read, or holds something else.
    """
    path = path or home() / "hub.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return HubConfig()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path} cannot be read: {error}") from error
    tables = {name: dict(found.pop(name, {})) for name in ("server", "search")}
    smtp = found.pop("smtp", None)
    unknown = [*found, *(f"{t}.{key}" for t, own in tables.items() for key in own if f"{t}.{key}" not in _KEYS)]
    if unknown:
        raise LabError(f"{path}: {', '.join(unknown)} is not known; expected {', '.join(_KEYS)} and the table smtp")
    for name in _KEYS:
        table, _, key = name.partition(".")
        if not isinstance(value := tables[table].get(key, ""), str):
            raise LabError(f"{path}: {name}={value!r}: expected text")
    address, encoder = (tables[table].get(key, "") for table, _, key in (name.partition(".") for name in _KEYS))
    return HubConfig(address.rstrip("/"), _smtp(path, smtp) if smtp else None, encoder)


def encoder_folder(given: str | None = None) -> Path | None:
    """The folder of the encoder that an option names, else ``hub.toml``; None for the usual one.

    Raises:
        LabError: it is named, and cannot be had.
    """
    if given:
        return find_encoder(given)
    named = load_config().encoder
    return find_encoder(named, where=f"{home() / 'hub.toml'}: search.encoder") if named else None


def _smtp(path: Path, values: dict[str, Any]) -> SmtpConfig:
    values = {("sender" if key == "from" else key): value for key, value in values.items()}
    try:
        config = SmtpConfig(**values)
    except TypeError as error:
        raise LabError(f"{path}: smtp: {error}; expected host, port, security, user, password_env and from") from error
    if config.security not in ("starttls", "ssl", "none"):
        raise LabError(f"{path}: smtp.security={config.security!r}: expected starttls, ssl or none")
    if not isinstance(config.port, int) or not 0 < config.port < 65536:
        raise LabError(f"{path}: smtp.port={config.port!r}: expected a port")
    if config.user and config.password_env not in os.environ:
        raise LabError(
            f"{path}: smtp.password_env={config.password_env!r}: expected an environment variable that is set"
        )
    return config
