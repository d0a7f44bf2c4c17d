"""The report in a real browser: no request, no overflow, themes, contrast, keyboard, copying, print.

Drives headless Chromium over its debugging pipe (file descriptors 3 and 4, JSON separated by NUL).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glasshouse.evidence.report import render_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine's path"),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
HOSTILE = (
    "<script>document.title='owned'</script><img src=http://x.invalid/a onerror=\"document.title='owned'\">"
)


class Browser:
    """One page of one Chromium; `events` collects what it reports."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        os.set_inheritable(to_browser, True)
        os.set_inheritable(from_browser, True)

        def wire() -> None:
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, **quiet)
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._read())

    def ask(self, expression: str) -> Any:
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def width(self, pixels: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=pixels,
            height=900,
            deviceScaleFactor=1,
            mobile=pixels < 600,
        )

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._in, 65536)
            assert piece, "the browser went away"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def page(example, graded, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_report(example, graded=graded), encoding="utf-8")
    return path


def test_it_opens_without_a_request_or_a_complaint(browser: Browser, page: Path) -> None:
    browser.open(page)
    asked = [
        e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()]
    complaints = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert complaints == []
    assert browser.ask("document.querySelector('main h2').textContent") == "Findings"


def test_hostile_text_does_nothing(browser: Browser, example, tmp_path: Path) -> None:
    finding = example.findings[0].model_copy(update={"summary": HOSTILE, "next": HOSTILE})
    findings = example.model_copy(update={"findings": (finding,), "subject": {"name": HOSTILE}})
    path = tmp_path / "hostile.html"
    path.write_text(render_report(findings), encoding="utf-8")
    browser.open(path)
    assert browser.ask("document.title").startswith("1 finding in <script>")
    assert browser.ask("[document.images.length, document.scripts.length]") == [0, 1]
    assert len([e for e in browser.events if e["method"] == "Network.requestWillBeSent"]) == 1


@pytest.mark.parametrize("pixels", [320, 390, 768, 1280])
def test_nothing_runs_off_the_side(browser: Browser, page: Path, pixels: int) -> None:
    browser.width(pixels)
    browser.open(page)
    assert browser.ask("document.documentElement.scrollWidth") <= pixels
    wide = browser.ask(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .contents, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert wide == []


def luminance(browser: Browser) -> float:
    return browser.ask(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
        ".map(Number).reduce((a, b) => a + b) / 765"
    )


def test_dark_follows_the_system_and_the_reader_and_never_the_printer(browser: Browser, page: Path) -> None:
    browser.width(1280)
    browser.open(page)
    assert luminance(browser) > 0.9
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert luminance(browser) < 0.2
    browser.ask("document.getElementById('theme-light').click()")
    assert luminance(browser) > 0.9
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.ask("document.getElementById('theme-dark').click()")
    assert luminance(browser) < 0.2
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert luminance(browser) == 1.0
    browser.call("Emulation.setEmulatedMedia", media="", features=[])


CONTRAST = """
(() => {
  const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number); return {c: m.slice(0, 3), a: m[3] ?? 1}; };
  const over = (f, b) => f.c.map((x, i) => x * f.a + b[i] * (1 - f.a));
  const back = e => {
    const chain = [];
    for (; e; e = e.parentElement) chain.push(rgb(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((b, f) => over(f, b), [255, 255, 255]); };
  const lum = c => {
    const [r, g, b] = c.map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!text || e.closest('svg, script, style, .sr, .skip')) continue;
    const b = back(e), f = over(rgb(getComputedStyle(e).color), b);
    const [x, y] = [lum(f), lum(b)].sort((p, q) => q - p);
    const ratio = (x + .05) / (y + .05);
    if (ratio < 4.5) bad.push([e.tagName, e.className, e.textContent.trim().slice(0, 20), ratio].join(' '));
  }
  return bad;
})()
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(browser: Browser, page: Path, theme: str) -> None:
    browser.width(1280)
    browser.open(page)
    browser.ask(f"document.getElementById('theme-{theme}').click()")
    assert browser.ask(CONTRAST) == []


def test_the_keyboard_reaches_everything_in_reading_order(browser: Browser, page: Path) -> None:
    browser.width(1280)
    browser.open(page)
    seen = []
    for _ in range(60):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        name = browser.ask("(e => e.className || e.id || e.tagName)(document.activeElement)")
        if name == "BODY" and seen:
            break
        seen.append(name)
    assert seen[:2] == ["skip", "theme-auto"]
    assert seen.count("copy") == 2 and "SUMMARY" in seen
    assert seen.index("copy") < len(seen) - 1 - seen[::-1].index("SUMMARY")


def test_copying_works_and_without_script_a_click_selects_the_command(
    browser: Browser, page: Path, example
) -> None:
    browser.open(page)
    browser.ask("document.querySelector('button.copy').click()")
    browser.ask("new Promise(done => setTimeout(done, 50))")
    assert browser.ask("document.querySelector('button.copy').textContent") in ("Copied", "Selected")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    assert browser.ask("document.querySelector('button.copy').hidden"), "no button that does nothing"
    assert browser.ask("getComputedStyle(document.querySelector('.command code')).userSelect") == "all"
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints_with_its_details_open(browser: Browser, page: Path) -> None:
    browser.open(page)
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]
    assert printed.startswith("JVBER"), "a PDF"
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("document.querySelector('details dl, details ol').getBoundingClientRect().height") > 0
    browser.call("Emulation.setEmulatedMedia", media="")
