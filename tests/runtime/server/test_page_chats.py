"""The page's conversations in a real Chromium: Markdown, editing, deleting, lists, JSON, a screen
reader's view; and that the Markdown reader that ships is npm's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import DEMO, ask, chromium
from hrm_edge.chat_template import ChatTemplate
from hrm_edge.runtime import Model, load
from serving import Running, serving, slow

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = Path(__file__).parents[3] / "runtime" / "server" / "page"
TOLD = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}>"
ANSWER = """## Gases
**Helium**, *neon* and <img src=x onerror=alert(1)>: [table](https://example.org/t)
[bad](javascript:alert(2)) ![far](https://example.org/p.png)

| gas | protons |
|---|---:|
| He | 2 |

- one
  1. two

```python
print("<b>hi</b>")
```
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture(scope="module")
def running(model: Model) -> Iterator[Running]:
    with serving(model) as server:
        yield server


@pytest.fixture
def page(browser: Browser, running: Running) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, accept_downloads=True, bypass_csp=True
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    errors, addresses = list[str](), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(running.url)
    expect(page).to_have_title("tiny")
    short(page)
    yield page
    context.close()
    assert errors == []
    assert all(a.startswith((running.url, "blob:")) for a in addresses), addresses


def short(page: Page) -> None:
    """Answers of two tokens."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("2")
    page.get_by_role("button", name="Close").click()


def asked(page: Page, text: str, count: int) -> None:
    ask(page, text)
    expect(page.locator(".assistant .note")).to_have_count(count)
    expect(page.locator(".assistant .note").last).to_contain_text("tokens")


def bring(page: Page, tmp_path: Path, content: object) -> None:
    """Import `content` through the dialog, which stays open."""
    path = tmp_path / "brought.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    page.get_by_role("button", name="Chats").click()
    page.set_input_files("#import-file", path)


def chats(*conversations: tuple[str, str]) -> dict[str, Any]:
    messages = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in conversations
    ]
    return {"format": "hrm-edge-chats", "version": 1, "chats": [{"messages": m} for m in messages]}


def test_markdown_becomes_structure_and_nothing_of_it_runs(page: Page, tmp_path: Path) -> None:
    bring(page, tmp_path, chats(("Which?", ANSWER)))
    page.get_by_role("button", name="Which?", exact=False).first.click()
    text = page.locator(".assistant .text")
    expect(text.locator("h2")).to_have_text("Gases")
    expect(text.locator("strong")).to_have_text("Helium")
    expect(text.locator("td.right")).to_have_text("2")
    expect(text.locator("ul li ol li")).to_have_text("two")
    expect(text.locator("pre code")).to_have_text('print("<b>hi</b>")')
    assert text.locator("img, script, b").count() == 0
    links = text.locator("a").evaluate_all("all => all.map(a => [a.textContent, a.href, a.rel])")
    rel = "noopener noreferrer"
    assert links == [
        ["table", "https://example.org/t", rel],
        ["picture: far", "https://example.org/p.png", rel],
    ]
    expect(text).to_contain_text("<img src=x onerror=alert(1)>")
    expect(text).to_contain_text("[bad](javascript:alert(2))")
    page.get_by_role("button", name="Copy the python code").click()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("<b>hi</b>")'
    page.get_by_role("button", name="Copy the answer").click()
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Show answers as Markdown").uncheck()
    page.get_by_role("button", name="Close").click()
    assert page.locator(".assistant .text").evaluate("e => e.textContent") == ANSWER


def test_a_question_is_changed_and_what_follows_is_answered_anew(page: Page) -> None:
    asked(page, "first", 1)
    asked(page, "second", 2)
    page.get_by_role("button", name="Edit the question").first.click()
    box = page.get_by_label("The question, to change")
    expect(box).to_be_focused()
    box.press("Escape")
    expect(page.locator(".user .text")).to_have_text(["first", "second"])
    page.get_by_role("button", name="Edit the question").first.click()
    with page.expect_request("**/v1/chat/completions") as sent:
        box.fill("changed")
        box.press("Enter")
    body: Any = sent.value.post_data_json
    assert body["messages"] == [{"role": "user", "content": "changed"}]
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    expect(page.locator(".user .text")).to_have_text(["changed"])


def test_a_question_goes_with_its_answer_and_comes_back(page: Page) -> None:
    asked(page, "first", 1)
    asked(page, "second", 2)
    page.get_by_role("button", name="Delete the question and its answer").first.click()
    expect(page.locator(".user .text")).to_have_text(["second"])
    expect(page.locator(".assistant")).to_have_count(1)
    page.locator("#figures").get_by_role("button", name="Undo").click()
    expect(page.locator(".user .text")).to_have_text(["first", "second"])
    page.reload()
    expect(page.locator(".user .text")).to_have_text(["first", "second"])


def test_chats_are_listed_shown_and_deleted(page: Page) -> None:
    asked(page, "first", 1)
    page.get_by_role("button", name="New").click()
    asked(page, "second", 1)
    page.keyboard.press("Alt+c")
    expect(page.locator("#chats-list li")).to_have_count(2)
    expect(page.locator("#chats-list [aria-current]")).to_contain_text("second")
    page.locator("#chats-list .chat", has_text="first").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator(".user .text")).to_have_text(["first"])
    page.reload()
    expect(page.locator(".user .text")).to_have_text(["first"])
    page.keyboard.press("Alt+c")
    page.get_by_role("button", name="Delete the chat: first").click()
    expect(page.locator("#chats-list li")).to_have_count(1)
    page.locator("#chats").get_by_role("button", name="Undo").click()
    expect(page.locator("#chats-list li")).to_have_count(2)
    page.get_by_role("button", name="Delete the chat: first").click()
    page.keyboard.press("Escape")
    expect(page.locator("#log li")).to_have_count(0)


def test_an_answer_goes_on_into_its_own_chat(browser: Browser, model: Model) -> None:
    """Another chat shown meanwhile cancels it there and is not written into."""
    with serving(slow(model, 0.05, 12)) as running:
        page = browser.new_page()
        page.goto(running.url)
        ask(page, "a long one")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.get_by_role("button", name="New").click()
        expect(page.locator("#log li")).to_have_count(0)
        assert running.settle()["cancelled"] == 1
        short(page)
        asked(page, "another", 1)
        expect(page.locator(".user .text")).to_have_text(["another"])
        page.close()


def test_chats_leave_as_json_and_come_back(page: Page, tmp_path: Path) -> None:
    asked(page, "first", 1)
    answer = page.evaluate("shown().messages[1].content")
    page.get_by_role("button", name="Chats").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    written = json.loads(Path(download.value.path()).read_text())
    assert written["model"] == "tiny" and written["version"] == 1
    assert written["chats"][0]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": answer},
    ]
    page.get_by_role("button", name="Delete the chat: first").click()
    page.get_by_role("button", name="Close").click()
    bring(page, tmp_path, written)
    expect(page.locator("#chats-said")).to_have_text("1 chat added")
    page.locator("#chats-list .chat", has_text="first").click()
    expect(page.locator(".user .text")).to_have_text(["first"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "it is not JSON"),
        ([1], "its format is not hrm-edge-chats"),
        ({"format": "hrm-edge-chats", "chats": [{"messages": [{"role": "x"}]}]}, "chat 1 has a"),
        ({"format": "hrm-edge-chats", "chats": [None]}, "was not added"),
    ],
)
def test_a_file_of_something_else_is_refused(
    page: Page, tmp_path: Path, content: object, says: str
) -> None:
    bring(page, tmp_path, content)
    expect(page.locator("#chats-said")).to_contain_text(says)
    expect(page.locator("#chats-list li")).to_have_count(0)


def test_the_conversation_of_an_earlier_version_is_kept(page: Page) -> None:
    old = {"messages": [{"role": "user", "content": "from before"}], "settings": {"top_k": 4}}
    page.add_init_script(f"localStorage.setItem('hrm-edge', {json.dumps(json.dumps(old))})")
    page.reload()
    expect(page.locator(".user .text")).to_have_text(["from before"])
    assert page.evaluate("state.settings.top_k") == 4


def test_a_system_prompt_where_the_template_has_one(browser: Browser, model: Model) -> None:
    template = ChatTemplate(TOLD, {}, Path("made up"))
    talking = Model(model.session, model.tokenizer, model.manifest, template, guide=model.guide)
    with serving(talking) as running:
        page = browser.new_page()
        page.goto(running.url)
        expect(page).to_have_title("tiny")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Longest answer").fill("2")
        page.get_by_role("button", name="Close").click()
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "Hi")
        body: Any = sent.value.post_data_json
        assert [m["role"] for m in body["messages"]] == ["system", "user"]
        expect(page.locator(".assistant .note")).to_contain_text("tokens")
        page.close()


def test_no_system_prompt_where_no_template_reads_it(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_nothing_amiss(page: Page, tmp_path: Path, scheme: Any) -> None:
    """axe-core's rules (names, roles, contrast, focus), with all dialogs and kinds of content."""
    page.emulate_media(color_scheme=scheme)
    bring(page, tmp_path, chats(("Which?", ANSWER)))
    page.add_script_tag(path=DEMO / "node_modules" / "axe-core" / "axe.min.js")

    def faults() -> list[str]:
        found = page.evaluate("axe.run()")["violations"]
        return [f"{v['id']}: {node['html'][:120]}" for v in found for node in v["nodes"]]

    assert faults() == []
    page.get_by_role("button", name="Which?", exact=False).first.click()
    assert faults() == []
    page.get_by_role("button", name="Edit the question").click()
    assert faults() == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    assert faults() == []


def test_tab_reaches_every_control(page: Page) -> None:
    asked(page, "first", 1)
    page.evaluate("document.activeElement.blur()")
    reached = set[str]()
    for _ in range(40):
        page.keyboard.press("Tab")
        here = "document.activeElement.ariaLabel || document.activeElement.textContent"
        reached.add(page.evaluate(f"({here} || document.activeElement.id || '').trim()"))
    controls = {"Chats", "New", "Settings", "Edit the question", "Copy the answer", "Answer again"}
    assert controls <= reached, reached
    assert {"history", "Your question", "Send"} <= reached, reached


def test_the_markdown_reader_is_npms() -> None:
    kept = (DEMO / "node_modules" / "marked" / "lib" / "marked.umd.js").read_text()
    lines = [line for line in kept.splitlines() if "sourceMappingURL" not in line]
    assert (PAGE / "marked.js").read_text().splitlines() == lines
    license = (DEMO / "node_modules" / "marked" / "LICENSE").read_bytes()
    assert (PAGE / "marked.LICENSE").read_bytes() == license
