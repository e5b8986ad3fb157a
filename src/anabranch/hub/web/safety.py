"""What keeps the page safe: hosts, the login token, forms that only our pages can send, headers, sizes, slow clients."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anabranch.hub.signing import sign

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
MAX_BODY_BYTES = 64 * 1024
_BODY_PATIENCE_S = 10.0
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
SESSION, LOGIN = "anabranch_session", "anabranch_login"
_OPEN = ("/static/", "/login", "/confirm", "/unsubscribe", "/health")  # reached without the login token


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


class Guard:
    """Middleware around the whole application.

    Args:
        app: what it guards.
        secret: signs forms and cookies.
        token: what a browser must show once, in ``?token=``, where the page is not on the loopback; None asks for nothing.
        hosts: names under which the page answers, without port; others are refused, so that no foreign name can be
            bound to a loopback page.
    """

    def __init__(self, app: ASGIApp, *, secret: bytes, token: str | None, hosts: frozenset[str]) -> None:
        self._app, self._secret, self._token, self._hosts = app, secret, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, headers = Request(scope), Headers(scope=scope)
        cookies = _cookies(headers)
        session = cookies.get(SESSION, "")
        fresh = not _valid(self._secret, "session", session)
        if fresh:
            session = _made(self._secret, "session")
        scope["session_id"], scope["csrf"] = session, sign(self._secret, "form", session)

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                if fresh and out.get("content-type", "").startswith("text/html"):
                    out.append(
                        "set-cookie", f"{SESSION}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
                    )
            await send(message)

        refused = self._refusal(request, headers, cookies)
        if refused is not None:
            await refused(scope, receive, guarded_send)
            return
        await self._app(scope, _limited(receive, headers), guarded_send)

    def _refusal(
        self, request: Request, headers: Headers, cookies: dict[str, str]
    ) -> PlainTextResponse | RedirectResponse | None:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if "*" not in self._hosts and host not in self._hosts and f"[{host}]" not in self._hosts:
            return PlainTextResponse("this page does not answer under that name", 421)
        if self._token is not None and not request.url.path.startswith(_OPEN):
            given = request.query_params.get("token") or headers.get("authorization", "").removeprefix("Bearer ")
            if given and hmac.compare_digest(given.encode(), self._token.encode()):
                if "token" in request.query_params:
                    return self._logged_in(request)
            elif not _valid(self._secret, "login", cookies.get(LOGIN, "")):
                if request.url.path.startswith("/api/"):
                    return PlainTextResponse("log in first: send the token as a bearer token", 401)
                return RedirectResponse("/login", 303)
        if request.method not in ("GET", "HEAD", "OPTIONS") and not self._own_origin(headers, host):
            return PlainTextResponse("this form was not sent from our page", 403)
        if int(headers.get("content-length") or 0) > MAX_BODY_BYTES:
            return PlainTextResponse(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
        return None

    def _logged_in(self, request: Request) -> RedirectResponse:
        target = request.url.remove_query_params("token")
        answer = RedirectResponse(target.path + (f"?{target.query}" if target.query else ""), 303)
        answer.set_cookie(
            LOGIN, _made(self._secret, "login"), max_age=31_536_000, httponly=True, samesite="strict", path="/"
        )
        return answer

    def _own_origin(self, headers: Headers, host: str) -> bool:
        """Browsers say where a form comes from; other programs say nothing and have no cookie to steal."""
        origin = headers.get("origin")
        if origin in (None, "null"):
            return origin is None
        return urlsplit(str(origin)).netloc == headers.get("host", "") and bool(host)


def check_form(scope: Scope, given: str) -> bool:
    """Whether a form carries the token of the browser that it was made for."""
    return hmac.compare_digest(str(scope["csrf"]).encode(), given.encode("utf-8", "replace"))


def _made(secret: bytes, purpose: str) -> str:
    name = secrets.token_hex(16)
    return f"{name}.{sign(secret, purpose, name)[:32]}"


def _valid(secret: bytes, purpose: str, cookie: str) -> bool:
    name, _, signature = cookie.partition(".")
    return hmac.compare_digest(sign(secret, purpose, name)[:32].encode(), signature.encode("utf-8", "replace"))


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _limited(receive: Receive, headers: Headers) -> Receive:
    """``receive`` that gives up on bodies that are too large (also where no length was said) or too slow."""
    taken, over = 0, headers.get("content-length") in (None, "0") and "transfer-encoding" not in headers

    async def limited() -> Message:
        nonlocal taken, over
        if over:  # only the end of the connection is left to hear of
            return await receive()
        message = await asyncio.wait_for(receive(), _BODY_PATIENCE_S)
        taken += len(message.get("body", b""))
        over = not message.get("more_body", False)
        if taken > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return limited


class BodyTooLarge(Exception):
    """A body went on past what is allowed."""
