"""hrm-tiny in JavaScript: golden vectors in Chromium and Node, and the static page by hand."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import ANSWER, ask, node, static_server, visit
from hrm_edge.bundle import Bundle
from hrm_edge.export import export
from hrm_edge.runtime import load

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "web_demo"
GOLDEN = json.loads((ROOT / "android_demo" / "golden.json").read_text(encoding="utf-8"))
VECTORS: list[dict[str, Any]] = GOLDEN["vectors"]
WAYS: dict[str, dict[str, Any]] = GOLDEN["ways"]
SHOTS = os.environ.get("HRM_EDGE_SCREENSHOTS")  # a directory to keep screenshots in


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """A fresh profile on the page; no error in its console, no request to anywhere else."""
    with static_server(site) as url:
        context = browser.new_context(viewport={"width": 1000, "height": 700})
        page = context.new_page()
        errors, addresses = list[str](), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: addresses.append(request.url))
        visit(page, url)
        yield page
        context.close()
        assert errors == []
        assert all(address.startswith((url, "blob:", "data:")) for address in addresses)


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"web-{name}.png")


def options(way: str) -> dict[str, Any]:
    """What `load` is told."""
    return {name: value for name, value in WAYS[way].items() if name != "kv_bits"}


def expected(bits: str) -> list[dict[str, list[int]]]:
    return [{"ids": v["ids"], "tokens": v["answers"][bits]} for v in VECTORS]


@pytest.mark.parametrize("way", WAYS)
def test_chromium_gives_the_golden_vectors(page: Page, way: str) -> None:
    directory, how = {32: "kv32/", 8: "bundle/hrm-tiny/"}[WAYS[way]["kv_bits"]], options(way)
    code = f"""async ([directory, how, vectors, most]) => {{
      const {{ load, fetchedSource }} = await import("./hrm_edge.mjs");
      const ort = await import("./vendor/ort.wasm.bundle.min.mjs");
      const {{ Tokenizer }} = await import("./vendor/tokenizers.min.mjs");
      ort.env.logLevel = "error";
      const source = fetchedSource(new URL(directory, location.href), directory);
      return ({ANSWER})(await load({{ ort, Tokenizer }}, source, how), vectors, most);
    }}"""
    found = page.evaluate(code, [directory, how, VECTORS, GOLDEN["max_tokens"]])
    assert found == expected(way)


@pytest.mark.parametrize("way", WAYS)
def test_node_gives_the_golden_vectors(bundles: dict[str, Path], way: str) -> None:
    bundle = bundles[str(WAYS[way]["kv_bits"])]
    assert answers_of_node(bundle, VECTORS, wasm=False, **options(way)) == expected(way)


def test_what_cannot_be_decoded_so_is_refused(bundles: dict[str, Path]) -> None:
    for how, says in (
        ({"l_cycles": [1]}, "l_cycles is 1, expected 2 of 1 to 3"),
        ({"kv_share": "all"}, "kv_share is all, expected one of none, cycle, stack"),
    ):
        with pytest.raises(AssertionError, match=says):
            answers_of_node(bundles["8"], VECTORS[:1], wasm=False, **how)
    with pytest.raises(AssertionError, match="fitted to each slot"):
        answers_of_node(bundles["4"], VECTORS[:1], wasm=False, kv_share="cycle")


def test_the_page_takes_what_the_bundle_recommends(page: Page, bundles: dict[str, Path]) -> None:
    assert (fast := Bundle.open(bundles["8"]).manifest.quality["fast"]["recommended"])
    assert fast != {"l_cycles": [3, 3], "kv_share": "none"}
    model = load(bundles["8"], threads=1, fast=True)
    prompt = VECTORS[0]["prompt"]
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Fast").check()
    expect(page.get_by_text("opened hrm-tiny")).to_be_visible(timeout=30000)
    ask(page, prompt)
    text = model.generate(prompt).text
    expect(page.locator(".assistant").last).to_contain_text(text, timeout=30000)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "32"])
def test_node_with_the_webs_runtime_gives_the_same(bundles: dict[str, Path], way: str) -> None:
    found = answers_of_node(bundles["8"], VECTORS[:5], wasm=True, **options(way))
    assert found == expected(way)[:5]


@pytest.mark.parametrize("bits", ["4", "4h8"])
def test_node_gives_the_python_runtimes_answers_with_other_caches(
    bundles: dict[str, Path], bits: str
) -> None:
    """Made on this machine: at 4 bits, answers of different processors may differ."""
    model, most = load(bundles[bits], threads=1), GOLDEN["max_tokens"]
    answers = [
        model.generate(v["prompt"], condition=v["condition"], max_tokens=most) for v in VECTORS
    ]
    known = [
        {"ids": v["ids"], "tokens": [*a.tokens]} for v, a in zip(VECTORS, answers, strict=True)
    ]
    assert answers_of_node(bundles[bits], VECTORS, wasm=False) == known
    assert answers_of_node(bundles[bits], VECTORS[:5], wasm=True) == known[:5]


def answers_of_node(bundle: Path, vectors: list[dict[str, Any]], wasm: bool, **how: Any) -> Any:
    code = f"""
      import {{ readFileSync }} from "node:fs";
      import {{ loadDirectory }} from "{(DEMO / "node.mjs").as_uri()}";
      const {{ bundle, how, vectors, most }} = JSON.parse(readFileSync(0));
      const found = await ({ANSWER})(await loadDirectory(bundle, how), vectors, most);
      console.log(JSON.stringify(found));
    """
    request = {"bundle": str(bundle), "how": {"wasm": wasm} | how, "vectors": vectors}
    return json.loads(node(code, json.dumps(request | {"most": GOLDEN["max_tokens"]})))


def test_the_page_answers_and_goes_on_when_the_server_is_gone(
    browser: Browser, site: Path, tmp_path: Path
) -> None:
    context = browser.new_context()
    page = context.new_page()
    with static_server(site) as url:
        visit(page, url)
        expect(page).to_have_title("hrm-tiny")
    page.reload()  # nobody listens there any more
    ask(page, VECTORS[0]["prompt"])
    expect(page.locator(".assistant .note")).to_contain_text("16 + 8 tokens", timeout=30000)
    expect(page.locator(".assistant .text")).to_have_text("EUQARUP")
    assert page.evaluate("crossOriginIsolated"), "no threads"
    context.close()


def test_the_other_model_inside_is_chosen_and_kept(browser: Browser, site: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    with static_server(site) as url:
        visit(page, url)
        expect(page.get_by_text("hrm-tiny knows nine kinds of question")).to_be_visible()
        page.get_by_role("button", name="hrm-g2p").click()
        expect(page.locator("#figures")).to_contain_text("opened hrm-g2p", timeout=30000)
        expect(page.get_by_text("hrm-g2p knows how an English word is spoken")).to_be_visible()
        shot(page, "another-model")
        ask(page, "Smartphone")
        expect(page.locator(".assistant .text")).to_have_text("S M AA1 R T F OW2 N", timeout=30000)
        visit(page, url)
        expect(page).to_have_title("hrm-g2p")
        page.get_by_role("button", name="Settings").click()
        page.locator("#model").select_option("hrm-tiny")
        expect(page.locator("#figures")).to_contain_text("opened hrm-tiny", timeout=30000)
        ask(page, VECTORS[0]["prompt"])
        expect(page.locator(".assistant .text").last).to_have_text("EUQARUP", timeout=30000)
    context.close()


def test_settings_reach_the_model_and_stop_ends_an_answer(page: Page, shared_bundle: Path) -> None:
    page.get_by_label("Files of a bundle").set_input_files(list(shared_bundle.iterdir()))
    expect(page.locator("#figures")).to_contain_text("opened")
    ask(page, "Tell me more")  # 241 tokens, if nobody stops it
    expect(page.locator(".assistant .text")).to_have_text(re.compile("..."), timeout=30000)
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .note")).to_contain_text("stopped")
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_label("Longest answer").fill("3")
    shot(page, "settings")
    page.get_by_role("button", name="Close").click()
    ask(page, "Tell me more")
    note = page.locator(".assistant .note").last
    expect(note).to_contain_text("+ 3 tokens", timeout=30000)


def test_a_phones_screen_and_a_dark_one(browser: Browser, site: Path) -> None:
    context = browser.new_context(
        viewport={"width": 320, "height": 568}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    page = context.new_page()
    with static_server(site) as url:
        visit(page, url)
        shot(page, "phone-empty")
        ask(page, VECTORS[2]["prompt"])
        expect(page.locator(".assistant .note")).to_contain_text("tokens", timeout=30000)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        for name in ("New", "Settings", "Send"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["height"] >= 40
        shot(page, "phone-dark")
    context.close()


def test_an_own_bundle_is_opened_and_a_damaged_one_refused(
    page: Page, shared_bundle: Path, tmp_path: Path
) -> None:
    picker = page.get_by_label("Files of a bundle")
    damaged = tmp_path / "damaged"
    shutil.copytree(shared_bundle, damaged)
    data = bytearray((damaged / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (damaged / "model.onnx.data").write_bytes(data)
    picker.set_input_files(list(damaged.iterdir()))
    expect(page.locator("#figures")).to_contain_text("content differs from what was exported")
    ask(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("content differs")
    shot(page, "damaged")
    picker.set_input_files([f for f in shared_bundle.iterdir() if f.name != "tokenizer.json"])
    expect(page.locator("#figures")).to_contain_text("tokenizer.json is missing")
    picker.set_input_files(list(shared_bundle.iterdir()))
    expect(page.locator("#figures")).to_contain_text("opened the chosen bundle")
    expect(page.get_by_text("hrm-tiny knows")).to_be_hidden()
    page.get_by_role("button", name="Again").click()
    expect(page.locator(".assistant .note")).to_contain_text("tokens", timeout=30000)


def test_two_threads_answer_alike(browser: Browser, site: Path, tmp_path: Path) -> None:
    two = shutil.copytree(site, tmp_path / "two")
    worker = (two / "worker.mjs").read_text(encoding="utf-8")
    many = worker.replace("ort.env.logLevel", "ort.env.wasm.numThreads = 2;\nort.env.logLevel")
    (two / "worker.mjs").write_text(many, encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    with static_server(two) as url:
        visit(page, url)
        ask(page, VECTORS[0]["prompt"])
        expect(page.locator(".assistant .text")).to_have_text("EUQARUP", timeout=60000)
        assert len(page.workers) == 2  # the model's own thread and its helper
    context.close()


def test_an_example_is_one_click(page: Page) -> None:
    page.get_by_role("button", name="Spell this word backward: RIVER").click()
    expect(page.locator(".assistant .text")).to_have_text("REVIR", timeout=30000)
    assert len(page.workers) == min(4, (page.evaluate("navigator.hardwareConcurrency") + 1) // 2)


def test_tokens_of_many_scripts_are_those_of_the_tokenizers_library(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    from hrm_edge.prompt import Tokenizer

    tokenizer = Tokenizer(bundles["8"])
    texts = scripts()
    code = """
      import { readFileSync } from "node:fs";
      import { Tokenizer } from "@huggingface/tokenizers";
      const { path, texts } = JSON.parse(readFileSync(0));
      const json = (name) => JSON.parse(readFileSync(`${path}/${name}`));
      const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
      const ids = texts.map((t) => tokenizer.encode(t, { add_special_tokens: false }).ids);
      const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
      console.log(JSON.stringify(ids.map((i) => ({ ids: i, text: tokenizer.decode(i, options) }))));
    """
    found = json.loads(node(code, json.dumps({"path": str(bundles["8"]), "texts": texts})))
    for text, got in zip(texts, found, strict=True):
        ids = tokenizer.encode(text)
        assert got == {"ids": ids, "text": tokenizer.decode(ids)}, repr(text)


def scripts() -> list[str]:
    """Runs of code points from everywhere in Unicode, with spaces, digits and special tokens."""
    starts = [*range(0x20, 0x3000, 0x40), *range(0x3000, 0x1FB00, 0x200)]
    letters = ["".join(filter(str.isprintable, map(chr, range(s, s + 12)))) for s in starts]
    mixed = [f"{a} {i}\n\t{b}  {a}'s " for i, (a, b) in enumerate(pairwise(letters))]
    special = ["<|im_start|>a<|quad_end|> b<|im_end|>", "e\u0301 \u00e9", "\u200d\ufeff\u00a0x"]
    return [t for t in letters + mixed + special if t]


def test_candidates_are_those_of_the_python_sampler() -> None:
    import numpy as np

    from hrm_edge.runtime.decoding.sampling import candidates

    logits = np.random.default_rng(0).normal(0, 3, 64).astype(np.float32)
    cases: list[dict[str, Any]] = [
        {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
        for t in (0.7, 1.5)
        for k in (0, 10)
        for p in (1, 0.8)
        for m in (0, 0.05)
    ]
    code = """
      import { readFileSync } from "node:fs";
      import { candidates } from "./sampling.mjs";
      const { logits, cases } = JSON.parse(readFileSync(0));
      console.log(JSON.stringify(cases.map((c) => candidates(Float32Array.from(logits), c))));
    """
    found = json.loads(node(code, json.dumps({"logits": logits.tolist(), "cases": cases})))
    for case, got in zip(cases, found, strict=True):
        ids, probabilities = candidates(logits, **case)
        order = np.argsort(-probabilities, kind="stable")
        assert got["ids"] == ids[order].tolist(), case
        assert got["probabilities"] == pytest.approx(probabilities[order].tolist(), rel=1e-9)


def test_a_chat_template_is_used_as_written_out_or_refused(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles["8"], tmp_path / "chat")
    manifest = json.loads((bundle / "manifest.json").read_text())
    written = {
        "start": "<|im_start|>user\n",
        "end": "<|im_end|>\n",
        "conditions": {},
        "turns": None,
    }

    def told(prompt_format: dict[str, Any] | None) -> str:
        changed = json.dumps(manifest | {"prompt_format": prompt_format})
        (bundle / "manifest.json").write_text(changed)
        return node(f"""
          import {{ loadDirectory }} from "./node.mjs";
          await loadDirectory("{bundle}")
            .then((model) => model.encode("Calculate 1 + 1"), (error) => error.message)
            .then((found) => console.log(JSON.stringify(found)));
        """)

    from hrm_edge.prompt import Tokenizer

    prefix = "<|im_start|>user\nCalculate 1 + 1<|im_end|>\n"
    assert json.loads(told(written)) == Tokenizer(bundle).encode(prefix)
    assert "its chat template is a program that this cannot run" in told(None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('generate("  ")', "the prompt is empty"),
        ('generate("x", { condition: "loud" })', 'unknown condition "loud"'),
        ('generate("x", { top_p: 0 })', "top_p is 0, expected more than 0"),
        ('generate("x", { topp: 1 })', 'unknown option "topp"'),
        ('generate("9 ".repeat(600))', "at most 511 fit"),
    ],
)
def test_mistakes_are_one_clear_line(bundles: dict[str, Path], call: str, message: str) -> None:
    code = f"""
      import {{ HRMEdgeError }} from "./hrm_edge.mjs";
      import {{ loadDirectory }} from "./node.mjs";
      const model = await loadDirectory({json.dumps(str(bundles["8"]))});
      const error = await model.{call}.catch((error) => error);
      console.log(error instanceof HRMEdgeError, error.message);
    """
    told = node(code)
    assert told.startswith("true ") and message in told and told.count("\n") == 1


def test_a_bundle_in_float16_is_refused(tmp_path: Path) -> None:
    tiny = ROOT / "hrm_edge" / "data" / "hrm_tiny"
    bundle = export(tiny, tmp_path / "half", kv_bits=16, dtype="fp16", gate=None).path
    command = ["node", DEMO / "node.mjs", bundle, "Hello"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    told = "computes in float16; export with --dtype fp32 for this"
    assert (done.returncode, done.stderr) == (1, f"Error: {bundle}: {told}\n")


def test_the_command_for_node(bundles: dict[str, Path], tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        command = ["node", DEMO / "node.mjs", *arguments]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert run(bundles["8"], VECTORS[0]["prompt"]) == (0, "EUQARUP\n", "")
    code, out, told = run(tmp_path, "Hello")
    assert (code, out) == (1, "") and "manifest.json is missing" in told and "at " not in told
