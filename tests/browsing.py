"""A real Chromium, Node, and a plain static server that can be taken away."""

import contextlib
import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

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


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def static_server(directory: Path) -> Iterator[str]:
    """Serve `directory` on a free loopback port; yields the address."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)


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
