"""Pages of the digest: subscribe, confirm, unsubscribe, preview."""

from __future__ import annotations

from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from anabranch.hub.web.context import context_of
from anabranch.hub.web.pages import checked_form
from anabranch.hub.web.safety import is_loopback

_EMPTY = {"address": "", "topic": "", "cadence": "daily", "zone": ""}


async def subscribe(request: Request) -> Response:
    """The form; sent, it queues the mail that asks to confirm."""
    context, problem, given = context_of(request), "", dict(_EMPTY)
    if request.method == "POST":
        given |= await checked_form(request)
        try:
            asked = await run_in_threadpool(
                context.digest.subscriptions.ask,
                given["address"], topic=given["topic"], cadence=given["cadence"], zone=given["zone"] or "UTC",
            )  # fmt: skip
        except ValueError as error:
            problem = str(error)
        else:
            await run_in_threadpool(context.digest.served_at, _address(request))
            await run_in_threadpool(context.digest.ask_to_confirm, asked)
            context.post.wake()
            # The same words whether or not the address was known: the page tells nobody who subscribes.
            text = f"If {asked.address} is yours, open the link in the mail that is on its way."
            return context.render(request, "said.html.j2", title="One more step", text=text, action="", label="")
    status, trouble = 400 if problem else 200, context.post.last_error is not None
    return context.render(
        request, "subscribe.html.j2", trouble=trouble, status=status, problem=problem, given=given, title="Digest"
    )


async def confirm(request: Request) -> Response:
    """The link in the mail: a button, so that a mail scanner that opens links confirms nothing."""
    context, token = context_of(request), request.query_params.get("token", "")
    if request.method != "POST":  # HEAD, too, comes here: programs that look at links before people do
        return context.render(
            request, "said.html.j2", title="Confirm your subscription", text="One click, and the digest comes.",
            action=f"/confirm?token={quote(token)}", label="Confirm",
        )  # fmt: skip
    await checked_form(request)
    try:
        found = await run_in_threadpool(context.digest.subscriptions.confirm, token)
    except ValueError as error:
        return context.render(
            request, "said.html.j2", status=400, title="Not confirmed", text=str(error), action="", label=""
        )
    text = f"{found.address} gets the {found.cadence} digest{f' on “{found.topic}”' if found.topic else ''}."
    return context.render(request, "said.html.j2", title="Confirmed", text=text, action="", label="")


async def unsubscribe(request: Request) -> Response:
    """One click in the mail program (RFC 8058 posts here), or the button on this page; the signed link is the permission."""
    context, token = context_of(request), request.query_params.get("token", "")
    if request.method != "POST":  # HEAD, too, comes here: programs that look at links before people do
        return context.render(
            request, "said.html.j2", title="Unsubscribe", text="No more digests to this address?",
            action=f"/unsubscribe?token={quote(token)}", label="Unsubscribe",
        )  # fmt: skip
    try:
        found = await run_in_threadpool(context.digest.subscriptions.unsubscribe, token)
    except ValueError as error:
        return context.render(
            request, "said.html.j2", status=400, title="Not unsubscribed", text=str(error), action="", label=""
        )
    return context.render(
        request,
        "said.html.j2",
        title="Unsubscribed",
        text=f"No more digests go to {found.address}.",
        action="",
        label="",
    )


def preview(request: Request) -> Response:
    """What the mail looks like: of the last week that brought anything, with ``?topic=``."""
    context = context_of(request)
    context.digest.served_at(_address(request))
    message = context.digest.example(request.query_params.get("topic", ""))
    body = message.get_body(("html",))
    assert body is not None
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return HTMLResponse(body.get_content(), headers={"content-security-policy": policy})


def _address(request: Request) -> str:
    """Where this request came in, by the socket: a Host header may say anything."""
    host, port = request.scope.get("server") or ("localhost", 8000)
    name = "localhost" if is_loopback(host) else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


ROUTES = [
    Route("/subscribe", subscribe, methods=["GET", "POST"]),
    Route("/confirm", confirm, methods=["GET", "POST"]),
    Route("/unsubscribe", unsubscribe, methods=["GET", "POST"]),
    Route("/digest/preview", preview),
]
