"""The built-in page in a real Chromium: type, stream, stop, settings, reload, narrow screen."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hrm_edge.runtime import Model, load
from serving import Running, serving, slow, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = os.environ.get("HRM_EDGE_SCREENSHOTS")  # a directory to keep screenshots in


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture(scope="module")
def running(shared_bundle: Path) -> Iterator[Running]:
    with serving(slow(load(shared_bundle, threads=1), 0.02)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    """A fresh profile on the page; no error in its console, no request to anywhere else."""
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    page = context.new_page()
    errors, addresses = list[str](), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(running.url)
    yield page
    context.close()
    assert errors == []
    assert all(address.startswith(running.url) for address in addresses)


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def set_field(page: Page, label: str, value: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label(label, exact=True).fill(value)
    page.get_by_role("button", name="Close").click()


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def test_a_question_is_answered_with_the_models_own_words(page: Page, model: Model) -> None:
    set_field(page, "Longest answer", "40")
    ask(page, "Hello")
    expect(page.locator(".user .text")).to_have_text("Hello")
    expect(page.locator(".assistant .note")).to_contain_text("8 + 40 tokens", timeout=20000)
    expected = model.generate("Hello", max_tokens=40).text
    assert page.locator(".assistant .text").evaluate("e => e.textContent") == expected
    expect(page.locator(".assistant .note")).to_contain_text("tok/s")
    expect(page.locator("#figures")).to_contain_text("MiB")
    expect(page).to_have_title("tiny")
    shot(page, "answered")


def test_text_grows_while_it_streams_and_escape_stops_it(browser: Browser, model: Model) -> None:
    with serving(slow(model, 0.1, 12)) as running:
        page = browser.new_page()
        page.goto(running.url)
        ask(page, "Tell me more")
        answer = page.locator(".assistant .text")
        wait_for(lambda: len(answer.text_content() or "") > 2)
        before = answer.text_content() or ""
        wait_for(lambda: len(answer.text_content() or "") > len(before))
        assert (answer.text_content() or "").startswith(before)
        expect(page.locator("#figures")).to_contain_text("tok/s")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        shot(page, "streaming")
        page.keyboard.press("Escape")
        expect(page.locator(".assistant .note")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        assert running.settle()["cancelled"] == 1
        page.close()


def test_conditions_and_settings_reach_the_server(page: Page) -> None:
    page.get_by_label("synth").check()
    page.get_by_label("cot").check()
    page.get_by_label("direct").uncheck()
    set_field(page, "Temperature", "0.5")
    set_field(page, "Seed", "7")
    set_field(page, "Longest answer", "3")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Hi")
    body: Any = sent.value.post_data_json
    assert body["condition"] == "synth,cot"
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 7, 3)
    expect(page.locator(".assistant .note")).to_contain_text("+ 3 tokens")


def test_a_value_out_of_range_is_not_taken(page: Page) -> None:
    set_field(page, "Longest answer", "2")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature", exact=True).fill("900")
    shot(page, "settings")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Hi")
    body: Any = sent.value.post_data_json
    assert body["temperature"] == 0


def test_everything_is_kept_over_a_reload(page: Page) -> None:
    set_field(page, "Longest answer", "5")
    page.get_by_label("cot").check()
    page.get_by_role("button", name="Theme: auto").click()
    ask(page, "Hello")
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    answer = page.locator(".assistant .text").text_content()
    page.get_by_label("Your question").fill("half a thought")
    page.reload()
    expect(page.locator(".user .text")).to_have_text("Hello")
    assert page.locator(".assistant .text").text_content() == answer
    expect(page.get_by_label("Your question")).to_have_value("half a thought")
    expect(page.get_by_label("cot")).to_be_checked()
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Longest answer")).to_have_value("5")


def test_earlier_turns_are_sent_where_that_is_ticked(page: Page) -> None:
    sent: list[int] = []

    def seen(request: Any) -> None:
        if request.method == "POST":
            sent.append(len(request.post_data_json["messages"]))

    page.on("request", seen)
    turns = page.get_by_label("earlier turns")
    expect(turns).not_to_be_checked()  # this model has no chat template
    set_field(page, "Longest answer", "2")
    for expected in (1, 1):
        ask(page, "Hello")
        expect(page.locator(".assistant .note").last).to_contain_text("tokens")
        assert sent[-1] == expected
    turns.check()
    ask(page, "Hello")
    expect(page.locator(".assistant .note").nth(2)).to_contain_text("tokens")
    assert sent[-1] == 5
    page.reload()
    expect(turns).to_be_checked()
    assert page.get_by_text("cot").get_attribute("title") == "thinks in steps first"


def test_a_reload_within_an_answer_cancels_it_and_keeps_what_came(
    browser: Browser, model: Model
) -> None:
    with serving(slow(model, 0, 8)) as running:
        page = browser.new_page()
        page.goto(running.url)
        ask(page, "Tell me more")
        wait_for(lambda: len(page.locator(".assistant .text").text_content() or "") > 2)
        page.reload()
        assert len(page.locator(".assistant .text").text_content() or "") > 2
        assert running.settle()["cancelled"] == 1
        page.close()


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    set_field(page, "Longest answer", "2")
    box = page.get_by_label("Your question")
    box.focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(box).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    box.press("ArrowUp")
    expect(box).to_have_value("one\ntwo")
    page.keyboard.press("Alt+n")
    expect(page.locator("#log li")).to_have_count(0)
    page.keyboard.press("Alt+s")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_a_phones_screen_and_a_dark_one(browser: Browser, running: Running) -> None:
    context = browser.new_context(
        viewport={"width": 320, "height": 568}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(running.url)
    set_field(page, "Longest answer", "30")
    ask(page, "A-rather-long-word-" * 8)
    expect(page.locator(".assistant .note")).to_contain_text("tokens", timeout=20000)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 320, f"the page is {width} wide"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, dark[4:-1].split(","))) < 60
    for name in ("Send", "Settings", "New"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["height"] >= 40
    shot(page, "phone-dark")
    page.get_by_role("button", name="Settings").click()
    shot(page, "phone-settings")
    context.close()


def test_errors_are_shown_and_a_key_mends_them(browser: Browser, model: Model) -> None:
    with serving(model, keys=["secret"]) as running:
        page = browser.new_page()
        page.goto(running.url)
        set_field(page, "Longest answer", "2")
        ask(page, "Hi")
        expect(page.get_by_role("alert")).to_contain_text("a valid API key is needed")
        shot(page, "refused")
        set_field(page, "API key", "secret")
        page.get_by_role("button", name="Again").click()
        expect(page.locator(".assistant .note")).to_contain_text("tokens")
        page.close()
