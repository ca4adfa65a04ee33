"""A headless Chromium, spoken to over the DevTools protocol through a pair of pipes: no driver, no port, no library.

The protocol: https://chromedevtools.github.io/devtools-protocol/. With `--remote-debugging-pipe` Chromium reads
commands from its file descriptor 3 and writes replies and events to 4, each a JSON object with a NUL behind it.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds until an answer of the browser counts as lost.
PATIENCE = 60

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--force-color-profile=srgb"),
)


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One Chromium with one page; what the page asked for and said is kept.

    Attributes:
        requests: addresses that the page asked for, in order; `data:` ones are part of the page and are left out.
        said: console messages, uncaught errors and broken rules of the Content-Security-Policy.
        dialogs: the messages of alert, confirm and prompt.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self.requests: list[str] = []
        self.said: list[str] = []
        self.dialogs: list[str] = []
        self._loaded = False
        self._session: str | None = None
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def open(self, address: str, width: int, height: int = 800, dark: bool = False) -> None:
        """Show a page in a window of that size; what was seen before is forgotten."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._send("Emulation.setEmulatedMedia", features=scheme)
        for seen in (self.requests, self.said, self.dialogs):
            seen.clear()
        self._loaded = False
        self._send("Page.navigate", url=address)
        while not self._loaded:
            self._take(self._message())
        # Pictures of a data: URI are decoded, and whatever was to happen has happened, two frames later.
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))")

    def run(self, script: str) -> Any:
        """Return the value of a script, run in the page from outside: its own policy does not hold for it."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        shot = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._take(answer)

    def _message(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            block = os.read(self._read, 1 << 16) if ready else b""
            assert block, "Chromium says nothing any more"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _take(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        method = message.get("method")
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._number += 1
            answer = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._write, json.dumps({**answer, "sessionId": self._session}).encode() + b"\0")
        elif method == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Page.loadEventFired":
            self._loaded = True


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile; it is gone when the block ends."""
    commands_out, commands_in = _pipe()
    replies_out, replies_in = _pipe()
    actions = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, commands_out, 3), (os.POSIX_SPAWN_DUP2, replies_in, 4)]
    words = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    # A group of its own, so that the processes it starts end with it.
    process = os.posix_spawn(program, words, os.environ, file_actions=actions, setpgroup=0)
    os.close(commands_out)
    os.close(replies_in)
    try:
        yield Browser(replies_out, commands_in)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(commands_in)
        os.close(replies_out)


def _pipe() -> tuple[int, int]:
    """Return a pipe's two ends, away from the numbers that Chromium wants them at."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
