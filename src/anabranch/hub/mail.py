"""Mail out: over SMTP where it is configured, else as ``.eml`` files in a folder."""

from __future__ import annotations

import contextlib
import email.policy
import os
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol

from anabranch.hub.config import HubConfig, SmtpConfig
from anabranch.lab.places import ensure, home
from anabranch.lab.runs import write_atomically

# A signed link is longer than a line of 78; folded it would become an encoded word, which mail programs do not follow.
POLICY = email.policy.default.clone(max_line_length=900)


class Refused(Exception):
    """The server will never take this mail (5xx)."""


class Unreached(Exception):
    """The server could not be reached, or asks to come back later (4xx)."""


class Mailer(Protocol):
    """Delivers messages."""

    @property
    def sender(self) -> str: ...

    def send(self, message: EmailMessage) -> None:
        """Deliver; returns once the receiver has it.

        Raises:
            Refused: never try again. Unreached: try later.
        """
        ...


@dataclass
class FolderMailer:
    """Writes each message as a file, named by its Message-ID: sending one again replaces it by itself."""

    folder: Path
    sender: str = "anabranch@localhost"

    def send(self, message: EmailMessage) -> None:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in str(message["Message-ID"]).strip("<>"))
        try:
            write_atomically(ensure(self.folder, "mails") / f"{name}.eml", message.as_bytes())
        except OSError as error:
            raise Unreached(str(error)) from error


class _Patient(smtplib.SMTP):
    """Waits longer for the answer to the message itself: a server looks into it before it takes it (RFC 5321, 4.5.3.2.6)."""

    data_timeout_s = 0.0

    def data(self, msg: Any) -> tuple[int, bytes]:
        assert self.sock is not None
        self.sock.settimeout(self.data_timeout_s)
        return super().data(msg)


class _PatientSsl(_Patient, smtplib.SMTP_SSL):
    pass


@dataclass
class SmtpMailer:
    """One connection a message: few mails, and a broken one harms no other.

    Args:
        timeout_s: for the connection and each command.
        data_timeout_s: for the message: whoever gives up too early sends it twice.
    """

    config: SmtpConfig
    timeout_s: float = 30.0
    data_timeout_s: float = 300.0

    @property
    def sender(self) -> str:
        return self.config.sender

    def send(self, message: EmailMessage) -> None:
        try:
            with self._connected() as server:
                server.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            code = max(code for code, _ in error.recipients.values())
            raise (Refused if code >= 500 else Unreached)(f"{code}: the receiver was refused") from error
        except smtplib.SMTPResponseException as error:
            text = f"{error.smtp_code}: {error.smtp_error!r}"
            # A refused login is a matter of our configuration, not of this mail.
            permanent = error.smtp_code >= 500 and not isinstance(error, smtplib.SMTPAuthenticationError)
            raise (Refused if permanent else Unreached)(text) from error
        except (OSError, smtplib.SMTPException) as error:
            raise Unreached(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        config, context = self.config, ssl.create_default_context()
        if config.security == "ssl":
            server: _Patient = _PatientSsl(config.host, config.port, timeout=self.timeout_s, context=context)
        else:
            server = _Patient(config.host, config.port, timeout=self.timeout_s)
        server.data_timeout_s = self.data_timeout_s
        try:
            if config.security == "starttls":
                server.starttls(context=context)
            if config.user:
                server.login(config.user, os.environ[config.password_env])
            yield server
            # What is said after the mail was taken changes nothing: whoever took it for a failure would send it again.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                if server.sock is not None:
                    server.sock.settimeout(self.timeout_s)
                server.quit()
        finally:
            server.close()


def mailer_of(config: HubConfig) -> Mailer:
    """Over SMTP where it is configured, else into ``mails`` in the data folder."""
    return SmtpMailer(config.smtp) if config.smtp else FolderMailer(home() / "mails")
