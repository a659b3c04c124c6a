"""Where the web page computes, what it fetches for that, and what it says meanwhile."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from browsing import ANSWER, DEMO, ask, static_server, visit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GOLDEN = json.loads((DEMO.parent / "android_demo" / "golden.json").read_text(encoding="utf-8"))
VECTORS: list[dict[str, Any]] = GOLDEN["vectors"]
G2P = DEMO.parent / "hrm_edge" / "data" / "hrm-g2p"
# As a browser with a graphics card would answer; what computes is still the software adapter.
REAL_GPU = """
Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", { get: () => false });
"""
NO_MORE_GPU = """
Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined });
"""


@pytest.fixture(scope="module")
def site32(packages: None, bundles: dict[str, Path], tmp_path_factory: Any) -> Path:
    """The page built with a KV cache of 32 bits, which WebGPU can use."""
    site = tmp_path_factory.mktemp("web32") / "site"
    subprocess.run(["node", DEMO / "build.mjs", bundles["32"], site], check=True)
    return site


def compute(page: Page) -> str | None:
    return page.locator("html").get_attribute("data-compute")


def choose(page: Page, label: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Compute on").select_option(label=label)
    expect(page.locator("#figures")).to_contain_text("opened", timeout=60000)


def answered(page: Page, vector: dict[str, Any]) -> str:
    ask(page, vector["prompt"])
    note = page.locator(".assistant .note").last
    expect(note).to_contain_text("tokens", timeout=120000)
    return page.locator(".assistant .text").last.inner_text()


def opened(browser: Browser, script: str = "") -> BrowserContext:
    context = browser.new_context()
    if script:
        context.add_init_script(script)
    return context


def test_a_gpu_is_used_where_there_is_one_and_the_choice_is_the_users(
    browser: Browser, site32: Path
) -> None:
    context = opened(browser, REAL_GPU)
    page = context.new_page()
    with static_server(site32) as url:
        visit(page, url)
        assert compute(page) == "webgpu"
        expect(page.locator("#figures")).to_contain_text("opened hrm-tiny · WebGPU")
        assert answered(page, VECTORS[0]) == "EUQARUP"
        choose(page, "processor")
        assert compute(page) == "wasm"
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-compute", "wasm", timeout=60000)
        assert answered(page, VECTORS[0]) == "EUQARUP"
        choose(page, "automatic")
        assert compute(page) == "webgpu"
    context.close()


def test_a_software_gpu_or_a_small_cache_leaves_it_to_the_processor(
    browser: Browser, site: Path, site32: Path
) -> None:
    for directory, script in ((site32, ""), (site32, NO_MORE_GPU), (site, REAL_GPU)):
        context = opened(browser, script)
        page = context.new_page()
        with static_server(directory) as url:
            visit(page, url)
            assert compute(page) == "wasm"
            if directory == site:
                page.get_by_role("button", name="Settings").click()
                page.get_by_label("Compute on").select_option(label="WebGPU")
                told = "WebGPU cannot use a KV cache of 8 bits; export with --kv-bits 32"
                expect(page.locator("#figures")).to_contain_text(told)
        context.close()


def test_the_model_is_fetched_once_and_the_page_says_how_far_it_is(
    browser: Browser, site: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """The first visit loads the page twice; a later version of the page keeps the model."""
    served = shutil.copytree(site, tmp_path / "site")
    context = opened(browser)
    page = context.new_page()
    page.add_init_script("""
      addEventListener("DOMContentLoaded", () => {
        globalThis.said = [];
        const told = () => said.push(document.getElementById("figures").textContent);
        new MutationObserver(told).observe(document.getElementById("figures"), { childList: true });
      });
    """)
    with static_server(served, log := []) as url:
        visit(page, url)
        said = page.evaluate("said")
        read = [re.search(r"reading the model: ([\d.]+) of ([\d.]+) MiB", line) for line in said]
        done = [float(found[1]) for found in read if found]
        assert done and done == sorted(done)  # how many there are is the browser's choice
        assert max(done) == float(next(found[2] for found in read if found))
        assert any("memory" in line for line in said) or memory(page)
        fetched = [path for path in log if path.endswith((".data", ".wasm"))]
        assert sorted(fetched) == [
            "/bundle/hrm-tiny/model.onnx.data",
            "/vendor/ort-wasm-simd-threaded.wasm",
        ]
        log.clear()
        shutil.rmtree(served)
        subprocess.run(["node", DEMO / "build.mjs", bundles["8"], G2P, served], check=True)
        (served / "worker.mjs").write_text((served / "worker.mjs").read_text() + "\n// later\n")
        script = (served / "sw.js").read_text().replace("hrm-edge-page-", "hrm-edge-page-new-")
        (served / "sw.js").write_text(script)
        page.evaluate("navigator.serviceWorker.ready.then((kept) => kept.update()).then(() => 0)")
        while not taken_over(page, "hrm-edge-page-new-"):
            page.wait_for_timeout(100)
        visit(page, url)
        assert "/worker.mjs" in log
        assert not [path for path in log if "model.onnx" in path or "vendor/ort" in path]
        assert answered(page, VECTORS[0]) == "EUQARUP"
    context.close()


def taken_over(page: Page, start: str) -> bool:
    """Whether the service worker whose cache's name begins so is the only one left."""
    code = """async () => {
      const kept = await navigator.serviceWorker.ready;
      const { installing, waiting, active } = kept;
      return [!installing && !waiting && active.state === "activated", await caches.keys()];
    }"""
    settled, names = page.evaluate(code)
    pages = [name for name in names if name.startswith("hrm-edge-page-")]
    return settled and len(pages) == 1 and pages[0].startswith(start)


def memory(page: Page) -> bool:
    """Whether the page comes to say how much it takes; browsers measure when it suits them."""
    expect(page.locator("#figures")).to_contain_text(re.compile(r"memory \d+ MiB"), timeout=60000)
    return True


def test_webgpu_gives_the_golden_vectors(browser: Browser, site: Path) -> None:
    """In Chromium's software WebGPU. With KV 8 it is refused: its attention kernel has none."""
    code = """async ([vectors, most]) => {
      if (!(await navigator.gpu?.requestAdapter())) return "no adapter";
      const ort = await import("./vendor/ort.webgpu.bundle.min.mjs");
      const { load, fetchedSource } = await import("./hrm_edge.mjs");
      const { Tokenizer } = await import("./vendor/tokenizers.min.mjs");
      ort.env.logLevel = "error";
      const open = (directory) => load(
        { ort, Tokenizer },
        fetchedSource(new URL(directory, location.href), directory),
        { provider: "webgpu" },
      );
      const model = await open("kv32/");
      const refused = await open("bundle/hrm-tiny/").then(() => "loaded", (error) => error.message);
      return [await (ANSWER)(model, vectors, most), refused];
    }""".replace("ANSWER", ANSWER)
    with static_server(site) as url:
        page = browser.new_page()
        visit(page, url)
        found, refused = page.evaluate(code, [VECTORS[:4], GOLDEN["max_tokens"]])
        page.close()
    assert found == [{"ids": v["ids"], "tokens": v["answers"]["32"]} for v in VECTORS[:4]]
    assert refused == (
        "bundle/hrm-tiny/: WebGPU cannot use a KV cache of 8 bits; export with --kv-bits 32"
    )
