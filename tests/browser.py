"""A real browser without a screen, driven over its pipe: Chromium's DevTools protocol in a few lines."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.requires import which

#: Debian's names of the same browser, the smallest first.
BROWSERS: Final = ("chromium-headless-shell", "chromium")


class Page:
    """One page, 1000 by 700 points large."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._number = 0
        self._session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank", width=1000, height=700)["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=1000, height=700, deviceScaleFactor=1, mobile=False)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        text = bytearray()
        while (char := self._from.read(1)) != b"\0":
            assert char, "the browser has ended"
            text += char
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, url: str) -> None:
        """Load *url*, and wait until its script has drawn."""
        self.ask("Page.navigate", url=url)
        self.run(
            "(async () => { while (!window.ready || !window.painted) await new Promise(r => setTimeout(r, 10)) })()"
        )

    def run(self, script: str) -> Any:
        """Return the value of *script*, awaited."""
        reply = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def point(self, x: float, y: float, kind: str = "mouseMoved", **more: Any) -> None:
        """Move the mouse, or press or release its button."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Click with the left button."""
        for kind in ("mousePressed", "mouseReleased"):
            self.point(x, y, kind, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def text(self, element: str) -> str:
        """Return the text of the element with that id."""
        return str(self.run(f"document.getElementById({element!r}).textContent"))

    def painted(self) -> None:
        """Wait until what was changed is drawn."""
        self.run("(async () => { while (scheduled) await new Promise(r => setTimeout(r, 5)) })()")

    def screenshot(self) -> bytes:
        """Return what the page looks like, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Have the browser end."""
        self._session = None
        self.ask("Browser.close")
        self._to.close()
        self._from.close()


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser with its files in *profile*; the test has asked for one by ``requires("chromium")``."""
    program = next(filter(None, map(which, BROWSERS)))
    # By --remote-debugging-pipe it reads commands at descriptor 3 and answers at 4.
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    script = 'exec "$@" 3<&"$IN" 4>&"$OUT"'
    with subprocess.Popen(
        ["bash", "-c", script, "bash", program, *options],
        pass_fds=(in_reader, out_writer),
        env=os.environ | {"IN": str(in_reader), "OUT": str(out_writer)},
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(in_reader)
        os.close(out_writer)
        try:
            page = Page(in_writer, out_reader)
            yield page
            page.close()
        finally:
            process.kill()
