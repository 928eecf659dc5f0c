"""A headless Chromium, driven over its DevTools protocol; a context manager.

with Chromium(tmp_path) as page:
    page.open(Path("report.html"))
    assert page.run("document.title") == "..."
    assert page.errors == []
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S = 120
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}


class Chromium:
    """One tab."""

    def __init__(self, folder: Path) -> None:
        """Start it, with its profile in ``folder``."""
        binary = next(filter(None, map(shutil.which, NAMES)), None)
        assert binary, "no Chromium; `make browser` installs it on Debian and Ubuntu, elsewhere put one on PATH"
        self.errors: list[str] = []
        """What the page and the browser logged as errors, and exceptions."""
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self._profile = folder / "profile"
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._number = 0
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--hide-scrollbars"]
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [binary, *options, f"--user-data-dir={self._profile}", "about:blank"], stdout=log, stderr=log
            )

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._send("Page.navigate", url=path.absolute().as_uri())
        ends = time.monotonic() + START_S
        while not self.run("document.readyState === 'complete' && location.protocol === 'file:'"):
            assert time.monotonic() < ends, f"{path} did not load"

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        told = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """One of KEYS."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text)
            text = {}

    def show(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the window's size in CSS pixels, and which colours its user prefers."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def download_to(self, folder: Path) -> None:
        """Where files that the page saves go."""
        self._send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, path: Path) -> None:
        """Write what the window shows."""
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot")["data"]))

    def __enter__(self) -> Self:
        try:
            self._loop.run_until_complete(self._connect())
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._send(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait()
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()

    async def _connect(self) -> None:
        known, ends = self._profile / "DevToolsActivePort", time.monotonic() + START_S
        while len(port := known.read_text().split() if known.exists() else []) < 2:
            assert self._process.poll() is None and time.monotonic() < ends, "Chromium did not start: chromium.log"
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession(f"http://127.0.0.1:{port[0]}")
        async with self._session.put("/json/new?about:blank") as answer:
            tab = await answer.json()
        self._socket = await self._session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(self._ask(method, parameters))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            told = await self._socket.receive_json(timeout=START_S)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told["method"], told["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        logged = event == "Log.entryAdded" and told["entry"]["level"] == "error"
        called = event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert")
        if event == "Runtime.exceptionThrown" or logged or called:
            self.errors.append(str(told))
