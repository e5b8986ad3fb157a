"""The digest: what came in since the last one and fits a reader's topic, with what is measured here."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import jinja2

from anabranch.hub.config import HubConfig, load_config
from anabranch.hub.mail import POLICY, Mailer, mailer_of
from anabranch.hub.outbox import Outbox
from anabranch.hub.site import Card, ClaimRow, Site
from anabranch.hub.subscriptions import ASKED_FOR, LOOKS_BACK, Subscription, Subscriptions, last_day

_MOST = 20
_ASKS_A_DAY = 5  # mails that ask one address to confirm
_ANYWHERE = "http://localhost:8000"  # the address of the page when nobody has said another
_log = logging.getLogger(__name__)
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "web" / "templates"),
    autoescape=lambda name: bool(name and name.endswith(".html.j2")),
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


@dataclass(frozen=True)
class Issue:
    """What one digest tells.

    Args:
        day: when it is sent, where the reader is.
        cards: papers that came in and fit, best first.
        verdicts: claims whose result was committed in the time it covers.
    """

    day: date
    cards: list[Card]
    verdicts: list[ClaimRow]

    @property
    def subject(self) -> str:
        papers = f"{len(self.cards)} paper{'' if len(self.cards) == 1 else 's'}"
        checked = f", {len(self.verdicts)} new verdict{'' if len(self.verdicts) == 1 else 's'}" if self.verdicts else ""
        return f"anabranch - {self.day:%a} {self.day.day} {self.day:%b}: {papers}{checked}"


@dataclass
class Digest:
    """Composes and sends digests.

    Args:
        site: what is told of.
        subscriptions: who is told.
        outbox: makes each go out once.
        faults: subscriptions whose digest could not be made, with the reason, by number.
    """

    site: Site
    subscriptions: Subscriptions
    outbox: Outbox
    config: HubConfig = field(default_factory=load_config)
    faults: dict[int, str] = field(default_factory=dict, init=False)
    _empty: dict[int, tuple[object, ...]] = field(default_factory=dict, init=False, repr=False)
    _asking: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def issue(self, subscription: Subscription, day: date) -> Issue:
        """The issue of a day; empty where nothing came in that fits. It tells of the days since the one before, and of
        papers of the last 14 days that were not here then. Time: see :func:`anabranch.hub.topics.fitting`."""
        told, upto = self._told(subscription, day)
        first, last = subscription.covers(day, told)
        back = last + timedelta(days=1) - LOOKS_BACK
        new = [
            entry
            for entry in self.site.known().entries
            if (d := entry.listed or entry.published)
            and (first <= d <= last or (back <= d < first and upto is not None and (entry.id or 0) > upto))
        ]
        if subscription.topic:
            hits = self.site.fitting(subscription.topic, new, _MOST)
            cards = self.site.cards([hit.entry for hit in hits], [hit.sentence for hit in hits])
        else:
            cards = sorted(self.site.cards(new), key=lambda card: -card.votes)[:_MOST]
        fresh = {
            slug
            for slug, (result, _) in self.site.results().items()
            if first <= datetime.fromisoformat(result["date"]).date() <= last
        }
        verdicts = [row for row in self.site.claims() if row.paper.slug in fresh and row.outcome != "not checked"]
        return Issue(day, cards, verdicts)

    def _told(self, subscription: Subscription, day: date) -> tuple[date | None, int | None]:
        """Of the digest before the one of ``day``: the last day it told of, and the newest entry there was."""
        prefix, (_, last) = f"digest-{subscription.id}-", subscription.covers(day)
        told = [(last_day(key.removeprefix(prefix)), upto) for key, upto in self.outbox.told(prefix)]
        return max((each for each in told if each[0] < last), key=lambda each: each[0], default=(None, None))

    def message(self, subscription: Subscription, issue: Issue) -> EmailMessage:
        """The mail: text and HTML, with the headers by which a mail program unsubscribes in one click."""
        address = self.address
        end = f"{address}/unsubscribe?token={self.subscriptions.token(subscription, 'unsubscribe')}"
        values = {"issue": issue, "subscription": subscription, "address": address, "unsubscribe": end}
        message = self._envelope(subscription.address, issue.subject, f"{subscription.id}-{issue.day}")
        message["List-Unsubscribe"] = f"<{end}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        message["List-Id"] = "anabranch digest <digest.anabranch.invalid>"
        message.set_content(_TEMPLATES.get_template("digest.txt.j2").render(values))
        message.add_alternative(_TEMPLATES.get_template("digest.html.j2").render(values), subtype="html")
        return message

    def ask_to_confirm(self, subscription: Subscription) -> None:
        """Queue the mail with the link that confirms what was wished (:meth:`Subscriptions.ask`).

        None goes to who has confirmed the same already, a second one in the same minute, or a sixth to one address in a
        day (UTC)."""
        known = self.subscriptions.get(subscription.id)
        if known is not None and known.state == "confirmed" and known.zone == subscription.zone:
            return
        link = f"{self.address}/confirm?token={self.subscriptions.token(subscription, 'confirm')}"
        values = {"subscription": subscription, "link": link, "address": self.address}
        asked = subscription.asked.astimezone(UTC)
        who = hashlib.sha256(subscription.address.encode()).hexdigest()[:16]
        of_today = f"confirm-{who}-{asked:%Y-%m-%d}-"
        key = f"{of_today}{asked:%H%M}-{subscription.id}-{subscription.zone}"
        message = self._envelope(subscription.address, "anabranch - confirm your subscription", key)
        message.set_content(_TEMPLATES.get_template("confirm.txt.j2").render(values))
        with self._asking:
            if self.outbox.count(of_today) < _ASKS_A_DAY:
                self.outbox.put(key, message, keep=ASKED_FOR)

    def queue_due(self, now: datetime | None = None) -> int:
        """Queue the digests that are due at this moment; how many. An issue without papers and verdicts is not sent, and not
        made again before something has changed. A reader whose issue cannot be made is told of in ``faults``; the others get
        theirs. Before the first one with a topic the index by meaning is built, where the encoder is here."""
        now = now or datetime.now(UTC)
        self.subscriptions.forget(now)
        queued, readers = 0, self.subscriptions.confirmed()
        for number in self.faults.keys() - {reader.id for reader in readers}:
            del self.faults[number]
        for subscription in readers:
            try:
                queued += self._queue(subscription, now)
            except Exception as error:  # whatever it is, it is this reader's
                reason = f"{type(error).__name__}: {error}"
                if self.faults.get(subscription.id) != reason:
                    _log.exception("the digest of subscription %d could not be made", subscription.id)
                self.faults[subscription.id] = reason
            else:
                self.faults.pop(subscription.id, None)
        return queued

    def _queue(self, subscription: Subscription, now: datetime) -> bool:
        period = subscription.due(now)
        key = f"digest-{subscription.id}-{period}"
        if period is None or self.outbox.holds(key):
            return False
        if subscription.topic:
            self.site.build_meaning()
        state = (period, *self.site.state)
        if self._empty.get(subscription.id) == state:
            return False
        upto = max((entry.id or 0 for entry in self.site.known().entries), default=0)
        issue = self.issue(subscription, now.astimezone(ZoneInfo(subscription.zone)).date())
        if not issue.cards and not issue.verdicts:
            self._empty[subscription.id] = state
            return False
        return self.outbox.put(key, self.message(subscription, issue), now=now, upto=upto)

    def example(self, topic: str = "") -> EmailMessage:
        """The weekly mail of a reader of everything, or of a topic, on the Monday after the newest paper or verdict."""
        days = [day for e in self.site.known().entries if (day := e.listed or e.published)]
        days += [datetime.fromisoformat(result["date"]).date() for result, _ in self.site.results().values()]
        day = max(days, default=datetime.now(UTC).date())
        day += timedelta(days=7 - day.weekday())
        reader = Subscription(0, "reader@example.org", topic, "weekly", "UTC", "confirmed", datetime.now(UTC))
        return self.message(reader, self.issue(reader, day))

    def _envelope(self, to: str, subject: str, key: str) -> EmailMessage:
        message = EmailMessage(POLICY)
        message["From"], message["To"], message["Subject"] = self.sender, to, subject
        message["Date"] = format_datetime(datetime.now(UTC))
        name = hashlib.sha256(f"{self.address} {to} {key}".encode()).hexdigest()[:32]
        message["Message-ID"] = f"<{name}@anabranch.invalid>"  # the same however often it is made
        return message

    @property
    def address(self) -> str:
        """Where links in mails lead: as configured, else where the page was served last."""
        return self.config.address or self.outbox.note("served") or _ANYWHERE

    def served_at(self, address: str) -> None:
        """Remember where the page is reached, for links in mails, also of later processes."""
        if not self.config.address and self.outbox.note("served") != address:
            self.outbox.note("served", address)

    @property
    def sender(self) -> str:
        return self.config.smtp.sender if self.config.smtp else "anabranch@localhost"

    @property
    def mailer(self) -> Mailer:
        return mailer_of(self.config)
