"""The web server of `videoar monitor`: what is served at which address, to whom.

In:  a `Library`, an address to bind, a token if the address is not this machine's own.
Out: the page (static/), its data as JSON, videos with byte ranges, until SIGINT or SIGTERM.

aiohttp is what Ray's dashboard runs on: it answers byte ranges, without which browsers do not seek in videos.
"""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from cluster.monitor.access import COOKIE, Access
from cluster.monitor.charts import View
from cluster.monitor.folders import MonitorError, NotThere
from cluster.monitor.library import Library
from cluster.monitor.prometheus import PrometheusError

STATIC = Path(__file__).parent / "static"
WIDEST = 2000
"""Most bins of a chart."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""On each answer: the browser fetches nothing from elsewhere, and hands the token to no one."""
_STATIC_FILES = ("monitor.js", "charts.js", "monitor.css", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE", "icon.svg")


class PortTaken(OSError):
    """The address cannot be bound; the message names it and the fix."""


def application(library: Library, access: Access) -> web.Application:
    """Return the application, without starting it."""
    app = web.Application(middlewares=[_guarded(access)])

    def data(build: Callable[[web.Request], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            value = await asyncio.to_thread(build, request)
            return web.json_response(text=json.dumps(value, allow_nan=False, separators=(",", ":"), default=str))

        return handler

    async def page(request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html")

    async def static(request: web.Request) -> web.FileResponse:
        name = request.match_info["name"]
        if name not in _STATIC_FILES:
            raise NotThere("no such file")
        return web.FileResponse(STATIC / name)

    async def media(request: web.Request) -> web.FileResponse:
        return web.FileResponse(await asyncio.to_thread(library.media, _run(request), request.query.get("path", "")))

    async def log(request: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(library.log, _run(request), request.query.get("path", "")))

    async def rejects(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(library.rejects, _run(request), int(_number(request, "number", 0)))
        return web.Response(text=text, content_type="text/html")

    app.router.add_get("/", page)
    app.router.add_get("/static/{name}", static)
    app.router.add_get("/media", media)
    app.router.add_get("/log", log)
    app.router.add_get("/rejects", rejects)
    app.router.add_get("/api/runs", data(lambda request: library.runs()))
    app.router.add_get("/api/run", data(lambda request: library.run(_run(request))))
    app.router.add_get("/api/charts", data(lambda request: library.charts(_run(request), _view(request))))
    app.router.add_get("/api/compare", data(lambda request: library.compare(request.query.getall("run", []), _view(request))))
    return app


def serve(library: Library, host: str, port: int, access: Access, ready: Callable[[str, int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called with the host and the port once the server answers.

    Raises PortTaken if the address cannot be bound.
    """
    asyncio.run(_serve(library, host, port, access, ready))


async def _serve(library: Library, host: str, port: int, access: Access, ready: Callable[[str, int], None]) -> None:
    runner = web.AppRunner(application(library, access), access_log=None)
    await runner.setup()
    stopping, stopped = threading.Event(), asyncio.Event()
    reader = threading.Thread(target=library.read_on, args=(stopping,), name="read histories", daemon=True)
    try:
        try:
            await web.TCPSite(runner, host, port, shutdown_timeout=2.0).start()
        except OSError as error:
            fix = (
                "choose another --port, or --port 0 for a free one"
                if error.errno == errno.EADDRINUSE
                else "choose another --host or --port"
            )
            raise PortTaken(
                f"{host}:{port}: {'taken' if error.errno == errno.EADDRINUSE else error.strerror}; {fix}"
            ) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        reader.start()
        ready(host, runner.addresses[0][1])
        await stopped.wait()
    finally:
        stopping.set()
        await runner.cleanup()
        if reader.is_alive():
            reader.join()


def _guarded(access: Access) -> Any:
    """Return the middleware: the token first, then errors as short answers; nothing is said to whoever may not see the page."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        reply: web.StreamResponse
        if request.path == "/" and access.is_token(request.query.get("token", "")):
            # The token leaves the address bar, and with it the history of the browser.
            reply = web.Response(status=303, headers={"Location": "/"})
            reply.set_cookie(COOKIE, access.token, httponly=True, samesite="Strict")
        elif not access.permits(request.headers, request.cookies):
            text = "401: open the address that `videoar monitor` printed: it has the token.\n"
            reply = web.Response(status=401, text=text, headers={"WWW-Authenticate": "Bearer"})
        else:
            reply = await _answer(request, handler)
        for name, value in HEADERS.items():
            reply.headers[name] = value
        return reply

    return guard


async def _answer(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except NotThere as error:
        return web.Response(status=404, text=f"404: {error}\n")
    except MonitorError as error:
        return web.Response(status=400, text=f"400: {error}\n")
    except PrometheusError as error:
        return web.Response(status=502, text=f"502: {error}\n")
    except web.HTTPException as error:
        return web.Response(status=error.status, text=f"{error.status}: {error.reason}\n")


def _run(request: web.Request) -> str:
    return request.query.get("run", "")


def _view(request: web.Request) -> View:
    width = min(WIDEST, max(10, int(_number(request, "width", 300))))
    return View(width, _number(request, "begin", float("-inf")), _number(request, "end", float("inf")))


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e15:
        raise MonitorError(f"{name} is not a number")
    return value
