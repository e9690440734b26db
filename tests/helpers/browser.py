"""A headless Chromium, driven over its DevTools protocol: what a page shows, logs and asks of the network."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOADS = 20.0
"""Seconds that a page has."""


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page. `console` has errors and warnings, `requests` every address that was asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            plain = json.loads(message.data)
            if "id" in plain:
                self._waiting.pop(plain["id"]).set_result(plain)
            elif plain["method"] == "Runtime.exceptionThrown":
                self.console.append(json.dumps(plain["params"]["exceptionDetails"]))
            elif plain["method"] == "Runtime.consoleAPICalled" and plain["params"]["type"] in ("error", "warning", "assert"):
                self.console.append(json.dumps(plain["params"]["args"]))
            elif plain["method"] == "Log.entryAdded" and plain["params"]["entry"]["level"] in ("error", "warning"):
                self.console.append(json.dumps(plain["params"]["entry"]))
            elif plain["method"] == "Network.requestWillBeSent":
                self.requests.append(plain["params"]["request"]["url"])

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        reply = await asyncio.wait_for(self._waiting[number], LOADS)
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    async def size(self, width: int, height: int = 900) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def run(self, script: str) -> Any:
        """Evaluate JavaScript; a promise is waited for."""
        reply = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + LOADS
        while not (value := await self.run(script)):
            assert time.monotonic() < end, (
                f"never true: {script}; console: {self.console}; the page says: {await self.run('document.body.innerText')}"
            )
            await asyncio.sleep(0.05)
        return value

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete'")

    async def key(self, name: str) -> None:
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37}.get(name, 0)
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=name, text=text, windowsVirtualKeyCode=code)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    async def screenshot(self, path: Path) -> None:
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        reply = await self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(reply["data"]))


def browse(profile: Path, visit: Callable[[Page], Awaitable[None]]) -> None:
    """Start a browser with an empty profile, hand its page to `visit`, and end it with all its children."""
    program = find()
    assert program is not None
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        asyncio.run(_visit(profile, process, visit))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _visit(profile: Path, process: subprocess.Popen[bytes], visit: Callable[[Page], Awaitable[None]]) -> None:
    file, end = profile / "DevToolsActivePort", time.monotonic() + LOADS
    while not (file.is_file() and "\n" in file.read_text()):
        assert process.poll() is None and time.monotonic() < end, (profile.parent / "browser.log").read_text()
        await asyncio.sleep(0.05)
    port = file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
            target = next(each for each in await reply.json() if each["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network", "Log"):
                await page.call(f"{domain}.enable")
            await visit(page)
