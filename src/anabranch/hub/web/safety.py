"""What keeps the page safe: hosts, the login token, forms that only our pages can send, headers, sizes, slow clients."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch.hub.signing import sign

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
MAX_BODY_BYTES = 64 * 1024
BODY_PATIENCE_S = 10.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_OPEN = ("/static/", "/login", "/confirm", "/unsubscribe", "/health")  # reached without the login token
_FOR_ALL = ("/papers/", "/subscribe")  # forms that readers may send where reading is public
Access = Literal["login", "public"]


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


class Guard:
    """Middleware around the whole application.

    Args:
        app: what it guards.
        secret: signs forms and cookies.
        token: what a browser must show once, in ``?token=`` or on the login page, where the page is not on the loopback;
            None asks for nothing.
        access: what the token is asked for: "login", everything; "public", all but reading, votes and subscriptions.
        hosts: names under which the page answers, without port; others are refused, so that no foreign name can be
            bound to a loopback page.
    """

    def __init__(
        self, app: ASGIApp, *, secret: bytes, token: str | None, hosts: frozenset[str], access: Access = "login"
    ) -> None:
        self._app, self._secret, self._token, self._hosts, self._access = app, secret, token, hosts, access
        # Browsers do not tell ports apart: two servers of one machine need names of their own for their cookies.
        mine = sign(secret, "cookie", "")[:8]
        self._session_cookie, self._login_cookie = f"anabranch_session_{mine}", f"anabranch_login_{mine}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = _cookies(headers)
        session = cookies.get(self._session_cookie, "")
        fresh = not _valid(self._secret, "session", session)
        if fresh:
            session = _made(self._secret, "session")
        scope["guard"] = self
        scope["session_id"], scope["csrf"] = session, sign(self._secret, "form", session)
        scope["voter"] = sign(self._secret, "voter", session)[:32]  # who reads the file of votes can be nobody else

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                if fresh and out.get("content-type", "").startswith("text/html"):
                    out.append("set-cookie", _cookie(self._session_cookie, session))
            await send(message)

        refused = self._refusal(scope, headers, cookies)
        if refused is not None:
            await refused(scope, receive, guarded_send)
            return
        await self._app(scope, _limited(receive, headers), guarded_send)

    def _refusal(
        self, scope: Scope, headers: Headers, cookies: dict[str, str]
    ) -> PlainTextResponse | RedirectResponse | None:
        host = _host(headers)
        if "*" not in self._hosts and host not in self._hosts and f"[{host}]" not in self._hosts:
            return PlainTextResponse("this page does not answer under that name", 421)
        path, method = str(scope["path"]), str(scope["method"])
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if self._token is not None and not path.startswith(_OPEN):
            given = dict(query).get("token") or headers.get("authorization", "").removeprefix("Bearer ")
            if given and hmac.compare_digest(given.encode(), self._token.encode()):
                if any(name == "token" for name, _ in query):
                    return self.log_in(path, urlencode([pair for pair in query if pair[0] != "token"]))
            elif not self._may(path, method) and not self._logged_in(cookies):
                if path.startswith("/api/"):
                    return PlainTextResponse("log in first: send the token as a bearer token", 401)
                return RedirectResponse("/login", 303)
        if method not in ("GET", "HEAD", "OPTIONS") and not self._own_origin(headers, host):
            return PlainTextResponse("this form was not sent from our page", 403)
        length = headers.get("content-length") or "0"
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return PlainTextResponse(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
        return None

    def _may(self, path: str, method: str) -> bool:
        """Whether a stranger may."""
        return self._access == "public" and (method in ("GET", "HEAD") or path.startswith(_FOR_ALL))

    def _logged_in(self, cookies: dict[str, str]) -> bool:
        return _valid(self._secret, f"login {self._token}", cookies.get(self._login_cookie, ""))

    def log_in(self, path: str = "/", query: str = "") -> RedirectResponse:
        """Sends a browser that has shown the token on its way; another token asks again."""
        # The path is ours, but "//elsewhere" would lead away.
        answer = RedirectResponse("/" + path.lstrip("/") + (f"?{query}" if query else ""), 303)
        answer.headers.append("set-cookie", _cookie(self._login_cookie, _made(self._secret, f"login {self._token}")))
        return answer

    def is_token(self, given: str) -> bool:
        """Whether this is the login token."""
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def _own_origin(self, headers: Headers, host: str) -> bool:
        """Browsers say where a form comes from; other programs say nothing and have no cookie to steal."""
        origin = headers.get("origin")
        if origin in (None, "null"):
            return origin is None
        try:
            return urlsplit(str(origin)).netloc == headers.get("host", "") and bool(host)
        except ValueError:
            return False


def check_form(scope: Scope, given: str) -> bool:
    """Whether a form carries the token of the browser that it was made for."""
    return hmac.compare_digest(str(scope["csrf"]).encode(), given.encode("utf-8", "replace"))


def check_program(scope: Scope) -> bool:
    """Whether a request that is no form may change something: it shows the login token as bearer or the token of its
    browser in ``x-csrf-token``, or comes from a program, which has neither cookies nor an origin to be misused."""
    headers = Headers(scope=scope)
    if scope["guard"].is_token(headers.get("authorization", "").removeprefix("Bearer ")):
        return True
    if check_form(scope, headers.get("x-csrf-token", "")):
        return True
    return not any(name in headers for name in ("cookie", "origin", "sec-fetch-site", "sec-fetch-mode"))


def _made(secret: bytes, purpose: str) -> str:
    name = secrets.token_hex(16)
    return f"{name}.{sign(secret, purpose, name)[:32]}"


def _valid(secret: bytes, purpose: str, cookie: str) -> bool:
    name, _, signature = cookie.partition(".")
    return hmac.compare_digest(sign(secret, purpose, name)[:32].encode(), signature.encode("utf-8", "replace"))


def _cookie(name: str, value: str) -> str:
    # Lax: a link in a mail must find the reader's session. Forms are guarded by their token and their origin.
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age=31536000"


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _limited(receive: Receive, headers: Headers) -> Receive:
    """``receive`` that gives up on bodies that are too large (also where no length was said) or too slow as a whole."""
    taken, over = 0, headers.get("content-length") in (None, "0") and "transfer-encoding" not in headers
    until = asyncio.get_running_loop().time() + BODY_PATIENCE_S

    async def limited() -> Message:
        nonlocal taken, over
        if over:  # only the end of the connection is left to hear of
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow from None
        taken += len(message.get("body", b""))
        over = not message.get("more_body", False)
        if taken > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return limited


class BodyTooLarge(Exception):
    """A body went on past what is allowed."""


class BodyTooSlow(Exception):
    """A body did not come whole in time."""
