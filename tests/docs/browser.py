"""A headless Chromium that says of a page what a person would see to be wrong with it.

It is spoken to by the DevTools protocol through two pipes, so that no port is open and no further
library is needed.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

# Text that is cut or sticks out: of an element that has text of its own and hides or lets overflow
# what is too wide. Elements that scroll are read by scrolling, and their contents may be wide.
_OVERFLOWING = """
(() => {
  const scrolls = (e) => {
    for (; e && e !== document.documentElement; e = e.parentElement) {
      const flow = getComputedStyle(e).overflowX;
      if (flow === "auto" || flow === "scroll") return true;
    }
    return false;
  };
  const hasText = (e) => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const seen = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true})
    && e.getBoundingClientRect().width > 1 && e.clientWidth > 0;
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    found.push(`the page is ${root.scrollWidth} wide in ${root.clientWidth}`);
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("svg, math") || !hasText(e) || !seen(e) || scrolls(e)) continue;
    if (e.scrollWidth > e.clientWidth + 1)
      found.push(`${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 60)}`);
  }
  return found;
})()
"""
_UNSEEN = """
[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)
  || (i.checkVisibility() && i.getBoundingClientRect().width === 0))
  .map(i => i.outerHTML.slice(0, 120))
"""


@dataclass
class Seen:
    """What was seen of a page at one width."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    hidden_pictures: list[str] = field(default_factory=list)
    overflowing: list[str] = field(default_factory=list)
    pictures: int = 0


class Browser:
    """One Chromium with one page."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_it, to_us = os.pipe(), os.pipe()

        def as_three_and_four() -> None:
            os.dup2(to_it[0], 3)
            os.dup2(to_us[1], 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--no-first-run",
                "--disable-dev-shm-usage", f"--user-data-dir={profile}",
                "--remote-debugging-pipe", "about:blank",
            ],
            pass_fds=(3, 4), preexec_fn=as_three_and_four, close_fds=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_it[0])
        os.close(to_us[1])
        self._out, self._in = os.fdopen(to_it[1], "wb"), os.fdopen(to_us[0], "rb")
        self._numbers = itertools.count(1)
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    _session: str | None = None

    def look(self, page: Path, width: int, picture: Path | None = None) -> Seen:
        """Opens the page at this width; with ``picture``, keeps a PNG of all of it."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self._events.clear()
        self._ask("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())
        # Pictures that are read when they come into view are to be read now.
        self._value("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        self._value("Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
        seen = Seen(
            errors=list(self._errors()),
            requests=[url for url in self._requested() if not url.startswith(("file:", "data:"))],
            hidden_pictures=self._value(_UNSEEN),
            overflowing=self._value(_OVERFLOWING),
            pictures=self._value(
                "document.images.length + document.querySelectorAll('svg').length"
            ),
        )
        if picture is not None:
            shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        return seen

    def close(self) -> None:
        self._ask("Browser.close")
        self._out.close()
        self._in.close()
        self._process.wait(10)

    def _errors(self) -> Iterator[str]:
        for event in self._events:
            told = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                yield told["exceptionDetails"]["text"]
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] == "error":
                yield str(told["args"])
            elif event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
                yield told["entry"]["text"]
            elif event["method"] == "Network.loadingFailed":
                yield told["errorText"]

    def _requested(self) -> Iterator[str]:
        for event in self._events:
            if event["method"] == "Network.requestWillBeSent":
                yield event["params"]["request"]["url"]

    def _value(self, script: str) -> Any:
        found = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target", "Browser")):
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if "method" in answer:
                self._events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._in.fileno(), 1 << 16)
            assert read, "Chromium ended"
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
