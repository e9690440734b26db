from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from cluster.monitor.access import Access
from cluster.monitor.library import Library
from cluster.monitor.server import PortTaken, application, serve

SECRET = "0123456789abcdef-secret"
PATHS = (
    "/",
    "/static/monitor.js",
    "/static/nothing",
    "/api/runs",
    "/api/run?run=one",
    "/media?run=one&path=a.mp4",
    "/nothing",
    "/?token=wrong",
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "one"
    (run / "log").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (run / "a.mp4").write_bytes(bytes(range(100)))
    (run / "log" / "rank-0.log").write_text("<b>line</b>\n")
    (tmp_path / "secret.log").write_text("secret")
    return tmp_path / "runs"


def talk(runs: Path, token: str, visit: Callable[[TestClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with TestClient(TestServer(application(Library([runs]), Access(token)))) as client:
            await visit(client)

    asyncio.run(main())


def test_without_the_token_nothing_is_said(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        said = set()
        for path in PATHS:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "videoar_monitor=wrong"}):
                reply = await client.get(path, headers=headers, allow_redirects=False)
                assert reply.status == 401, path
                said.add(await reply.text())
                assert SECRET not in str(reply.headers)
        assert len(said) == 1, "the same for what is there and for what is not"
        assert "one" not in next(iter(said)).split() and SECRET not in next(iter(said))

    talk(runs, SECRET, visit)


def test_the_token_opens_the_page_and_leaves_the_address(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        reply = await client.get("/api/runs", headers={"Authorization": f"Bearer {SECRET}"})
        assert [run["id"] for run in (await reply.json())["runs"]] == ["one"]
        reply = await client.get(f"/?token={SECRET}", allow_redirects=False)
        assert reply.status == 303 and reply.headers["Location"] == "/"
        cookie = reply.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert (await client.get("/api/runs", headers={"Cookie": cookie.split(";")[0]})).status == 200

    talk(runs, SECRET, visit)


def test_pages_data_and_headers(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        page = await client.get("/")
        assert "VideoAR runs" in await page.text()
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        for name in (
            "uPlot.iife.min.js",
            "uPlot.min.css",
            "uPlot.LICENSE",
            "monitor.js",
            "charts.js",
            "monitor.css",
            "icon.svg",
        ):
            assert (await client.get(f"/static/{name}")).status == 200
        (chart,) = await (await client.get("/api/charts?run=one")).json()
        assert chart["x"] == [1.0] and chart["curves"] == [["all", [0.5]]]
        log = await client.get("/log?run=one&path=log/rank-0.log")
        assert await log.text() == "<b>line</b>\n" and log.content_type == "text/plain"
        assert (await client.get("/api/compare?run=one&run=one")).status == 200

    talk(runs, "", visit)


def test_videos_are_served_by_ranges(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        reply = await client.get("/media?run=one&path=a.mp4", headers={"Range": "bytes=10-19"})
        assert reply.status == 206 and await reply.read() == bytes(range(10, 20))
        assert reply.headers["Content-Range"] == "bytes 10-19/100" and reply.content_type == "video/mp4"
        assert (await client.get("/media?run=one&path=a.mp4", headers={"Range": "bytes=200-"})).status == 416

    talk(runs, "", visit)


@pytest.mark.parametrize(
    "path",
    [
        "/log?run=one&path=../../secret.log", "/log?run=one&path=%2e%2e/%2e%2e/secret.log", "/media?run=one&path=/etc/passwd",
        "/log?run=../&path=secret.log", "/static/..%2f..%2fserver.py", "/static/../server.py", "/api/run?run=none", "/rejects?run=one",
        "/media?run=one",
    ],
)  # fmt: skip
def test_what_is_outside_of_a_run_is_not_there(runs: Path, path: str) -> None:
    async def visit(client: TestClient) -> None:
        reply = await client.get(path)
        text = await reply.text()
        assert reply.status == 404 and "secret" not in text and str(runs) not in text and "Traceback" not in text

    talk(runs, "", visit)


def test_a_wrong_number_is_a_clear_error(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        for query in ("width=abc", "begin=nan", "end=1e99"):
            reply = await client.get(f"/api/charts?run=one&{query}")
            assert reply.status == 400 and "is not a number" in await reply.text()

    talk(runs, "", visit)


def test_a_page_of_another_site_gets_nothing(runs: Path) -> None:
    async def visit(client: TestClient) -> None:
        assert (await client.get("/api/runs", headers={"Host": "evil.example"})).status == 401

    talk(runs, "", visit)


def test_a_taken_port_is_named(runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127.0.0.1:{port}: taken; choose another --port"):
            serve(Library([runs]), "127.0.0.1", port, Access(""), lambda host, port: None)


def test_the_command_prints_its_address_and_ends_on_a_signal(runs: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli.main", "monitor", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port))) as link:
            link.sendall(f"GET /api/runs HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert json.loads(link.makefile().read().split("\n\n", 1)[1])["runs"][0]["id"] == "one"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
