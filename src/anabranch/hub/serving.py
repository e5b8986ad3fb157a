"""Starts the page."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from collections.abc import Callable
from threading import Thread
from typing import Any

from anabranch.lab import LabError


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    on: str = "here",
    names: tuple[str, ...] = (),
    public: bool = False,
    encoder: str | None = None,
    import_every: str | None = None,
    open_browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C. On the loopback it asks for nothing; elsewhere for a token, which is said once.

    Args:
        names: further host names under which it answers, behind a proxy: so others reach it, and the token is asked for.
        public: everybody may read, vote and subscribe; only who starts, cancels or repeats runs needs the token.
        encoder: what is searched by meaning with: a folder, or a model of sentence-transformers by name, which is fetched
            before the page is served; default is what ``hub.toml`` names, else the usual one.
        import_every: how often Daily Papers is read into the catalogue, such as ``6h``; None reads nothing.
        on: where runs go: ``here``, ``ray`` or ``ray:ADDRESS``.

    Raises:
        LabError: the port is taken, the extra is not installed, the encoder cannot be had, or ``on`` is no such place.
    """
    _allow_open_files()
    try:
        import uvicorn

        from anabranch.hub.config import encoder_folder
        from anabranch.hub.import_schedule import ImportSchedule, interval_s
        from anabranch.hub.run_queue import RunQueue
        from anabranch.hub.site import Site
        from anabranch.hub.web import create_app
        from anabranch.hub.web.safety import LOOPBACK, is_loopback
    except ModuleNotFoundError as error:
        raise LabError(f"the page needs {error.name}: pip install 'anabranch[hub]'") from error
    if on != "here" and on.partition(":")[0] != "ray":
        raise LabError(f"--on {on}: runs of the page go here, or to ray, ray:N or ray:ADDRESS")
    every_s = interval_s(import_every) if import_every else None
    token = None if is_loopback(host) and not names and not public else secrets.token_urlsafe(24)
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    hosts = LOOPBACK | {host, *names} | ({"*"} if host in ("0.0.0.0", "::") and not names else set())
    site = Site(encoder=encoder_folder(encoder))
    site.known()  # what the first page needs is read before anybody can ask
    site.results()
    access: Any = "public" if public else "login"
    imports = ImportSchedule(site.path, site.db, every_s) if every_s else None
    queue = RunQueue(workers, where=on)
    app = create_app(site, queue, token=token, hosts=frozenset(hosts), access=access, imports=imports)
    if is_loopback(host):  # links in mails; behind a name hub.toml has to say the address
        app.state.context.digest.served_at(f"http://localhost:{port}")
    shown = f"http://{'localhost' if is_loopback(host) else host}:{port}/" + (f"?token={token}" if token else "")
    say(f"anabranch is at {shown}  (Ctrl-C ends it)")
    if open_browser:
        Thread(target=webbrowser.open, args=(shown,), daemon=True).start()
    try:
        uvicorn.Server(server_config(app)).run(sockets=[listener])
    finally:
        site.close()


def server_config(app: Any, **more: Any) -> Any:
    """How uvicorn serves the application: connections that give up on slow clients, limits on heads and numbers."""
    import uvicorn

    from anabranch.hub.web.connections import PatientProtocol

    return uvicorn.Config(
        app, http=PatientProtocol, log_level="warning", access_log=False, timeout_keep_alive=10, limit_concurrency=4000,
        backlog=2048, h11_max_incomplete_event_size=32 * 1024, **{"timeout_graceful_shutdown": 2, **more},
    )  # fmt: skip


def _allow_open_files(wanted: int = 8192) -> None:
    """A listener is an open file, and the usual limit is 1,024."""
    try:
        import resource
    except ModuleNotFoundError:  # not Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, else asyncio leaves Nagle's algorithm on: a body waits 40 ms for the word that its header has come.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # who comes before the server is up waits
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise LabError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from error
    return listener
