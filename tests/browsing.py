"""A real Chromium, Node, and a plain static server that can be taken away."""

import contextlib
import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DEMO = Path(__file__).parents[1] / "web_demo"
NO_GPU = ("--disable-gpu",)
SOFTWARE_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """The system's Chromium or Chrome, without a GPU unless `flags` say otherwise."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*FLAGS, *(flags or NO_GPU)]
        )
        yield browser
        browser.close()


class _Logged(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, log: list[str], **named: Any) -> None:
        self.log = log
        super().__init__(*args, **named)

    def log_message(self, format: str, *args: object) -> None:
        self.log.append(self.path)


@contextlib.contextmanager
def static_server(directory: Path, log: list[str] | None = None) -> Iterator[str]:
    """Serve `directory` on a free loopback port; yields the address. `log` gets the paths."""
    paths = [] if log is None else log
    handler = functools.partial(_Logged, directory=str(directory), log=paths)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)


def visit(page: Page, url: str) -> None:
    """Open the page and wait until the model is there and the service worker has taken over."""
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("data-offline", "ready", timeout=60000)
    expect(page).not_to_have_title("hrm-edge", timeout=60000)
    assert page.evaluate("crossOriginIsolated"), "no threads"


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def node(code: str, input: str = "") -> str:
    """What the module `code` prints, run in the web page's folder."""
    command = ["node", "--input-type=module", "-e", code]
    done = subprocess.run(command, input=input, capture_output=True, text=True, cwd=DEMO)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Answers every vector; runs in a browser and in Node, where `model` is loaded differently.
ANSWER = """
async (model, vectors, most) => {
  const found = [];
  for (const { prompt, condition } of vectors) {
    const { tokens } = await model.generate(prompt, { condition, max_tokens: most });
    found.push({ ids: model.encode(prompt, condition), tokens });
  }
  return found;
}
"""
