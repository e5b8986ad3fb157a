"""The digest: what came in since the last one and fits a reader's topic, with what is measured here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import jinja2

from anabranch.hub.mail import POLICY, HubConfig, Mailer, load_config, mailer_of
from anabranch.hub.outbox import Outbox
from anabranch.hub.site import Card, ClaimRow, Site
from anabranch.hub.subscriptions import Subscription, Subscriptions

_LEAST_SCORE = 0.3  # of a topic search by meaning
_MOST = 20
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
    """

    site: Site
    subscriptions: Subscriptions
    outbox: Outbox
    config: HubConfig = field(default_factory=load_config)

    def issue(self, subscription: Subscription, day: date) -> Issue:
        """The issue of a day; empty where nothing came in that fits."""
        first, last = subscription.covers(day)
        new = {e.id: e for e in self.site.known().entries if (d := e.listed or e.published) and first <= d <= last}
        if subscription.topic:
            hits = [hit for hit in self.site.search(subscription.topic, 500) if hit.entry.id in new]
            if self.site.ranker_name() == "meaning":
                hits = [hit for hit in hits if hit.score >= _LEAST_SCORE]
            cards = self.site.cards([hit.entry for hit in hits[:_MOST]], [hit.sentence for hit in hits[:_MOST]])
        else:
            cards = sorted(self.site.cards(list(new.values())), key=lambda card: -card.votes)[:_MOST]
        fresh = {
            slug
            for slug, (result, _) in self.site.results().items()
            if first <= datetime.fromisoformat(result["date"]).date() <= last
        }
        verdicts = [row for row in self.site.claims() if row.paper.slug in fresh and row.outcome != "not checked"]
        return Issue(day, cards, verdicts)

    def message(self, subscription: Subscription, issue: Issue) -> EmailMessage:
        """The mail: text and HTML, with the headers by which a mail program unsubscribes in one click."""
        address = self.config.address
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
        """Queue the mail with the link that confirms; asking again within the minute queues no second one."""
        link = f"{self.config.address}/confirm?token={self.subscriptions.token(subscription, 'confirm')}"
        values = {"subscription": subscription, "link": link, "address": self.config.address}
        key = f"confirm-{subscription.id}-{subscription.asked:%Y%m%dT%H%M}"
        message = self._envelope(subscription.address, "anabranch - confirm your subscription", key)
        message.set_content(_TEMPLATES.get_template("confirm.txt.j2").render(values))
        self.outbox.put(key, message)

    def queue_due(self, now: datetime | None = None) -> int:
        """Queue the digests that are due at this moment; how many. An issue without papers and verdicts is not sent."""
        now = now or datetime.now(UTC)
        queued = 0
        for subscription in self.subscriptions.confirmed():
            period = subscription.due(now)
            key = f"digest-{subscription.id}-{period}"
            if period is None or self.outbox.holds(key):
                continue
            issue = self.issue(subscription, now.astimezone(ZoneInfo(subscription.zone)).date())
            if issue.cards or issue.verdicts:
                queued += self.outbox.put(key, self.message(subscription, issue), now=now)
        return queued

    def example(self, topic: str = "") -> EmailMessage:
        """The weekly mail of a reader of everything, or of a topic, on the day after the newest paper or verdict."""
        days = [day for e in self.site.known().entries if (day := e.listed or e.published)]
        days += [datetime.fromisoformat(result["date"]).date() for result, _ in self.site.results().values()]
        day = max(days, default=datetime.now(UTC).date()) + timedelta(days=1)
        reader = Subscription(0, "reader@example.org", topic, "weekly", "UTC", "confirmed", datetime.now(UTC))
        return self.message(reader, self.issue(reader, day))

    def _envelope(self, to: str, subject: str, key: str) -> EmailMessage:
        message = EmailMessage(POLICY)
        message["From"], message["To"], message["Subject"] = self.sender, to, subject
        message["Date"] = format_datetime(datetime.now(UTC))
        name = hashlib.sha256(f"{self.config.address} {to} {key}".encode()).hexdigest()[:32]
        message["Message-ID"] = f"<{name}@anabranch.invalid>"  # the same however often it is made
        return message

    @property
    def sender(self) -> str:
        return self.config.smtp.sender if self.config.smtp else "anabranch@localhost"

    @property
    def mailer(self) -> Mailer:
        return mailer_of(self.config)
